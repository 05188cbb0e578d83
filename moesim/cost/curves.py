"""Curves through measured cells: monotone in size, never negative, and honest about their reach.

Both shapes below follow the physics rather than a free fit. A `Curve` is piecewise linear in one
coordinate. A `Fan` has a second coordinate in which the duration is a straight line: the summed
context of decode attention, the context cached before a chunk, the distinct experts hit.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np

from moesim.cost.profile import Cell


@dataclass(frozen=True, slots=True)
class Curve:
    """Duration over one coordinate, through the points `(xs, ys)`.

    Below the first point the first value holds, since a smaller operation still launches; above
    the last, the last segment goes on.

    >>> curve = Curve((1.0, 3.0), (2.0, 6.0))
    >>> curve(2), curve(0), curve(4)
    (4.0, 2.0, 8.0)
    """

    xs: tuple[float, ...]
    ys: tuple[float, ...]

    @classmethod
    def through(cls, cells: Sequence[Cell]) -> "Curve":
        """Draw the curve through one-coordinate cells, made monotone from the left."""
        ordered = sorted(cells, key=lambda cell: cell.at)
        return cls(
            tuple(cell.at[0] for cell in ordered),
            _rising([cell.median_s for cell in ordered]),
        )

    def __call__(self, x: float) -> float:
        """Return the duration at `x` [s]."""
        xs, ys = self.xs, self.ys
        if x <= xs[0] or len(xs) == 1:
            return ys[0]
        right = min(bisect_right(xs, x), len(xs) - 1)
        left = right - 1
        return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])

    def basis(self, low: float, high: float) -> str:
        """Say what an answer between `low` and `high` rests on."""
        if high > self.xs[-1] or low < self.xs[0]:
            return "extrapolated"
        return "measured" if low == high and low in self.xs else "interpolated"


@dataclass(frozen=True, slots=True)
class Fan:
    """Duration over two coordinates: at each first coordinate a straight line over the second.

    Intercepts and slopes are never negative, and the duration rises with the first coordinate, both
    at zero and at `reach`, the second coordinate up to which every line was measured.
    """

    intercepts: Curve
    slopes: Curve
    low: float
    high: float

    @classmethod
    def through(cls, cells: Sequence[Cell]) -> "Fan":
        """Fit a line to the cells of each first coordinate, then make the lines rise in order."""
        ordered = sorted(cells, key=lambda cell: cell.at)
        rows = {
            x: [(cell.at[1], cell.median_s) for cell in row]
            for x, row in groupby(ordered, key=lambda cell: cell.at[0])
        }
        lines = [_line(points) for points in rows.values()]
        spans = [max(y for y, _ in points) for points in rows.values() if len(points) > 1]
        reach = min(spans, default=1.0)
        intercepts = _rising([a for a, _ in lines])
        ends = _rising([a + b * reach for a, b in lines])
        slopes = tuple((e - a) / reach for a, e in zip(intercepts, ends, strict=True))
        seconds = [cell.at[1] for cell in ordered]
        xs = tuple(rows)
        return cls(Curve(xs, intercepts), Curve(xs, slopes), min(seconds), max(seconds))

    def __call__(self, x: float, y: float) -> float:
        """Return the duration at `(x, y)` [s]."""
        return self.intercepts(x) + max(0.0, self.slopes(x)) * y

    def basis(self, x_range: tuple[float, float], y_range: tuple[float, float]) -> str:
        """Say what answers inside these ranges rest on."""
        if y_range[0] < self.low or y_range[1] > self.high:
            return "extrapolated"
        first = self.intercepts.basis(*x_range)
        return "interpolated" if first == "measured" and y_range[0] != y_range[1] else first


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.maximum.accumulate(values))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit `y = a + b x` with a, b >= 0 by relative least squares; a lone point is a constant."""
    x, y = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if len(np.unique(x)) == 1:
        return float(np.median(y)), 0.0
    weight = 1.0 / np.maximum(y, 1e-12)
    system = np.stack([weight, weight * x], axis=1)
    a, b = np.linalg.lstsq(system, weight * y, rcond=None)[0]
    if b < 0:
        return float(np.average(y, weights=weight)), 0.0
    if a < 0:
        return 0.0, float(np.average(y / x, weights=x * weight))
    return float(a), float(b)
