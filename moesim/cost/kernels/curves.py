"""Curves through a family's points: between sizes straight in the logarithms, shaped by a roofline.

What is drawn is the ratio of the measured duration to the roofline of the same shape and size. The
knee between bound by memory and bound by compute is the roofline's own; the ratio, one over the
share of the rates that is reached, changes slowly, and between two shapes more slowly still. Beyond
the last point the last ratio holds.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from moesim.cost.curves import WEAKEST

Floats = NDArray[np.float64]

MICRO = 1e-6


@dataclass(frozen=True, slots=True)
class LogCurve:
    """A curve that is straight between its points in both logarithms, and level beyond them.

    >>> curve = LogCurve.through([1, 4], [1.0, 2.0])
    >>> curve(np.array([0.5, 2.0, 8.0])).round(3).tolist()
    [1.0, 1.414, 2.0]
    """

    log_xs: Floats
    log_ys: Floats

    @classmethod
    def through(cls, xs: Sequence[float] | Floats, ys: Sequence[float] | Floats) -> "LogCurve":
        """Draw the curve through points with sizes above zero, in any order."""
        order = np.argsort(np.asarray(xs, dtype=float))
        sizes = np.asarray(xs, dtype=float)[order]
        return cls(np.log(sizes), np.log(np.asarray(ys, dtype=float)[order]))

    def __call__(self, x: Floats) -> Floats:
        """Return the values at `x`."""
        return np.exp(np.interp(np.log(x), self.log_xs, self.log_ys))

    def basis(self, x: Floats) -> str:
        """Say what values at `x` rest on."""
        return basis_within(np.exp(self.log_xs), x)


def basis_within(points: Floats, asked: Floats) -> str:
    """Say what answers at `asked` rest on, of measured `points` in order."""
    if np.max(asked) > points[-1] * (1 + 1e-9) or np.min(asked) < points[0] * (1 - 1e-9):
        return "extrapolated"
    return "measured" if np.all(np.isclose(points[:, None], asked).any(axis=0)) else "interpolated"


def weakest(*bases: str) -> str:
    """Return the weakest of several bases."""
    return max(bases, key=WEAKEST.index)


def bracket(known: Sequence[float], asked: float) -> tuple[float, float]:
    """Return the known values on both sides of the asked one; itself or the nearest, twice.

    >>> bracket([1, 2, 4], 3), bracket([1, 2, 4], 2), bracket([1, 2, 4], 9)
    ((2, 4), (2, 2), (4, 4))
    """
    left, right = bisect_right(known, asked) - 1, bisect_left(known, asked)
    return known[max(0, left)], known[min(right, len(known) - 1)]


def between(asked: float, low: float, high: float, ratios: Mapping[float, Floats]) -> Floats:
    """Return the ratio at `asked` from those at the two ends, straight in the logarithms."""
    if low == high:
        return ratios[low]
    share = np.log(asked / low) / np.log(high / low)
    return np.asarray(ratios[low] ** (1 - share) * ratios[high] ** share)
