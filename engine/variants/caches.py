"""Which expert copies lie in the slots of the device, and who makes room for an absent one.

Plain bookkeeping on numbers of copies and slots; the weights move elsewhere. Every cache begins
full, with the copies of the lowest numbers, which are those to keep.

| policy | keeps | an absent copy |
|---|---|---|
| pinned | the first copies for good | passes through the staging slots, in turn |
| lru | the most recently used copies of all layers | evicts the least recently used |
| lru-by-layer | the most recently used of each layer, as many in each | evicts in its layer |
"""

from collections import OrderedDict
from collections.abc import Iterable
from collections.abc import Sequence as Row
from typing import Protocol

from moesim.errors import EngineError

STAGING = 2
"""Slots through which the absent copies of `pinned` pass: one computes while the next is filled."""


class Cache(Protocol):
    """What the store asks of a policy."""

    @property
    def slots(self) -> int:
        """Slots of the device, staging included."""

    @property
    def kept(self) -> int:
        """The first so many copies never leave; each has the slot of its own number."""

    @property
    def spare(self) -> int:
        """How many copies of a layer may be brought ahead of their use."""

    def held(self) -> Iterable[tuple[int, int]]:
        """Yield each copy that is there, and its slot."""

    def find(self, copy: int) -> int | None:
        """Return the slot of a copy, which counts as used now; None where it is absent."""

    def place(self, copy: int) -> tuple[int, int | None]:
        """Return the slot that an absent copy takes, and the copy that it takes it from."""


class Lru:
    """The most recently used copies, in `slots`.

    >>> cache = Lru([7, 8], slots=[0, 1])
    >>> cache.find(8), cache.place(9), cache.find(7)
    (1, (0, 7), None)
    """

    def __init__(self, copies: Row[int], slots: Row[int]) -> None:
        self._slots = slots
        self._free = list(reversed(slots[len(copies) :]))
        first = list(zip(copies, slots, strict=False))
        # The copies to keep come first, so they are the last to go.
        self._slot_of: OrderedDict[int, int] = OrderedDict(reversed(first))

    @property
    def slots(self) -> int:
        """Slots of the device."""
        return len(self._slots)

    @property
    def kept(self) -> int:
        """None never leaves."""
        return 0

    @property
    def spare(self) -> int:
        """Half of the slots: the layer under way needs the others."""
        return len(self._slots) // 2

    def held(self) -> Iterable[tuple[int, int]]:
        """Yield each copy that is there, and its slot."""
        return self._slot_of.items()

    def find(self, copy: int) -> int | None:
        """Return the slot of a copy, which counts as used now; None where it is absent."""
        if copy in self._slot_of:
            self._slot_of.move_to_end(copy)
        return self._slot_of.get(copy)

    def place(self, copy: int) -> tuple[int, int | None]:
        """Return the slot that an absent copy takes, and the copy that it takes it from."""
        gone, slot = None, self._free.pop() if self._free else None
        if slot is None:
            gone, slot = self._slot_of.popitem(last=False)
        self._slot_of[copy] = slot
        return slot, gone


class Pinned:
    """The first copies in a slot each for good, the others through staging slots in turn."""

    def __init__(self, kept: int, staging: int = STAGING) -> None:
        self._kept = kept
        self._staged = Lru([], range(kept, kept + staging))

    @property
    def slots(self) -> int:
        """Slots of the device, staging included."""
        return self._kept + self._staged.slots

    @property
    def kept(self) -> int:
        """The first copies never leave."""
        return self._kept

    @property
    def spare(self) -> int:
        """The staging slots but one."""
        return self._staged.slots - 1

    def held(self) -> Iterable[tuple[int, int]]:
        """Yield each copy that is there, and its slot."""
        yield from ((copy, copy) for copy in range(self._kept))
        yield from self._staged.held()

    def find(self, copy: int) -> int | None:
        """Return the slot of a copy; None where it is absent."""
        return copy if copy < self._kept else self._staged.find(copy)

    def place(self, copy: int) -> tuple[int, int | None]:
        """Return the staging slot that an absent copy takes, and the copy that was in it."""
        return self._staged.place(copy)


class LruByLayer:
    """The most recently used copies of each layer; `layers` are those of all copies, by number."""

    def __init__(self, layers: Row[int], slots: int) -> None:
        names = sorted(set(layers))
        if slots < len(names):
            raise EngineError(
                f"resident: {slots} expert copies are less than one for each of {len(names)} "
                "layers, which lru-by-layer needs; keep more or take lru"
            )
        each, more = divmod(slots, len(names))
        self._layers = layers
        self._slots = slots
        self._parts: dict[int, Lru] = {}
        end = 0
        for place, name in enumerate(names):
            start, end = end, end + each + (place < more)
            own = [copy for copy, layer in enumerate(layers) if layer == name]
            self._parts[name] = Lru(own[: end - start], range(start, end))

    @property
    def slots(self) -> int:
        """Slots of the device."""
        return self._slots

    @property
    def kept(self) -> int:
        """None never leaves."""
        return 0

    @property
    def spare(self) -> int:
        """All slots of a layer: what comes ahead is for another than the one under way."""
        return min(part.slots for part in self._parts.values())

    def held(self) -> Iterable[tuple[int, int]]:
        """Yield each copy that is there, and its slot."""
        for part in self._parts.values():
            yield from part.held()

    def find(self, copy: int) -> int | None:
        """Return the slot of a copy, which counts as used now; None where it is absent."""
        return self._parts[self._layers[copy]].find(copy)

    def place(self, copy: int) -> tuple[int, int | None]:
        """Return the slot that an absent copy takes, and the copy that it takes it from."""
        return self._parts[self._layers[copy]].place(copy)


POLICIES = ("pinned", "lru", "lru-by-layer")
"""Policies by the names that scenarios use."""


def cache_of(policy: str, layers: Row[int], resident: int, staging: int = STAGING) -> Cache:
    """Return a cache that keeps `resident` of the copies, whose layers are given.

    Raises EngineError for an unknown policy, or fewer copies than it can do with.
    """
    if policy not in POLICIES:
        raise EngineError(f"cache: {policy!r} is none of {', '.join(POLICIES)}")
    if policy == "pinned":
        return Pinned(resident, staging)
    if policy == "lru-by-layer":
        return LruByLayer(layers, resident)
    if resident < 1:
        raise EngineError("resident: lru needs one expert copy on the device at least; keep more")
    return Lru(range(resident), range(resident))
