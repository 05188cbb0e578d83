"""Neighbours: stations of one device that slow each other down while they are busy."""

from collections.abc import Callable, Sequence

from moesim.cost.iteration import Cost
from moesim.simulation.crowd import Activity, Busy, Crowd


class Neighbours:
    """Who of a crowd does what; those whom a change concerns are told."""

    def __init__(self, crowd: Crowd) -> None:
        self._crowd = crowd
        self._busy = Busy()
        self._doing: dict[int, Activity] = {}
        self._told: dict[int, Callable[[], None]] = {}

    def join(self, member: int, told: Callable[[], None]) -> None:
        """Have a member told of changes by the others."""
        self._told[member] = told
        self._doing[member] = Activity.IDLE

    def costs(self, member: int) -> Sequence[Cost]:
        """Return what a member's iterations cost now, model by model."""
        return self._crowd.costs(member, self._busy)

    def stretch(self, member: int) -> float:
        """Return how many times as long a member's copy takes now."""
        return self._crowd.stretch(member, self._busy)

    def note(self, member: int, activity: Activity) -> None:
        """Note what a member does; it is told too, and so are those whom it concerns."""
        if activity is self._doing[member]:
            return
        self._doing[member] = activity
        before, self._busy = self._busy, self._busy.but(member, activity)
        for other, tell in self._told.items():
            if other == member or self._concerns(other, before):
                tell()

    def _concerns(self, member: int, before: Busy) -> bool:
        """Whether what a member does costs something else now than before."""
        match self._doing[member]:
            case Activity.RUNNING:
                return self.costs(member) is not self._crowd.costs(member, before)
            case Activity.COPYING:
                return self.stretch(member) != self._crowd.stretch(member, before)
        return False
