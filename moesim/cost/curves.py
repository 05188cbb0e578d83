"""Curves through measured cells: monotone in size, never negative, and honest about their reach.

A `Curve` is piecewise linear in one coordinate, a `Sheet` in two. A `Fan` is a straight line in its
second coordinate: decode attention over the summed context, whose duration over many iterations
then has a closed form.
"""

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

from moesim.cost.profile import Cell

WEAKEST = ("measured", "interpolated", "fitted", "scaled", "extrapolated", "roofline")
"""What an answer can rest on, best first."""


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
        return curve_of(sorted((cell.at[0], cell.median_s) for cell in cells))

    def __call__(self, x: float) -> float:
        """Return the duration at `x` [s]."""
        xs, ys = self.xs, self.ys
        if x <= xs[0] or len(xs) == 1:
            return ys[0]
        right = min(bisect_right(xs, x), len(xs) - 1)
        left = right - 1
        return ys[left] + (ys[right] - ys[left]) * (x - xs[left]) / (xs[right] - xs[left])

    def table(self, most: int) -> NDArray[np.float64]:
        """Return the durations at 0, 1, ... `most` [s]."""
        asked = np.arange(most + 1)
        inside = np.interp(asked, self.xs, self.ys)
        if len(self.xs) == 1 or most <= self.xs[-1]:
            return inside
        slope = (self.ys[-1] - self.ys[-2]) / (self.xs[-1] - self.xs[-2])
        return np.asarray(inside + slope * np.maximum(0.0, asked - self.xs[-1]))

    def basis(self, reached: float) -> str:
        """Say what answers up to `reached` rest on; below the first point it still holds."""
        if reached > self.xs[-1]:
            return "extrapolated"
        return "measured" if reached <= self.xs[0] else "interpolated"


@dataclass(frozen=True, slots=True)
class Fan:
    """Duration over x, a number of sequences, and y, what is summed over them: lines over y.

    Intercepts and slopes are never negative. What rises with x is the duration at equal share
    `y / x` of each sequence: one of 32,768 tokens cannot fill a GPU as 64 of 512 do, so that at
    equal sums more sequences may take less. `high` is how far the longest line was measured.
    """

    intercepts: Curve
    slopes: Curve
    high: float

    @classmethod
    def through(cls, cells: Sequence[Cell]) -> "Fan":
        """Fit a line to the cells of each x, then make intercepts and `x slope` rise in order."""
        rows = rows_of(cells)
        lines = [_line(points) for points in rows.values()]
        xs = tuple(rows)
        counts = [max(1.0, x) for x in xs]
        shares = _rising([b * count for (_, b), count in zip(lines, counts, strict=True)])
        slopes = tuple(share / count for share, count in zip(shares, counts, strict=True))
        high = max(cell.at[1] for cell in cells)
        return cls(Curve(xs, _rising([a for a, _ in lines])), Curve(xs, slopes), high)

    def __call__(self, x: float, y: float) -> float:
        """Return the duration at `(x, y)` [s]."""
        intercept, slope = self.line(x)
        return intercept + slope * y

    def line(self, x: float) -> tuple[float, float]:
        """Return intercept [s] and slope [s per unit] of the line at `x`."""
        (slope,) = self._held(np.array([self.slopes(x)]), np.array([x])).tolist()
        return self.intercepts(x), slope

    def table(self, most: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the lines' intercepts and slopes at 0, 1, ... `most`."""
        slopes = self._held(self.slopes.table(most), np.arange(most + 1.0))
        return self.intercepts.table(most), slopes

    def _held(self, slopes: NDArray[np.float64], xs: NDArray[np.float64]) -> NDArray[np.float64]:
        """Hold slopes at `xs` to where `x slope` rises: up to the next line's, from the last's."""
        known = np.array(self.slopes.xs)
        shares = np.maximum(1.0, known) * self.slopes.ys
        counts = np.maximum(1.0, xs)
        next_one = np.minimum(np.searchsorted(known, xs, side="right"), len(known) - 1)
        below = np.minimum(slopes, shares[next_one] / counts)
        return np.asarray(np.where(xs < known[-1], below, np.maximum(slopes, shares[-1] / counts)))

    def basis(self, x: float, y: float) -> str:
        """Say what answers up to `(x, y)` rest on."""
        return "extrapolated" if y > self.high else self.intercepts.basis(x)


@dataclass(frozen=True, slots=True)
class Sheet:
    """Duration over two coordinates, bilinear between rows `xs` and columns `ys`.

    `rows[i]` is the curve over the second coordinate at `xs[i]`. Rising in both coordinates.
    """

    xs: tuple[float, ...]
    rows: tuple[Curve, ...]

    @classmethod
    def through(cls, cells: Sequence[Cell]) -> "Sheet":
        """Draw the sheet through two-coordinate cells; rows reach as far as the longest."""
        by_row = rows_of(cells)
        ys = tuple(sorted({cell.at[1] for cell in cells}))
        curves = [curve_of(points) for points in by_row.values()]
        values = np.maximum.accumulate([[curve(y) for y in ys] for curve in curves], axis=0)
        rows = tuple(Curve(ys, tuple(map(float, row))) for row in values)
        return cls(tuple(by_row), rows)

    def __call__(self, x: float, y: float) -> float:
        """Return the duration at `(x, y)` [s]."""
        xs = self.xs
        if x <= xs[0] or len(xs) == 1:
            return self.rows[0](y)
        right = min(bisect_right(xs, x), len(xs) - 1)
        before = self.rows[right - 1](y)
        after = max(before, self.rows[right](y))  # also where short rows are drawn out
        return before + (after - before) * (x - xs[right - 1]) / (xs[right] - xs[right - 1])

    def basis(self, x: float, y: float) -> str:
        """Say what answers up to `(x, y)` rest on."""
        return max(Curve(self.xs, self.xs).basis(x), self.rows[0].basis(y), key=WEAKEST.index)


def rows_of(cells: Sequence[Cell]) -> dict[float, list[tuple[float, float]]]:
    """Group two-coordinate cells: first coordinate to its (second coordinate, duration) points."""
    ordered = sorted(cells, key=lambda cell: cell.at)
    return {
        x: [(cell.at[1], cell.median_s) for cell in row]
        for x, row in groupby(ordered, key=lambda cell: cell.at[0])
    }


def curve_of(points: Sequence[tuple[float, float]]) -> Curve:
    """Draw a rising curve through points in order of their first coordinate."""
    return Curve(tuple(x for x, _ in points), _rising([y for _, y in points]))


def _rising(values: Sequence[float]) -> tuple[float, ...]:
    return tuple(float(value) for value in np.maximum.accumulate(values))


def _line(points: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Fit `y = a + b x` with a, b >= 0 by relative least squares; a lone point is a constant."""
    x, y = (np.array(column, dtype=float) for column in zip(*points, strict=True))
    if (x == x[0]).all():
        return float(np.median(y)), 0.0
    weight = 1.0 / np.maximum(y, 1e-12)
    # About the weighted means, where intercept and slope have nothing to do with each other.
    square = weight * weight / (weight * weight).sum()
    mean_x, mean_y = (square * x).sum(), (square * y).sum()
    away = square * (x - mean_x)
    b = (away * (y - mean_y)).sum() / (away * (x - mean_x)).sum()
    a = mean_y - b * mean_x
    if b < 0:
        return float(np.average(y, weights=weight)), 0.0
    if a < 0:
        some = x > 0
        return 0.0, float(np.average(y[some] / x[some], weights=(x * weight)[some]))
    return float(a), float(b)
