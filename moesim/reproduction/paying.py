"""Where a scheme stops paying: crossings of its ratios to alternatives, in sentences."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from moesim.reproduction.trials import Runs

EVEN = 1.0
"""The ratio at which the two take the same time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ratios:
    """A scheme's turnaround beside that of the alternative `name` in each trial, by place."""

    name: str
    x_title: str
    places: tuple[float, ...]
    runs: tuple[Runs, ...]

    @property
    def medians(self) -> tuple[float, ...]:
        """The median over the trials at each place."""
        return tuple(float(np.median(runs)) for runs in self.runs)

    @property
    def always_pays(self) -> bool:
        """Whether the median is below 1 at every place."""
        return max(self.medians) < EVEN


def where_it_stops(found: Mapping[str, Sequence[Ratios]]) -> tuple[str, ...]:
    """Say where the scheme stops paying, and beside what it never does; sweeps are by title."""
    stops = [
        f"{title}, {where(each)} (beside {each.name})"
        for title, sweep in found.items()
        for each in sweep
        if not each.always_pays
    ]
    beaten = list(dict.fromkeys(each.name for sweep in found.values() for each in sweep))
    for sweep in found.values():
        beaten = [name for name in beaten if all(r.always_pays for r in sweep if r.name == name)]
    said = [f"It stops paying: {'; '.join(stops)}."] if stops else []
    if beaten:
        said.append(f"Wherever it was tried it pays beside: {', '.join(beaten)}.")
    return tuple(said)


def where(each: Ratios) -> str:
    """Say where the scheme does not pay, by straight lines between the places.

    >>> even = Ratios(name="", x_title="Swaps [GB/s]", places=(1, 3), runs=([1.5], [0.5]))
    >>> where(even)
    'below 2.0 GB/s'
    """
    ends = [f"{'above' if rising else 'below'} {place:#.2g}" for place, rising in crossings(each)]
    return f"{' and '.join(ends)}{_unit(each.x_title)}" if ends else "at every point"


def crossings(each: Ratios) -> Iterator[tuple[float, bool]]:
    """Yield where the median crosses 1, and whether it does not pay above that place."""
    points = zip(each.places, each.medians, strict=True)
    for (place, ratio), (next_place, next_ratio) in pairwise(points):
        if (ratio < EVEN) != (next_ratio < EVEN):
            share = (EVEN - ratio) / (next_ratio - ratio)
            yield place + share * (next_place - place), next_ratio >= EVEN


def _unit(x_title: str) -> str:
    """Return the unit of an axis; nothing where it has none."""
    unit = x_title.partition(" [")[2].rstrip("]")
    return f" {unit}" if unit else ""
