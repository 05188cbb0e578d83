"""How far off curves are on points that they were not drawn through.

Sizes: of each curve the points between the first and the last are left out, every third at a time,
and predicted from the others. Shapes of products: all curves of one n, and of one k, are left out
and predicted from the shapes around. First and last points are never left out: nothing is claimed
beyond them.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from moesim.cost.expected import Rates
from moesim.cost.kernels.attention import Decoding, Heads, Prompts, Series, per_chunk
from moesim.cost.kernels.curves import MICRO, Floats, LogCurve
from moesim.cost.kernels.experts import (
    BALANCED,
    BORROWED,
    drawn,
    elsewhere_s,
    less_balanced,
)
from moesim.cost.kernels.gemm import Form, Gemms
from moesim.cost.kernels.tables import Collective, Decode, Gemm, Moe, Prefill, Residual
from moesim.cost.kernels.uncertainty import QUANTILES
from moesim.errors import ProfileError

FOLDS = 3

CLEARLY = 0.9
"""Ratio of 90th percentiles of errors from which on another form than the roofline is taken: forms
that differ by less are alike."""

ALIKE = 1.04
"""Ratio up to which sizes count as one: tables have a size and the next whole number after it."""

BY_SIZE = "every third size between first and last of each curve, from the other sizes"
BY_SHAPE = "all products of one n or one k, from the shapes around"


@dataclass(slots=True)
class Pairs:
    """Points that were left out: where, measured, predicted."""

    where: list[str] = field(default_factory=list)
    measured: list[float] = field(default_factory=list)
    predicted: list[float] = field(default_factory=list)

    def add(self, where: str, measured: float, predicted: float) -> None:
        """Note one more point [s]."""
        self.where.append(where)
        self.measured.append(measured)
        self.predicted.append(predicted)

    @property
    def errors(self) -> Floats:
        """Measured over predicted, minus 1."""
        return np.asarray(np.asarray(self.measured) / np.asarray(self.predicted) - 1.0)

    def residual(self, left_out: str) -> Residual | None:
        """Return what goes into a file; None without points."""
        if not self.measured:
            return None
        off = np.abs(self.errors)
        quantiles = np.quantile(self.errors, QUANTILES)
        return Residual(
            left_out=left_out,
            points=len(off),
            p50=round(float(np.median(off)), 4),
            p90=round(float(np.quantile(off, 0.9)), 4),
            quantiles=tuple(round(float(value), 4) for value in quantiles),
        )


def folds(sizes: Sequence[float]) -> Iterator[tuple[list[int], list[int]]]:
    """Yield what stays and what is left out of a curve, fold by fold.

    Sizes that are nearly alike (128 and 129) go together, so that neither gives the other away.

    >>> list(folds([1, 2, 4, 8, 16]))
    [([0, 2, 3, 4], [1]), ([0, 1, 3, 4], [2]), ([0, 1, 2, 4], [3])]
    """
    groups: list[list[int]] = []
    for place, size in enumerate(sizes):
        if groups and size <= ALIKE * sizes[groups[-1][-1]]:
            groups[-1].append(place)
        else:
            groups.append([place])
    for fold in range(FOLDS):
        out = [place for group in groups[1 + fold : -1 : FOLDS] for place in group]
        if out:
            yield [place for place in range(len(sizes)) if place not in out], out


def _with(curve: Gemm, places: Iterable[int]) -> Gemm:
    places = list(places)
    return curve.model_copy(
        update={
            "tokens": tuple(curve.tokens[i] for i in places),
            "us": tuple(curve.us[i] for i in places),
        }
    )


def forms_of(curves: Sequence[Gemm], rates: Rates, forms: Mapping[str, Form]) -> dict[str, str]:
    """Return by format the name of the form whose left-out sizes are nearest.

    The first of `forms`, the roofline, stays where no other is clearly nearer.
    """
    found = {}
    for name in sorted({curve.format for curve in curves}):
        own = [curve for curve in curves if curve.format == name]
        off = {
            form_name: _nine_in_ten(gemm_sizes(own, rates, {name: form}))
            for form_name, form in forms.items()
        }
        first, best = next(iter(off)), min(off, key=lambda form_name: off[form_name])
        found[name] = best if off[best] < CLEARLY * off[first] else first
    return found


def _nine_in_ten(pairs: Pairs) -> float:
    return float(np.quantile(np.abs(pairs.errors), 0.9)) if pairs.where else 0.0


def gemm_sizes(
    curves: Iterable[Gemm], rates: Rates, forms: Mapping[str, Form] | None = None
) -> Pairs:
    """Leave sizes of products out."""
    pairs = Pairs()
    for curve in curves:
        for stay, out in folds(curve.tokens):
            gemms = Gemms([_with(curve, stay)], rates, forms)
            asked = np.array([float(curve.tokens[i]) for i in out])
            values, _ = gemms.seconds(curve.format, curve.n, curve.k, asked)
            for i, value in zip(out, values, strict=True):
                pairs.add(f"{curve.format} {curve.n}x{curve.k} m {curve.tokens[i]}",
                          curve.us[i] * MICRO, float(value))  # fmt: skip
    return pairs


def gemm_shapes(
    curves: Sequence[Gemm],
    rates: Rates,
    forms: Mapping[str, Form] | None = None,
    wanted: Callable[[Gemm], bool] = lambda _: True,
) -> Pairs:
    """Leave shapes of products out: with all of their n, and with all of their k."""
    pairs = Pairs()
    for name in sorted({curve.format for curve in curves}):
        own = [curve for curve in curves if curve.format == name]
        for side in ("n", "k"):
            for left_out in sorted({getattr(curve, side) for curve in own})[1:-1]:
                rest = [curve for curve in own if getattr(curve, side) != left_out]
                gemms = Gemms(rest, rates, forms)
                for curve in own:
                    if getattr(curve, side) == left_out and wanted(curve):
                        _judge(pairs, gemms, curve, rest)
    return pairs


def _judge(pairs: Pairs, gemms: Gemms, curve: Gemm, rest: Sequence[Gemm]) -> None:
    """Compare a curve with what others say, where they lie around it."""
    values, basis = gemms.seconds(
        curve.format, curve.n, curve.k, np.asarray(curve.tokens, dtype=float)
    )
    if basis == "extrapolated":
        return
    for tokens, us, value in zip(curve.tokens, curve.us, values, strict=True):
        pairs.add(f"{curve.format} {curve.n}x{curve.k} m {tokens}", us * MICRO, float(value))


def decode_sizes(curves: Iterable[Decode], rates: Rates) -> Pairs:
    """Leave contexts of decoding out at each batch, and batches at each context."""
    pairs = Pairs()
    for curve in curves:
        points = list(zip(curve.sequences, curve.context, curve.us, strict=True))
        heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
        batches = sorted(set(curve.sequences))
        for left_out in batches[1:-1]:
            rest = [point for point in points if point[0] != left_out]
            _decoded(pairs, curve, heads, rest, [p for p in points if p[0] == left_out], rates)
        contexts = sorted(set(curve.context))
        for left_out in contexts[1:-1]:
            rest = [point for point in points if point[1] != left_out]
            inside = [
                point for point in points
                if point[1] == left_out and _has_longer(points, point)
            ]  # fmt: skip
            _decoded(pairs, curve, heads, rest, inside, rates)
    return pairs


def _has_longer(points: Sequence[tuple[int, int, float]], point: tuple[int, int, float]) -> bool:
    return any(batch == point[0] and context > point[1] for batch, context, _ in points)


def _decoded(
    pairs: Pairs,
    curve: Decode,
    heads: Heads,
    rest: Sequence[tuple[int, int, float]],
    out: Sequence[tuple[int, int, float]],
    rates: Rates,
) -> None:
    batch, context, us = zip(*rest, strict=True)
    update = {"sequences": batch, "context": context, "us": us}
    decoding = Decoding([curve.model_copy(update=update)], rates)
    for sequences, length, measured in out:
        reach = decoding.reach(heads, curve.kv_format, sequences)
        if length <= reach:
            value, _ = decoding.seconds(heads, curve.kv_format, sequences, length)
            pairs.add(f"{tuple(heads)} {curve.kv_format} batch {sequences} context {length}",
                      measured * MICRO, value)  # fmt: skip


def prefill_sizes(curves: Iterable[Prefill], rates: Rates) -> Pairs:
    """Leave lengths of prompts out."""
    pairs = Pairs()
    for curve in curves:
        heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
        each = sorted(per_chunk([curve]).items())
        for stay, out in folds([new for new, _ in each]):
            kept = {each[i][0] for i in stay}
            places = [i for i, new in enumerate(curve.new_tokens) if new in kept]
            update = {
                name: tuple(getattr(curve, name)[i] for i in places)
                for name in ("sequences", "new_tokens", "context", "us")
            }
            prompts = Prompts([curve.model_copy(update=update)], rates)
            for i in out:
                new, measured = each[i]
                value, _ = prompts.seconds(heads, curve.kv_format, new, 0)
                pairs.add(f"{tuple(heads)} {curve.kv_format} new {new}", measured, value)
    return pairs


def decode_heads(curves: Sequence[Decode], rates: Rates) -> Pairs:
    """Leave out all heads of decoding with as many for keys and values."""
    pairs = Pairs()
    for out, rest in _by_kv_heads(curves):
        decoding = Decoding(rest, rates)
        for curve in out:
            heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
            for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True):
                if context <= decoding.reach(heads, curve.kv_format, batch):
                    value, _ = decoding.seconds(heads, curve.kv_format, batch, context)
                    pairs.add(f"{tuple(heads)} {curve.kv_format} batch {batch} context {context}",
                              us * MICRO, value)  # fmt: skip
    return pairs


def prefill_heads(curves: Sequence[Prefill], rates: Rates) -> Pairs:
    """Leave out all heads of prompts with as many for keys and values."""
    pairs = Pairs()
    for out, rest in _by_kv_heads(curves):
        prompts = Prompts(rest, rates)
        for curve in out:
            heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
            for new, measured in sorted(per_chunk([curve]).items()):
                value, _ = prompts.seconds(heads, curve.kv_format, new, 0)
                pairs.add(f"{tuple(heads)} {curve.kv_format} new {new}", measured, value)
    return pairs


def _by_kv_heads(curves: Sequence[Series]) -> Iterator[tuple[list[Series], list[Series]]]:
    """Yield what is left out and what stays, a number of heads of keys and values at a time."""
    several = {curve.kv_heads for curve in curves}
    for left_out in sorted(several) if len(several) > 1 else []:
        yield (
            [curve for curve in curves if curve.kv_heads == left_out],
            [curve for curve in curves if curve.kv_heads != left_out],
        )


def moe_sizes(curves: Iterable[Moe]) -> Pairs:
    """Leave numbers of tokens out of layers of experts: balanced ones, where there are any."""
    pairs = Pairs()
    for curve in _drawn_from(curves):
        for stay, out in folds(curve.tokens):
            update = {
                "tokens": tuple(curve.tokens[i] for i in stay),
                "us": tuple(curve.us[i] for i in stay),
            }
            try:
                rank = drawn([curve.model_copy(update=update)])
            except ProfileError:
                continue
            for i in out:
                tokens = curve.tokens[i]
                hit = _hit(curve, tokens)
                if hit is None:
                    continue
                visits = tokens * curve.top_k / curve.expert_parallel
                measured = curve.us[i] * MICRO * less_balanced(curve, tokens)
                pairs.add(_of(curve, tokens), measured, rank.seconds(visits, hit))
    return pairs


def moe_counted(curves: Iterable[Moe]) -> Pairs:
    """Leave numbers of hit experts out, where a table has them apart."""
    pairs = Pairs()
    for curve in curves:
        counted = curve.distinct or ()
        for left_out in sorted(set(counted))[1:-1]:
            stay = [place for place, hit in enumerate(counted) if hit != left_out]
            update = {
                "tokens": tuple(curve.tokens[i] for i in stay),
                "distinct": tuple(counted[i] for i in stay),
                "us": tuple(curve.us[i] for i in stay),
            }
            rank = drawn([curve.model_copy(update=update)])
            for i, hit in enumerate(counted):
                if hit == left_out:
                    predicted = rank.seconds(curve.tokens[i] * curve.top_k, hit)
                    pairs.add(_of(curve, curve.tokens[i]), curve.us[i] * MICRO, predicted)
    return pairs


def moe_cuts(curves: Sequence[Moe], rates: Rates) -> Pairs:
    """Predict ranks with dealt experts from those with all experts, cut as fine."""
    pairs = Pairs()
    whole = {
        _layer_of(curve): curve
        for curve in curves
        if curve.expert_parallel == 1 and curve.distribution == BALANCED
    }
    for curve in curves:
        other = whole.get(_layer_of(curve))
        if curve.expert_parallel == 1 or curve.distribution != BALANCED or other is None:
            continue
        rank, each_s = drawn([other]), elsewhere_s(curve.hidden, rates)
        for tokens, us in zip(curve.tokens, curve.us, strict=True):
            hit = _hit(curve, tokens)
            if hit is not None:
                visits = tokens * curve.top_k / curve.expert_parallel
                beside_s = each_s * tokens * (1 - 1 / curve.expert_parallel)
                predicted = rank.seconds(visits, hit) + beside_s
                pairs.add(_of(curve, tokens), us * MICRO, predicted)
    return pairs


def _layer_of(curve: Moe) -> tuple[object, ...]:
    return (curve.hidden, curve.inner, curve.experts, curve.top_k, curve.tensor_parallel,
            curve.format)  # fmt: skip


def _of(curve: Moe, tokens: int) -> str:
    cut = f"tp {curve.tensor_parallel} ep {curve.expert_parallel}"
    return f"{curve.format} {curve.hidden}x{curve.inner} {cut} {curve.distribution} {tokens}"


def _drawn_from(curves: Iterable[Moe]) -> list[Moe]:
    """Return the balanced curves; of a table without, the skewed ones of undealt experts."""
    curves = [
        curve
        for curve in curves
        if curve.distinct is None and not curve.distribution.startswith(BORROWED)
    ]
    balanced = [curve for curve in curves if curve.distribution == BALANCED]
    return balanced or [curve for curve in curves if curve.expert_parallel == 1]


def _hit(curve: Moe, tokens: int) -> float | None:
    """Return the experts that a point hits on its rank; None where that is not known."""
    own = curve.experts / curve.expert_parallel
    if curve.distribution == BALANCED:
        return min(own, max(1.0, tokens * curve.top_k / curve.expert_parallel))
    return own if tokens >= curve.experts else None


def collective_sizes(curves: Iterable[Collective]) -> Pairs:
    """Leave sizes of messages out."""
    pairs = Pairs()
    for curve in curves:
        sizes, us = np.asarray(curve.bytes, float), np.asarray(curve.us) * MICRO
        for stay, out in folds(curve.bytes):
            rest = LogCurve.through(sizes[stay], us[stay])
            for i, value in zip(out, rest(sizes[out]), strict=True):
                pairs.add(f"{curve.ranks} ranks {curve.bytes[i]} B", float(us[i]), float(value))
    return pairs
