"""Products of tokens with weights: curves over tokens, and between shapes that were measured.

A shape that the table lacks lies between four that it has, n and k each: the ratio to the roofline
is interpolated along n at either k, then along k. A shape narrower than any is taken to be as slow
as the narrowest: kernels fill whole tiles. Where a table was found to follow another form than the
roofline (`moesim.cost.kernels.waves`), it is the ratio to that.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np

from moesim.cost.expected import Rates
from moesim.cost.kernels.curves import (
    MICRO,
    Floats,
    LogCurve,
    basis_within,
    between,
    bracket,
    weakest,
)
from moesim.cost.kernels.tables import Gemm
from moesim.errors import ProfileError
from moesim.facts.precision import FORMATS

OUTPUT_BYTES = 2
"""Bytes of one output value: products accumulate and leave in 16 bits."""


Form = Callable[[Rates, str, int, int, Floats], Floats]
"""The time of a product at best, over format, n, k and tokens [s]."""


def gemm_moved_s(rates: Rates, number_format: str, n: int, k: int, tokens: Floats) -> Floats:
    """Return the datasheet's time to read weights and input and to write the output."""
    each = FORMATS[number_format].bytes_of(1)
    inputs = each if number_format == "fp8" else OUTPUT_BYTES
    moved = FORMATS[number_format].bytes_of(n * k) + tokens * (inputs * k + OUTPUT_BYTES * n)
    return np.asarray(moved / rates.bytes_per_s)


def gemm_roofline_s(rates: Rates, number_format: str, n: int, k: int, tokens: Floats) -> Floats:
    """Return the datasheet's time: the longer of the arithmetic and of weights, input and output.

    Weights narrower than what the device multiplies with are computed at its 16-bit rate.
    """
    flop_per_s = rates.arithmetic(number_format, 1.0, 1.0)
    moved_s = gemm_moved_s(rates, number_format, n, k, tokens)
    return np.maximum(2.0 * n * k * tokens / flop_per_s, moved_s)


@dataclass(frozen=True, slots=True)
class Product:
    """One shape's durations over tokens."""

    sizes: Floats
    """Tokens that were measured, rising."""
    seconds: Floats
    ratios: LogCurve
    """Durations over those of the form."""

    @classmethod
    def through(cls, tokens: Floats, seconds: Floats, at_best_s: Floats) -> "Product":
        """Draw the curve through points, given the form's times at them."""
        order = np.argsort(tokens)
        ratios = LogCurve.through(tokens, seconds / at_best_s)
        return cls(tokens[order], seconds[order], ratios)

    def ratio(self, tokens: Floats, at_best_s: Floats) -> Floats:
        """Return the duration over the form's, `at_best_s` at these tokens.

        Between two sizes nothing takes less than at the smaller, or more than at the larger.
        """
        before = np.searchsorted(self.sizes, tokens, side="right")
        after = np.searchsorted(self.sizes, tokens, side="left")
        low = np.concatenate([[0.0], self.seconds])[before]
        high = np.concatenate([self.seconds, [np.inf]])[after]
        drawn = self.ratios(tokens) * at_best_s
        return np.asarray(np.clip(drawn, np.minimum(low, high), np.maximum(low, high)) / at_best_s)


class Gemms:
    """All products of a device."""

    def __init__(
        self, curves: Iterable[Gemm], rates: Rates, forms: Mapping[str, Form] | None = None
    ) -> None:
        """Draw the curves; `forms` are by format, the roofline where there is none."""
        self._rates = rates
        self._forms = forms or {}
        self._products: dict[str, dict[int, dict[int, Product]]] = defaultdict(dict)
        for curve in curves:
            tokens = np.asarray(curve.tokens, dtype=float)
            at_best_s = self._at_best_s(curve.format, curve.n, curve.k, tokens)
            product = Product.through(tokens, np.asarray(curve.us) * MICRO, at_best_s)
            self._products[curve.format].setdefault(curve.k, {})[curve.n] = product

    def _at_best_s(self, number_format: str, n: int, k: int, tokens: Floats) -> Floats:
        form = self._forms.get(number_format, gemm_roofline_s)
        return form(self._rates, number_format, n, k, tokens)

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of which there are any."""
        return tuple(self._products)

    def seconds(self, number_format: str, n: int, k: int, tokens: Floats) -> tuple[Floats, str]:
        """Return the durations at numbers of tokens, and what they rest on.

        Raises ProfileError where nothing of the format was measured.
        """
        by_k = self._products.get(number_format)
        if not by_k:
            raise ProfileError(
                f"precision: no products in {number_format} in these kernels, which have "
                f"{', '.join(self.formats) or 'none'}; take one of those, or `profile: roofline`"
            )
        wide = max(n, min(min(ns) for ns in by_k.values()))
        sides = bracket(_ks_around(by_k, wide), k)
        along = {side: self._along_n(number_format, int(side), wide, tokens) for side in sides}
        ratio = between(k, *sides, {side: ratio for side, (ratio, _) in along.items()})
        seconds = ratio * self._at_best_s(number_format, wide, k, tokens)
        basis = basis_within(np.array(sorted(set(sides))), np.array([k]))
        lone = "measured" if wide == n else "extrapolated"
        return seconds, weakest(basis, lone, *(basis for _, basis in along.values()))

    def _along_n(self, number_format: str, k: int, n: int, tokens: Floats) -> tuple[Floats, str]:
        by_n = self._products[number_format][k]
        low, high = bracket(sorted(by_n), n)
        ratios = {
            side: by_n[int(side)].ratio(
                tokens, self._at_best_s(number_format, int(side), k, tokens)
            )
            for side in (low, high)
        }
        within = basis_within(np.array(sorted({low, high})), np.array([n]))
        bases = [by_n[int(side)].ratios.basis(tokens) for side in (low, high)]
        return between(n, low, high, ratios), weakest(within, *bases)


def _ks_around(by_k: Mapping[int, Mapping[int, Product]], n: int) -> list[int]:
    """Return the k at which measured shapes lie on both sides of `n`, or all where none do."""
    around = [k for k, by_n in by_k.items() if min(by_n) <= n <= max(by_n)]
    return sorted(around or by_k)
