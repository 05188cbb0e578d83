"""Where requests come from: recorded arrivals, or whoever waits for answers before asking again."""

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from math import inf
from typing import Protocol

from moesim.serving.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Arrival:
    """A request as it reaches the engine.

    `record` says when, by whom and how long an answer is wanted. `names` name the prompt's full
    blocks by their content; without them the engine hashes the tokens where it needs names.
    """

    record: Record
    prompt: Row[int]
    names: Row[int] | None = None


class Traffic(Protocol):
    """Who sends requests."""

    def next_s(self) -> float:
        """Return when the next request arrives, infinity if none is known of."""

    def take(self) -> Arrival:
        """Return the request that arrives next; ids are given in this order."""

    def done(self, record: Record) -> None:
        """Take note of a request that was answered or refused."""


class Replay:
    """Arrivals in order of time, whatever becomes of them."""

    def __init__(self, arrivals: Iterable[Arrival]) -> None:
        self._arriving = deque(arrivals)

    def next_s(self) -> float:
        """Return when the next request arrives."""
        return self._arriving[0].record.arrival_s if self._arriving else inf

    def take(self) -> Arrival:
        """Return the next request."""
        return self._arriving.popleft()

    def done(self, record: Record) -> None:
        """Do nothing: nobody waits."""
