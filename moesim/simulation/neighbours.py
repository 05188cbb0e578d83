"""Neighbours: stations of one device that slow each other down while they are busy."""

from collections.abc import Callable, Sequence

from moesim.cost.iteration import Cost
from moesim.simulation.station import Crowd


class Neighbours:
    """Who of a crowd is busy; those who are get told when that changes."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._busy: set[int] = set()
        self._told: dict[int, Callable[[], None]] = {}

    def join(self, member: int, told: Callable[[], None]) -> None:
        """Have a member told of changes by the others."""
        self._told[member] = told

    def costs(self, member: int) -> Sequence[Cost]:
        """Return what a member's iterations cost now, model by model."""
        return self._crowd.costs(member, frozenset(self._busy))

    def note(self, member: int, *, busy: bool) -> None:
        """Note whether a member is busy."""
        if busy == (member in self._busy):
            return
        (self._busy.add if busy else self._busy.remove)(member)
        for other, tell in self._told.items():
            if other in self._busy or other == member:
                tell()
