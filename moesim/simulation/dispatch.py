"""Dispatchers: which of a model's replicas a request goes to when it arrives.

| dispatcher | sends a request to |
|---|---|
| `round_robin` | the next in turn |
| `least_loaded` | the replica with the fewest requests in its care |
| `power_of_two` | the less loaded of two drawn at random (Mitzenmacher 2001) |
| `prefix_affinity` | the one that saw its prompt's beginning last, unless that is busier by far |
"""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Protocol

import numpy as np

from moesim.requests import Request

TOO_BUSY = 8
"""Requests above the least loaded replica's from which a prompt's own replica is too busy."""

REMEMBERED = 4
"""Blocks at a prompt's beginning by which `prefix_affinity` knows it again."""


class Dispatcher(Protocol):
    """Chooses a replica for each request, in order of arrival."""

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """Return the replica's index; `loads` are the requests in each replica's care."""


class RoundRobin:
    """The next in turn, whatever its load."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._turn = -1

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """Return the replica whose turn it is."""
        self._turn = (self._turn + 1) % len(loads)
        return self._turn


class LeastLoaded:
    """The fewest requests in care; the first of several."""

    def __init__(self, rng: np.random.Generator) -> None:
        pass

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """Return the least loaded replica."""
        return min(range(len(loads)), key=loads.__getitem__)


class PowerOfTwo:
    """The less loaded of two different replicas drawn at random."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """Return the less loaded of two replicas, the one drawn first if they are equal."""
        if len(loads) == 1:
            return 0
        first = int(self._rng.integers(len(loads)))
        other = (first + 1 + int(self._rng.integers(len(loads) - 1))) % len(loads)
        return other if loads[other] < loads[first] else first


class PrefixAffinity:
    """Prompts that begin alike go where their blocks are kept, while that replica is not too busy.

    A prompt without a known beginning goes to the least loaded replica, and so does one whose
    replica has `TOO_BUSY` requests more than that; its beginning is then kept there too.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        self._homes: dict[tuple[int, ...], int] = {}

    def choose(self, request: Request, loads: Sequence[int]) -> int:
        """Return the replica that knows the prompt's beginning, or the least loaded."""
        least = min(range(len(loads)), key=loads.__getitem__)
        beginning = request.prefix[:REMEMBERED]
        if not beginning:
            return least
        home = self._homes.get(beginning, least)
        if loads[home] - loads[least] >= TOO_BUSY:
            home = least
        self._homes[beginning] = home
        return home


DISPATCHERS: Mapping[str, Callable[[np.random.Generator], Dispatcher]] = MappingProxyType(
    {
        "round_robin": RoundRobin,
        "least_loaded": LeastLoaded,
        "power_of_two": PowerOfTwo,
        "prefix_affinity": PrefixAffinity,
    }
)
"""Dispatchers by the names that scenarios use."""
