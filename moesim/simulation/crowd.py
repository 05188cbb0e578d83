"""A crowd: stations of one device that slow each other down by what they do at a time."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import NamedTuple

from moesim.cost.iteration import Cost


class Activity(Enum):
    """What a station does, as far as it concerns its neighbours."""

    IDLE = auto()
    """Nothing that they notice: it waits, or changes models without the link."""
    RUNNING = auto()
    """It runs iterations."""
    COPYING = auto()
    """It copies a model, or a part of one, over the link to the host."""


class Busy(NamedTuple):
    """Who of a crowd does what; who is in neither set is idle."""

    running: frozenset[int] = frozenset()
    copying: frozenset[int] = frozenset()

    def but(self, member: int, activity: Activity) -> "Busy":
        """Return the same but for one member.

        >>> Busy(frozenset({0})).but(0, Activity.COPYING)
        Busy(running=frozenset(), copying=frozenset({0}))
        """
        running, copying = self.running - {member}, self.copying - {member}
        if activity is Activity.RUNNING:
            running |= {member}
        if activity is Activity.COPYING:
            copying |= {member}
        return Busy(running, copying)


Pricing = Callable[[int, Busy], Sequence[Cost]]
"""From a member that runs, and who else does what, to what its models' iterations cost."""

Stretching = Callable[[int, Busy], float]
"""From a member that copies, and who else does what, to by how much its copy is stretched."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crowd:
    """Stations of one device that slow each other down while they are busy."""

    pricing: Pricing
    stretching: Stretching
    _known: dict[tuple[int, Busy], Sequence[Cost]] = field(default_factory=dict)
    _stretched: dict[tuple[int, Busy], float] = field(default_factory=dict)

    def costs(self, member: int, busy: Busy) -> Sequence[Cost]:
        """Return what a member's iterations cost while others are busy, model by model."""
        key = member, busy.but(member, Activity.RUNNING)
        if key not in self._known:
            self._known[key] = self.pricing(*key)
        return self._known[key]

    def stretch(self, member: int, busy: Busy) -> float:
        """Return how many times as long a member's copy takes while others are busy."""
        key = member, busy.but(member, Activity.COPYING)
        if key not in self._stretched:
            self._stretched[key] = self.stretching(*key)
        return self._stretched[key]
