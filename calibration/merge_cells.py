"""Pooling: one median and spread of several, where the samples behind them are no longer there.

A pooled median is the mean of the medians, weighted by repeats. The pooled spread is that of a
mixture of normal distributions: its variance is the weighted mean of `s^2 + (m - mean)^2`, with s
an interquartile range over 1.349. Repetitions that disagree with each other so widen the spread.
"""

from collections.abc import Callable, Hashable, Iterable, Sequence
from math import sqrt
from typing import TypeVar

import numpy as np

from moesim.cost.profile import Cell, ExpertLoad, Profile, Router, Swap
from moesim.cost.residuals import IQR_OF_NORMAL

Timed = TypeVar("Timed", Cell, ExpertLoad, Swap)
"""What has a median, a spread and repeats."""


def pooled_by(key: Callable[[Timed], Hashable], lists: Iterable[Sequence[Timed]]) -> list[Timed]:
    """Pool what has the same key; the order is that in which keys are met."""
    by_key: dict[Hashable, list[Timed]] = {}
    for timed in lists:
        for each in timed:
            by_key.setdefault(key(each), []).append(each)
    return [pooled(alike) for alike in by_key.values()]


def pooled(alike: Sequence[Timed]) -> Timed:
    """Return one measurement of several of the same thing."""
    if len(alike) == 1:
        return alike[0]
    repeats = np.array([each.repeats for each in alike], dtype=float)
    weights = repeats / repeats.sum()
    medians_s = np.array([each.median_s for each in alike])
    deviations_s = medians_s * [each.spread for each in alike] / IQR_OF_NORMAL
    median_s = float(weights @ medians_s)
    deviation_s = sqrt(float(weights @ (deviations_s**2 + (medians_s - median_s) ** 2)))
    spread = IQR_OF_NORMAL * deviation_s / median_s if median_s else 0.0
    return alike[0].model_copy(
        update={"median_s": median_s, "spread": round(spread, 4), "repeats": int(repeats.sum())}
    )


def pooled_router(routers: Sequence[Router]) -> Router:
    """Return the mean popularity by tokens observed, and the mean of the distinct experts."""
    tokens = np.array([router.tokens for router in routers], dtype=float)
    shares = np.average([router.popularity for router in routers], axis=0, weights=tokens)
    distinct: dict[int, list[float]] = {}
    for router in routers:
        for count, experts in router.distinct:
            distinct.setdefault(count, []).append(experts)
    return Router(
        popularity=np.clip(shares, 0, 1).tolist(),
        tokens=int(tokens.sum()),
        distinct=[(count, float(np.mean(distinct[count]))) for count in sorted(distinct)],
    )


def between(profiles: Sequence[Profile]) -> float:
    """Return how far profiles are apart in speed: slowest over fastest, minus 1.

    A profile's speed is the median ratio of its cells to the first profile's of the same place.
    """
    first, *others = (_medians_s(profile) for profile in profiles)
    levels = [1.0]
    for other in others:
        shared = [place for place in first if place in other and first[place] and other[place]]
        if shared:
            levels.append(float(np.median([other[place] / first[place] for place in shared])))
    return max(levels) / min(levels) - 1


def _medians_s(profile: Profile) -> dict[tuple[str, tuple[float, ...]], float]:
    return {
        (name, cell.at): cell.median_s
        for name, cells in profile.operations.items()
        for cell in cells
    }
