"""Attention: prompts and their chunks, and decoding, for the heads of one rank.

**Chunks.** A table has prompts from nothing: s new tokens of each of b sequences. A chunk's cost
is taken from the largest batch that fits into an iteration, b chunks alike, divided by b: an
iteration with prompts is full of them, and their kernel is launched once. Tokens cached before add
the longest of three: the products of the new ones with them, new x cached, at the rate that the
longest prompt of the table reaches on what it has more than the next; the time to read their keys
and values; and, since a tile of queries goes through all keys one after the other, the time that
this takes a tile alone, from short prompts on the fewest heads. Where chunks with a context were
measured, they are interpolated instead.

**Decoding.** Curves over the context of each sequence at each measured batch.

Heads that a table lacks lie between those with as many heads of keys and values. Where none have as
many, prompts are scaled from the nearest of all by the width of their queries. In decoding, each
sequence's head of keys and values is a part that the device works on by itself, so that 16
sequences with 32 such heads are taken for 64 with 8: as many parts, as much to read.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import inf, log
from typing import Any, NamedTuple, TypeVar

import numpy as np

from moesim.cost.expected import Rates
from moesim.cost.kernels.curves import MICRO, Floats, LogCurve, basis_within, bracket, weakest
from moesim.cost.kernels.elementwise import PASS_SHARE
from moesim.cost.kernels.tables import Decode, Prefill
from moesim.errors import ProfileError
from moesim.facts.precision import FORMATS

SCANNED = 256, 1024
"""Lengths of a single prompt between which a device with few heads is not full: what the longer one
takes more is the way of its last tile through the keys [tokens]."""

IN_FULL = 8192
"""Tokens of an iteration that is full of prompts alike: TensorRT-LLM's and vLLM's default bound."""


Series = TypeVar("Series", Prefill, Decode)


class Heads(NamedTuple):
    """The heads of a rank."""

    heads: int
    kv_heads: int
    head_dim: int

    def kv_bytes(self, kv_format: str) -> int:
        """Return the bytes of a token's keys and values in one layer [B]."""
        return FORMATS[kv_format].bytes_of(2 * self.kv_heads * self.head_dim)

    def flop(self, new: Floats | float, context: Floats | float) -> Floats | float:
        """Return the operations of new tokens on their context and, causal, each other [FLOP]."""
        return 4.0 * self.heads * self.head_dim * new * (context + new / 2)


def prefill_roofline_s(
    rates: Rates, heads: Heads, kv_format: str, new: Floats, context: Floats
) -> Floats:
    """Return the datasheet's time of one chunk: products, or keys and values read."""
    moved = heads.kv_bytes(kv_format) * (new + context)
    flop = heads.flop(new, context)
    return np.asarray(np.maximum(flop / rates.flop_per_s, moved / rates.bytes_per_s))


def decode_roofline_s(rates: Rates, heads: Heads, kv_format: str, summed: Floats) -> Floats:
    """Return the datasheet's time to read the keys and values of all contexts."""
    return np.asarray(heads.kv_bytes(kv_format) * np.maximum(summed, 1.0) / rates.bytes_per_s)


@dataclass(frozen=True, slots=True)
class Chunks:
    """Chunks of one kind of heads: from nothing a curve, with a context on top of it.

    A prompt of s tokens takes c + a s + b s^2: tiles of its own, rotary positions and the cache
    with the tokens, the products with their square. But for c, the time of one token is a line,
    and straight between lengths.
    """

    sizes: Floats
    start_s: float
    """What a chunk takes however short it is, from the two shortest [s]."""
    token_s: Floats
    """What each token of a chunk from nothing takes beside that, at `sizes` [s]."""
    flop_per_s: float
    measured: dict[float, LogCurve]
    """By new tokens: the duration over the context, where that was measured."""

    @classmethod
    def of(cls, heads: Heads, curves: Sequence[Prefill], rates: Rates) -> "Chunks":
        """Draw the curves through points of one kind of heads."""
        each_s = per_chunk(curves)
        with_context: dict[float, list[tuple[int, float]]] = defaultdict(list)
        for curve in curves:
            for batch, new, context, us in zip(
                curve.sequences, curve.new_tokens, curve.context, curve.us, strict=True
            ):
                if batch == 1:
                    with_context[new].append((context, us * MICRO))
        sizes = sorted(each_s)
        each = np.maximum.accumulate([each_s[size] for size in sizes])
        start_s = _start(sizes, each)
        return cls(
            sizes=np.asarray(sizes, dtype=float),
            start_s=start_s,
            token_s=(each - start_s) / np.asarray(sizes),
            flop_per_s=_rate_of_long(heads, sizes, each) or rates.flop_per_s,
            measured={
                new: _over_context(points)
                for new, points in with_context.items()
                if len(points) > 1
            },
        )

    def over_context(self, new: float, context: float) -> float:
        """Return the duration of a chunk with `context` cached, between measured ones [s]."""
        asked = np.array([float(context + 1)])
        low, high = bracket(sorted(self.measured), new)
        ends = [float(self.measured[side](asked)[0]) for side in (low, high)]
        share = log(new / low) / log(high / low) if low != high else 0.0
        return float(ends[0] ** (1 - share) * ends[1] ** share)

    def from_nothing(self, new: float) -> float:
        """Return the duration of a chunk with nothing cached [s]."""
        if new <= self.sizes[0]:
            return float(self.start_s + self.token_s[0] * self.sizes[0])
        beyond = 0.0
        if new > self.sizes[-1] and len(self.sizes) > 1:
            rise = (self.token_s[-1] - self.token_s[-2]) / (self.sizes[-1] - self.sizes[-2])
            beyond = max(0.0, float(rise)) * (new - self.sizes[-1])
        return float(self.start_s + new * (np.interp(new, self.sizes, self.token_s) + beyond))


def _start(sizes: Sequence[int], seconds: Floats) -> float:
    """Return where the line through the two shortest starts, above nothing [s]."""
    if len(sizes) < 2:
        return 0.0
    rise = (seconds[1] - seconds[0]) / (sizes[1] - sizes[0])
    return max(0.0, float(seconds[0] - rise * sizes[0]))


def scan_s(curves: Sequence[Prefill]) -> float:
    """Return what a tile of queries takes for one more key, of a prompt alone [s]; 0 if unknown."""
    alone = {
        new: us * MICRO
        for curve in curves
        for batch, new, context, us in zip(
            curve.sequences, curve.new_tokens, curve.context, curve.us, strict=True
        )
        if batch == 1 and context == 0
    }
    short, long = SCANNED
    if short not in alone or long not in alone:
        return 0.0
    return max(0.0, (alone[long] - alone[short]) / (long - short))


def per_chunk(curves: Sequence[Prefill]) -> dict[int, float]:
    """Return the duration of one of the most chunks alike that fit, by their new tokens [s]."""
    fullest: dict[int, tuple[int, float]] = {}
    for curve in curves:
        for batch, new, context, us in zip(
            curve.sequences, curve.new_tokens, curve.context, curve.us, strict=True
        ):
            fits = batch * new <= IN_FULL or batch == 1
            if context == 0 and fits and batch >= fullest.get(new, (0, 0.0))[0]:
                fullest[new] = batch, us * MICRO / batch
    return {new: seconds for new, (_, seconds) in fullest.items()}


def _over_context(points: Sequence[tuple[int, float]]) -> LogCurve:
    """Draw a curve over the context plus one, so that none has a logarithm."""
    ordered = sorted(points)
    rising = np.maximum.accumulate([seconds for _, seconds in ordered])
    return LogCurve.through([context + 1 for context, _ in ordered], rising)


def _rate_of_long(heads: Heads, sizes: Sequence[int], seconds: Floats) -> float:
    """Return the FLOP/s of what the longest prompt has more than the next; 0 if it has nothing."""
    if len(sizes) < 2 or seconds[-1] <= seconds[-2]:
        return 0.0
    more = heads.flop(float(sizes[-1]), 0.0) - heads.flop(float(sizes[-2]), 0.0)
    return float(more / (seconds[-1] - seconds[-2]))


class Prompts:
    """Attention of chunks for all heads of a device."""

    def __init__(self, curves: Iterable[Prefill], rates: Rates) -> None:
        self._rates = rates
        self._by: dict[str, dict[Heads, Chunks]] = defaultdict(dict)
        self._scan_s: dict[str, float] = {}
        for (kv_format, heads), group in _grouped(curves).items():
            self._by[kv_format][heads] = Chunks.of(heads, group, rates)
            least = min(scan_s(group), self._scan_s.get(kv_format, inf))
            self._scan_s[kv_format] = least

    def seconds(
        self, heads: Heads, kv_format: str, new: float, context: float
    ) -> tuple[float, str]:
        """Return the duration of a chunk, and what it rests on."""
        shares, basis = _nearby(self._by, kv_format, heads, _in_all)
        total = 0.0
        for other, share in shares.items():
            total += share * log(self._scaled_s(heads, other, kv_format, new, context))
        sizes = self._by[kv_format][next(iter(shares))].sizes
        reach = basis_within(sizes, np.array([max(new, sizes[0])]))
        on_top = "interpolated" if context else "measured"
        return float(np.exp(total)), weakest(basis, reach, on_top)

    def _scaled_s(
        self, heads: Heads, other: Heads, kv_format: str, new: float, context: float
    ) -> float:
        """Return the duration for heads, from that of others.

        What new tokens take among themselves goes with the queries' width, which they compute on,
        but for a pass over their keys and values, from the product to the cache. What a context
        takes beside that is reckoned for the heads themselves.
        """
        chunks = self._by[kv_format][other]
        if chunks.measured:
            asked = np.array([float(new)]), np.array([float(context)])
            wanted = prefill_roofline_s(self._rates, heads, kv_format, *asked)[0]
            measured = prefill_roofline_s(self._rates, other, kv_format, *asked)[0]
            return float(chunks.over_context(new, context) * wanted / measured)
        more = heads.heads * heads.head_dim / (other.heads * other.head_dim)
        pass_s = 2 * new / (self._rates.bytes_per_s * PASS_SHARE)
        kept_s = pass_s * heads.kv_bytes(kv_format)
        alone_s = more * (chunks.from_nothing(new) - pass_s * other.kv_bytes(kv_format)) + kept_s
        flop = 4.0 * heads.heads * heads.head_dim * new * context
        read_s = heads.kv_bytes(kv_format) * context / self._rates.bytes_per_s
        scanned_s = self._scan_s[kv_format] * context
        return max(alone_s, kept_s) + max(flop / chunks.flop_per_s, read_s, scanned_s)


class Decoding:
    """Attention of decoding for all heads of a device."""

    def __init__(self, curves: Iterable[Decode], rates: Rates) -> None:
        self._rates = rates
        self._by: dict[str, dict[Heads, dict[int, LogCurve]]] = defaultdict(dict)
        self._lines: dict[tuple[str, Heads], tuple[float, float]] = {}
        for (kv_format, heads), group in _grouped(curves).items():
            self._lines[kv_format, heads] = self._line(heads, kv_format, group)
            self._by[kv_format][heads] = {
                batch: self._ratios(heads, kv_format, batch, row)
                for batch, row in _over_batches(group).items()
            }

    def _line(self, heads: Heads, kv_format: str, curves: Sequence[Decode]) -> tuple[float, float]:
        """Return what launching takes [s], and by how much reading is slower than at best.

        From the fastest point, and from the one that reads most.
        """
        points = [
            (float(batch * context), us * MICRO)
            for curve in curves
            for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True)
        ]
        launch_s = min(seconds for _, seconds in points)
        most, longest_s = max(points)
        roof = decode_roofline_s(self._rates, heads, kv_format, np.array([most]))[0]
        return launch_s, max(1.0, (longest_s - launch_s) / roof)

    def _shape(self, heads: Heads, kv_format: str, summed: Floats) -> Floats:
        """Return the time to launch plus that to read all keys and values."""
        launch_s, slower = self._lines[kv_format, heads]
        roof = decode_roofline_s(self._rates, heads, kv_format, summed)
        return np.asarray(launch_s + slower * roof)

    def _ratios(self, heads: Heads, kv_format: str, batch: int, row: dict[int, float]) -> LogCurve:
        contexts = np.array(sorted(row), dtype=float)
        seconds = np.array([row[int(context)] for context in contexts])
        return LogCurve.through(contexts, seconds / self._shape(heads, kv_format, batch * contexts))

    def batches(self, heads: Heads, kv_format: str) -> list[int]:
        """Return the batches at which decoding was measured, for these heads or the nearest."""
        shares, _ = _nearby(self._by, kv_format, heads, _in_parts)
        several = [
            {
                max(1, round(batch / _more_parts(heads, other)))
                for batch in self._by[kv_format][other]
            }
            for other in shares
        ]
        return sorted(set.intersection(*several))

    def reach(self, heads: Heads, kv_format: str, batch: int) -> float:
        """Return the longest context that was measured at a batch, or at the next smaller."""
        shares, _ = _nearby(self._by, kv_format, heads, _in_parts)
        ends = []
        for other in shares:
            by_batch = self._by[kv_format][other]
            low, _ = bracket(sorted(by_batch), batch * _more_parts(heads, other))
            ends.append(round(float(np.exp(by_batch[int(low)].log_xs[-1]))))
        return min(ends)

    def seconds(
        self, heads: Heads, kv_format: str, batch: int, context: float
    ) -> tuple[float, str]:
        """Return the duration of `batch` sequences with `context` tokens each, and its basis."""
        shares, basis = _nearby(self._by, kv_format, heads, _in_parts)
        asked = np.array([max(1.0, float(context))])
        total, reach = 0.0, "measured"
        for other, share in shares.items():
            by_batch = self._by[kv_format][other]
            alike = batch * _more_parts(heads, other)
            low, high = bracket(sorted(by_batch), alike)
            place = log(alike / low) / log(high / low) if low != high else 0.0
            ends = [log(by_batch[int(side)](asked)[0]) for side in (low, high)]
            shape = self._shape(other, kv_format, alike * asked)
            roof = decode_roofline_s(self._rates, other, kv_format, alike * asked)
            own = log(shape[0] / roof[0])
            total += share * (own + (1 - place) * ends[0] + place * ends[1])
            within = "measured" if alike in by_batch else "interpolated"
            beyond = "measured" if low <= alike <= high else "extrapolated"
            reach = weakest(reach, within, beyond, by_batch[int(low)].basis(asked))
        wanted = decode_roofline_s(self._rates, heads, kv_format, batch * asked)[0]
        return float(np.exp(total) * wanted), weakest(basis, reach)


def _more_parts(heads: Heads, other: Heads) -> float:
    """Return how many sequences of the other heads are as many parts as one of these."""
    return heads.kv_heads / other.kv_heads


def _over_batches(curves: Sequence[Decode]) -> dict[int, dict[int, float]]:
    """Return by batch and context the durations [s]."""
    points: dict[int, dict[int, float]] = defaultdict(dict)
    for curve in curves:
        for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True):
            points[batch][max(1, context)] = us * MICRO
    return points


def _grouped(curves: Iterable[Series]) -> dict[tuple[str, Heads], list[Series]]:
    found: dict[tuple[str, Heads], list[Series]] = defaultdict(list)
    for curve in curves:
        heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
        found[curve.kv_format, heads].append(curve)
    return found


def _in_all(heads: Heads, other: Heads) -> tuple[float, ...]:
    """Return how far heads are from others, all numbers taken together."""
    return (sum(abs(log(a / b)) for a, b in zip(heads, other, strict=True)),)


def _in_parts(heads: Heads, other: Heads) -> tuple[float, ...]:
    """Return how far heads are in what a part of decoding is, then in how many there are.

    A part is as many query heads as share one of keys and values, each so wide. Of two as far, the
    one with more parts counts: kernels treat a single head apart.
    """
    group = heads.heads / heads.kv_heads / (other.heads / other.kv_heads)
    part = abs(log(group)) + abs(log(heads.head_dim / other.head_dim))
    return part, abs(log(_more_parts(heads, other))), -other.kv_heads


def _nearby(
    by: Mapping[str, Mapping[Heads, Any]],
    kv_format: str,
    heads: Heads,
    far: Callable[[Heads, Heads], tuple[float, ...]],
) -> tuple[dict[Heads, float], str]:
    """Return measured heads with their shares in the asked ones' logarithm, and the basis.

    `far` says how far heads are from others, where none have as many for keys and values.
    """
    known = by.get(kv_format)
    if not known:
        raise ProfileError(
            f"kv_precision: no attention with a KV cache in {kv_format} in these kernels, which "
            f"have {', '.join(by) or 'none'}; take one of those, or `profile: roofline`"
        )
    if heads in known:
        return {heads: 1.0}, "measured"
    alike = {h.heads: h for h in known if h[1:] == heads[1:]}
    if not alike:
        return {min(known, key=lambda other: far(heads, other)): 1.0}, "extrapolated"
    low, high = bracket(sorted(alike), heads.heads)
    if low == high:
        return {alike[int(low)]: 1.0}, "extrapolated"
    share = log(heads.heads / low) / log(high / low)
    return {alike[int(low)]: 1 - share, alike[int(high)]: share}, "interpolated"
