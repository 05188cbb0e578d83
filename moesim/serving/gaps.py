"""Exact statistics of the gaps between tokens (ITL), without writing the gaps out.

A run of iterations is an arithmetic progression of gaps: `first_s + growth_s j` for each iteration
j, as often as sequences got a token. Millions of gaps are thus a few thousand progressions, whose
mean is a formula. A percentile is found by narrowing: a sample of gaps brackets it, how many gaps
of every progression lie below and within the bracket is again a formula, and what is within goes
on. Once few are left they are written out and sorted, so that every percentile lies on, or linearly
between, gaps that occurred.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from moesim.serving.columns import Table
from moesim.serving.iterations import Floats, Integers, Iterations

PERCENTILES = {"p50": 50, "p90": 90, "p95": 95, "p99": 99}

TAIL = 90
"""Percentile from which on a tenth of the gaps is all that is looked at; it decides how fast."""

FEW = 16384
"""Values that are written out and sorted rather than narrowed any further."""

SAMPLE = 2048
"""Gaps drawn to bracket a percentile; they decide how fast it is found, never what is found."""

DEVIATIONS = 3.0
"""Standard deviations of a random sample's quantile that a bracket reaches to either side."""

SLACK = 1e-14
"""Relative difference below which gaps are taken for equal."""

GOLDEN = (sqrt(5) - 1) / 2
"""Its multiples are spread evenly over the unit interval (Weyl), which makes a sample random enough
without a generator."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gaps:
    """Gaps between tokens as weighted progressions, one array a column, (R,) each.

    Progression r is the gaps `first_s + growth_s j` for j below `iterations`, each `weight` times.
    """

    first_s: Floats
    growth_s: Floats
    iterations: Integers
    weight: Integers

    @property
    def count(self) -> int:
        """How many gaps these are."""
        return int(self.iterations @ self.weight)


def all_gaps(logs: Iterable[Iterations]) -> Gaps:
    """Return every gap of some replicas."""
    parts = [
        part
        for log in logs
        for part in (_regular(log, log.sequences), _late(log, slice(None)))
        if len(part.first_s)
    ]
    return parts[0] if len(parts) == 1 else joined(parts)


def tenant_gaps(log: Iterations, records: Table) -> Gaps:
    """Return the gaps of some of a replica's requests, a tenant's for instance.

    A request is in a run's batch where its first token came no later than the run's start, and its
    last token later. That compares stamps for equality, which is exact: a token's time is the start
    of the next iteration.
    """
    first, finish = (
        np.asarray(records[name], dtype=float) for name in ("first_token_s", "finish_s")
    )
    begun = ~np.isnan(first)
    mine = np.isin(log.late.request_id, np.asarray(records["request_id"]))
    passed_over = _covering(log.start_s, log.late.since_s[mine], log.late.until_s[mine])
    decoding = _covering(log.start_s, first[begun], finish[begun])
    return joined([_regular(log, decoding - passed_over), _late(log, mine)])


def joined(parts: Iterable[Gaps]) -> Gaps:
    """Return the gaps of several parts as one, a tenant's on all replicas for instance."""
    parts = list(parts)
    return Gaps(
        **{
            name: np.concatenate([np.empty(0, kind), *(getattr(part, name) for part in parts)])
            for name, kind in (
                ("first_s", np.float64),
                ("growth_s", np.float64),
                ("iterations", np.int64),
                ("weight", np.int64),
            )
        }
    )


def statistics(gaps: Gaps) -> dict[str, float | None]:
    """Return mean, p50, p90, p95, p99 and max [s]; None where there is no gap.

    Percentiles interpolate linearly between order statistics, as `numpy.percentile` does (type 7 of
    Hyndman and Fan 1996).
    """
    part = _Part.of(gaps)
    if not part.count:
        return dict.fromkeys(["mean", *PERCENTILES, "max"])
    return {
        "mean": float((part.sizes * (part.first + part.last)).sum() / (2 * part.count)),
        **_percentiles(part),
        "max": float(part.last.max()),
    }


def _percentiles(part: "_Part") -> dict[str, float]:
    """Return the percentiles; those beyond `TAIL` are looked for among few gaps."""
    top = part.count - 1
    below, tail = part.tail(int(TAIL / 100 * top))
    found = {
        name: _value_at(part, percent / 100 * top)
        for name, percent in PERCENTILES.items()
        if percent < TAIL
    }
    high = {
        name: percent / 100 * top - below
        for name, percent in PERCENTILES.items()
        if percent >= TAIL
    }
    if tail.values <= FEW:
        return found | dict(zip(high, tail.read([*high.values()]), strict=True))
    return found | {name: _value_at(tail, position) for name, position in high.items()}


def _regular(log: Iterations, sequences: Integers) -> Gaps:
    return Gaps(
        first_s=log.first_s, growth_s=log.growth_s, iterations=log.iterations, weight=sequences
    )


def _late(log: Iterations, rows: NDArray[np.bool] | slice) -> Gaps:
    gap_s = log.late.until_s[rows] - log.late.since_s[rows]
    once = np.ones(len(gap_s), dtype=np.int64)
    return Gaps(first_s=gap_s, growth_s=np.zeros(len(gap_s)), iterations=once, weight=once)


def _covering(start_s: Floats, since_s: Floats, until_s: Floats) -> Integers:
    """Count the intervals with `since_s <= start < until_s` for each start; NaN is never."""
    bins = len(start_s) + 1
    entered = np.bincount(np.searchsorted(start_s, since_s), minlength=bins)
    left = np.bincount(np.searchsorted(start_s, until_s), minlength=bins)
    return np.cumsum(entered - left)[:-1]


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The gaps still in question: of each progression those with `begin <= j < end`.

    Counts are held as floats, which are exact far beyond any count of gaps and spare conversions.
    """

    first: Floats
    growth: Floats
    begin: Floats
    end: Floats
    weight: Floats

    @classmethod
    def of(cls, gaps: Gaps) -> "_Part":
        """Take all gaps there are; every progression rises, or is one value many times."""
        there = gaps.iterations * gaps.weight > 0
        rows = slice(None) if there.all() else np.flatnonzero(there)
        first, growth = gaps.first_s[rows], np.abs(gaps.growth_s[rows])
        end, weight = gaps.iterations[rows].astype(float), gaps.weight[rows].astype(float)
        falling = np.flatnonzero(gaps.growth_s[rows] < 0)
        if falling.size:
            first = first.copy()
            first[falling] -= growth[falling] * (end[falling] - 1)
        flat = np.flatnonzero(first + growth * (end - 1) == first)
        weight[flat] *= end[flat]
        growth[flat] = end[flat] = 1.0
        return cls(first=first, growth=growth, begin=np.zeros(len(end)), end=end, weight=weight)

    @cached_property
    def last(self) -> Floats:
        """The largest gap of each progression [s]."""
        return self.first + self.growth * (self.end - 1)

    @cached_property
    def sizes(self) -> Floats:
        """Gaps of each progression."""
        return self.weight * (self.end - self.begin)

    @cached_property
    def count(self) -> int:
        """How many gaps these are."""
        return int(self.sizes.sum())

    @cached_property
    def values(self) -> int:
        """How many gaps these are when equal ones of a progression count once."""
        return int((self.end - self.begin).sum())

    @cached_property
    def sample(self) -> Floats:
        """Some gaps in order of size, evenly drawn from all."""
        upto = np.cumsum(self.sizes)
        index = np.arange(SAMPLE)
        place = np.floor((index + index * GOLDEN % 1) * (upto[-1] / SAMPLE))
        row = np.searchsorted(upto, place, side="right")
        into = (place - upto[row] + self.sizes[row]) // self.weight[row]
        return np.sort(self.first[row] + self.growth[row] * (self.begin[row] + into))

    def bracket(self, rank: int, deviations: float) -> tuple[float, float]:
        """Return gaps between which the one of a rank lies, unless the sample is that far off."""
        share = (rank + 0.5) / self.count
        margin = deviations * sqrt(SAMPLE * share * (1 - share)) + 1
        low, high = int(SAMPLE * share - margin), int(SAMPLE * share + margin) + 1
        return (
            self.sample[low] if low > 0 else -inf,
            self.sample[high] if high < SAMPLE else inf,
        )

    def within(self, low: float, high: float) -> "tuple[int, _Part]":
        """Return how many gaps are below `low`, and the gaps from `low` to `high`.

        The boundaries give way by what rounding may move a gap, so that equal ones stay together.
        """
        low, high = low * (1 - SLACK), high * (1 + SLACK)
        near = np.flatnonzero((self.first <= high) & (self.last >= low))
        first, growth, weight = self.first[near], self.growth[near], self.weight[near]
        old_begin, old_end = self.begin[near], self.end[near]
        with np.errstate(over="ignore"):
            begin = np.clip(np.ceil((low - first) / growth), old_begin, old_end)
            end = np.clip(np.floor((high - first) / growth) + 1, begin, old_end)
        # Not by `@`: on a busy host the threads of a BLAS wait for each other longer than it takes.
        below = self.sizes[self.last < low].sum() + (weight * (begin - old_begin)).sum()
        kept = np.flatnonzero(end > begin)
        columns = {"first": first, "growth": growth, "begin": begin, "end": end, "weight": weight}
        return int(below), _Part(**{name: column[kept] for name, column in columns.items()})

    def tail(self, rank: int) -> "tuple[int, _Part]":
        """Return how many of the smallest gaps are left out, and the others, from a rank on."""
        if self.values <= FEW:
            return 0, self
        below, others = self.within(self.bracket(rank, DEVIATIONS)[0], inf)
        return (below, others) if below <= rank else (0, self)

    @cached_property
    def ordered(self) -> tuple[Floats, Floats]:
        """Return the values in order of size, and how many gaps there are up to each."""
        steps = (self.end - self.begin).astype(np.int64)
        row = np.repeat(np.arange(len(steps)), steps)
        step = np.arange(len(row)) - (np.cumsum(steps) - steps)[row] + self.begin[row]
        values = self.first[row] + self.growth[row] * step
        order = np.argsort(values)
        return values[order], np.cumsum(self.weight[row][order])

    def read(self, positions: list[float]) -> list[float]:
        """Return the gaps at positions in order of size, 0 the smallest, linearly between two."""
        values, upto = self.ordered
        at = np.array(positions)
        rank = np.floor(at)
        lower, upper = values[np.searchsorted(upto, [rank, np.ceil(at)], side="right")]
        return list((lower + (upper - lower) * (at - rank)).tolist())


def _value_at(part: _Part, position: float) -> float:
    """Return the gap at a position in order of size, 0 the smallest, linearly between two."""
    rank, share, deviations = int(position), position % 1, DEVIATIONS
    while part.values > FEW:
        low, high = part.bracket(rank, deviations)
        below, inner = part.within(low, high)
        if not below <= rank < below + inner.count - 1:
            deviations *= 2
            continue
        if low == high:
            return float(low)
        shrunk = inner.values <= part.values / 2
        part, rank, deviations = inner, rank - below, DEVIATIONS
        if not shrunk:
            break  # one value many times, which no bracket divides
    return part.read([rank + share])[0]
