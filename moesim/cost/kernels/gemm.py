"""Products of tokens with weights: curves over tokens, and between shapes that were measured.

A shape that the table lacks lies between four that it has, n and k each: the ratio to the roofline
is interpolated along n at either k, then along k. A shape narrower than any is taken to be as slow
as the narrowest: kernels fill whole tiles.
"""

from collections import defaultdict
from collections.abc import Iterable

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


def gemm_roofline_s(rates: Rates, number_format: str, n: int, k: int, tokens: Floats) -> Floats:
    """Return the datasheet's time: the longer of the arithmetic and of weights, input and output.

    Weights narrower than what the device multiplies with are computed at its 16-bit rate.
    """
    flop_per_s = rates.arithmetic(number_format, 1.0, 1.0)
    each = FORMATS[number_format].bytes_of(1)
    inputs = each if number_format == "fp8" else OUTPUT_BYTES
    moved = FORMATS[number_format].bytes_of(n * k) + tokens * (inputs * k + OUTPUT_BYTES * n)
    return np.maximum(2.0 * n * k * tokens / flop_per_s, moved / rates.bytes_per_s)


class Gemms:
    """All products of a device."""

    def __init__(self, curves: Iterable[Gemm], rates: Rates) -> None:
        self._rates = rates
        self._ratios: dict[str, dict[int, dict[int, LogCurve]]] = defaultdict(dict)
        for curve in curves:
            tokens = np.asarray(curve.tokens, dtype=float)
            roof = gemm_roofline_s(rates, curve.format, curve.n, curve.k, tokens)
            ratios = LogCurve.through(tokens, np.asarray(curve.us) * MICRO / roof)
            self._ratios[curve.format].setdefault(curve.k, {})[curve.n] = ratios

    @property
    def formats(self) -> tuple[str, ...]:
        """The formats of which there are any."""
        return tuple(self._ratios)

    def seconds(self, number_format: str, n: int, k: int, tokens: Floats) -> tuple[Floats, str]:
        """Return the durations at numbers of tokens, and what they rest on.

        Raises ProfileError where nothing of the format was measured.
        """
        by_k = self._ratios.get(number_format)
        if not by_k:
            raise ProfileError(
                f"precision: no products in {number_format} in these kernels, which have "
                f"{', '.join(self.formats) or 'none'}; take one of those, or `profile: roofline`"
            )
        wide = max(n, min(min(ns) for ns in by_k.values()))
        sides = bracket(_ks_around(by_k, wide), k)
        along = {side: self._along_n(by_k[int(side)], wide, tokens) for side in sides}
        ratio = between(k, *sides, {side: ratio for side, (ratio, _) in along.items()})
        seconds = ratio * gemm_roofline_s(self._rates, number_format, wide, k, tokens)
        basis = basis_within(np.array(sorted(set(sides))), np.array([k]))
        lone = "measured" if wide == n else "extrapolated"
        return seconds, weakest(basis, lone, *(basis for _, basis in along.values()))

    def _along_n(self, by_n: dict[int, LogCurve], n: int, tokens: Floats) -> tuple[Floats, str]:
        known = sorted(by_n)
        low, high = bracket(known, n)
        ratios = {side: by_n[int(side)](tokens) for side in (low, high)}
        within = basis_within(np.array(sorted({low, high})), np.array([n]))
        bases = [by_n[int(side)].basis(tokens) for side in (low, high)]
        return between(n, low, high, ratios), weakest(within, *bases)


def _ks_around(by_k: dict[int, dict[int, LogCurve]], n: int) -> list[int]:
    """Return the k at which measured shapes lie on both sides of `n`, or all where none do."""
    around = [k for k, by_n in by_k.items() if min(by_n) <= n <= max(by_n)]
    return sorted(around or by_k)
