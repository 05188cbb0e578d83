"""Where a curve bends: sizes to measure besides those of the grid.

Between two measured sizes the cost model draws a straight line. What it misses there is told by the
size between two others: had it been left out, the line through its neighbours would be off by its
bend. Where that stands out of what the medians themselves may be off by, both gaps beside it get a
size in their middle.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from calibration.grid import Grid, Point
from calibration.partial import Samples
from calibration.timing import median_and_spread

BY_SIZE = ("projections", "experts")
"""What goes with an iteration's tokens alone, or nearly; attention has its own coordinates."""


ERROR_OF_MEDIAN = 1.2533 / 1.349
"""A median's standard error times the root of the number of samples, over their quartiles' range.

Of normal samples the one is 1.2533 and the other 1.349 standard deviations."""

STANDS_OUT = 3.0
"""Standard errors beyond which a bend is none of noise: that goes so far once in 370 times."""


@dataclass(frozen=True, slots=True)
class Row:
    """One size of a kind of batch, how long it takes [s], and what share that may be off by."""

    size: int
    seconds: float
    error: float


def rows_of(points: Sequence[Point], samples: Samples) -> dict[bool, list[Row]]:
    """Return the rows of chunks (True) and of decodes (False), the smallest first."""

    def kind(point: Point) -> tuple[bool, int]:
        return point.chunked, point.tokens

    found: dict[bool, list[Row]] = {True: [], False: []}
    timed = sorted((point for point in points if not point.replayed), key=kind)
    for (chunked, size), row in groupby(timed, key=kind):
        seen = [_median_and_error(_by_size(point, samples[point.key])) for point in row]
        found[chunked].append(
            Row(size, sum(seconds for seconds, _ in seen), max(error for _, error in seen))
        )
    return found


def _median_and_error(samples: list[float]) -> tuple[float, float]:
    """Return a median [s], and the share of it that is its standard error."""
    median, spread = median_and_spread(samples)
    return median, ERROR_OF_MEDIAN * spread / len(samples) ** 0.5


def _by_size(point: Point, laps: Mapping[str, list[float]]) -> list[float]:
    """Return what went with a batch's size, in every round [s]; a prompt attends to itself too."""
    names = [name for name in BY_SIZE if name in laps]
    if point.chunked and point.parts[0].context == 0:
        names.append("attention_prefill")
    return [float(total) for total in np.sum([laps[name] for name in names], axis=0)]


def gaps(rows: Sequence[Row]) -> list[tuple[float, int]]:
    """Return by how much the line may be off in a gap, and its middle; the largest first.

    A size that takes 3 between sizes that take 1 and 2, where the line through them says 1.5, is
    off by half of what it takes:

    >>> gaps([Row(1, 1.0, 0.1), Row(5, 3.0, 0.1), Row(9, 2.0, 0.1)])
    [(0.5, 3), (0.5, 7)]
    """
    worst: dict[int, float] = {}
    for left, middle, right in zip(rows, rows[1:], rows[2:], strict=False):
        line = np.interp(middle.size, (left.size, right.size), (left.seconds, right.seconds))
        off = abs(float(line) / middle.seconds - 1)
        if off > STANDS_OUT * max(row.error for row in (left, middle, right)):
            for first, last in ((left, middle), (middle, right)):
                if last.size - first.size > 1:
                    between = (first.size + last.size) // 2
                    worst[between] = max(off, worst.get(between, 0.0))
    return sorted(((off, size) for size, off in worst.items()), key=lambda gap: (-gap[0], gap[1]))


def refinement(grid: Grid, points: Sequence[Point], samples: Samples, most: int) -> list[Point]:
    """Return up to `most` points for the gaps in which the line is off the furthest."""
    found = [
        (off, chunked, size)
        for chunked, rows in rows_of(points, samples).items()
        for off, size in gaps(rows)
    ]
    more: list[Point] = []
    for _, chunked, size in sorted(found, reverse=True):
        row = grid.chunk(size) if chunked else grid.decodes(size)
        if len(more) + len(row) <= most:
            more += row
    return more
