"""Sizes between a table's own, of another framework's table of the same products.

Products in 16 bits are the vendor's library's in every framework. Where two tables differ by nearly
one factor throughout, the denser says how durations go between the sizes of the other: in steps,
as waves of tiles fill the device.
"""

from collections.abc import Sequence

import numpy as np

Curve = tuple[Sequence[int], Sequence[float]]
"""Sizes, rising, and the durations at them."""

COMMON = 8
"""Sizes in both tables that it takes to tell that they differ by one factor."""

ALIKE = 0.1
"""By how much the ratio may differ from its median at nine in ten sizes, of the logarithm."""


def filled(own: Curve, other: Curve) -> Curve:
    """Return a curve with the other's sizes between its own, at the ratio that holds there.

    The curve itself is returned where the two are not alike.

    >>> filled(((1, 2, 4), (1.0, 2.0, 4.0)), ((1, 2), (1.0, 2.0)))
    ((1, 2, 4), (1.0, 2.0, 4.0))
    """
    ours, theirs = dict(zip(*own, strict=True)), dict(zip(*other, strict=True))
    both = sorted(ours.keys() & theirs.keys())
    if len(both) < COMMON:
        return own
    ratios = np.log([ours[size] / theirs[size] for size in both])
    if np.quantile(np.abs(ratios - np.median(ratios)), 0.9) > ALIKE:
        return own
    between = [size for size in theirs if min(both) < size < max(both) and size not in ours]
    factors = np.exp(np.interp(np.log(between), np.log(both), ratios))
    added = {size: theirs[size] * factor for size, factor in zip(between, factors, strict=True)}
    sizes = sorted(ours.keys() | added.keys())
    return tuple(sizes), tuple(float(ours.get(size, added.get(size, 0.0))) for size in sizes)
