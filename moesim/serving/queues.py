"""Who is next: the order in which waiting sequences enter.

`fcfs` is order of arrival. `priority` takes the lowest number first, as vLLM does, and order of
arrival among equals. `fair` gives each tenant service in proportion to its weight: the virtual
token counters of Sheng et al., "Fairness in Serving Large Language Models" (OSDI 2024), with their
weights of 1 for a prompt token and 2 for an output token.
"""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from heapq import heappop, heappush
from typing import Protocol

from moesim.serving.sequences import Sequence

PROMPT_CHARGE, OUTPUT_CHARGE = 1, 2
"""What a token costs a tenant's counter (Sheng et al., section 4)."""


class Queue(Protocol):
    """Waiting sequences in the order in which they will be admitted."""

    overtakes: bool
    """Whether somebody who arrives may enter before those who wait."""
    reorders: bool
    """Whether the head may change while nobody arrives or leaves."""

    def __len__(self) -> int:
        """Return how many wait."""

    def __iter__(self) -> Iterator[Sequence]:
        """Yield those who wait, in no promised order."""

    def append(self, sequence: Sequence) -> None:
        """Take in a sequence that has arrived."""

    def restore(self, sequence: Sequence) -> None:
        """Take back a sequence that was preempted."""

    def head(self) -> Sequence:
        """Return who is next."""

    def pop(self) -> Sequence:
        """Remove and return who is next."""

    def remove(self, sequence: Sequence) -> None:
        """Drop a waiting sequence."""

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """Take note of tokens that a sequence was given."""


@dataclass(slots=True)
class FirstCome:
    """Order of arrival; whoever was preempted goes to the front."""

    overtakes = False
    reorders = False
    _waiting: deque[Sequence] = field(default_factory=deque)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return iter(self._waiting)

    def append(self, sequence: Sequence) -> None:
        """Queue at the back."""
        self._waiting.append(sequence)

    def restore(self, sequence: Sequence) -> None:
        """Queue at the front."""
        self._waiting.appendleft(sequence)

    def head(self) -> Sequence:
        """Return the oldest."""
        return self._waiting[0]

    def pop(self) -> Sequence:
        """Remove and return the oldest."""
        return self._waiting.popleft()

    def remove(self, sequence: Sequence) -> None:
        """Drop a waiting sequence."""
        self._waiting.remove(sequence)

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """Do nothing: service does not change the order."""


@dataclass(slots=True)
class ByPriority:
    """Lowest priority number first, order of arrival among equals."""

    overtakes = True
    reorders = False
    _waiting: list[tuple[int, int, Sequence]] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for *_, sequence in self._waiting)

    def append(self, sequence: Sequence) -> None:
        """Queue behind all of the same priority."""
        heappush(self._waiting, (sequence.priority, sequence.number, sequence))

    restore = append

    def head(self) -> Sequence:
        """Return the oldest of the most urgent."""
        return self._waiting[0][2]

    def pop(self) -> Sequence:
        """Remove and return the oldest of the most urgent."""
        return heappop(self._waiting)[2]

    def remove(self, sequence: Sequence) -> None:
        """Drop a waiting sequence."""
        kept = [entry for entry in self._waiting if entry[2] is not sequence]
        self._waiting[:] = sorted(kept, key=lambda entry: entry[:2])

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """Do nothing: service does not change the order."""


@dataclass(slots=True)
class FairShare:
    """The tenant that was served least, by its weight, is next; order of arrival among equals.

    A tenant that comes back from having nothing to wait for starts level with the least served of
    those who wait, so that idling earns nothing.
    """

    overtakes = True
    reorders = True
    weights: Mapping[str, float] = field(default_factory=dict)
    _waiting: dict[str, deque[Sequence]] = field(default_factory=dict)
    _tokens: dict[str, Fraction] = field(default_factory=dict)
    _last: str | None = None

    def __len__(self) -> int:
        return sum(map(len, self._waiting.values()))

    def __iter__(self) -> Iterator[Sequence]:
        return (sequence for waiting in self._waiting.values() for sequence in waiting)

    def append(self, sequence: Sequence) -> None:
        """Queue at the back of the tenant's own line, lifting its counter if that was empty."""
        self._lift(sequence.tenant)
        self._waiting.setdefault(sequence.tenant, deque()).append(sequence)

    def restore(self, sequence: Sequence) -> None:
        """Queue at the front of the tenant's own line."""
        self._waiting.setdefault(sequence.tenant, deque()).appendleft(sequence)

    def head(self) -> Sequence:
        """Return the oldest of the tenant served least."""
        return self._waiting[self._next()][0]

    def pop(self) -> Sequence:
        """Remove and return the oldest of the tenant served least; its prompt is charged once."""
        tenant = self._next()
        sequence = self._waiting[tenant].popleft()
        self._emptied(tenant)
        if not sequence.preemptions:
            self._charge(tenant, PROMPT_CHARGE * sequence.prompt_tokens)
        return sequence

    def remove(self, sequence: Sequence) -> None:
        """Drop a waiting sequence."""
        self._waiting[sequence.tenant].remove(sequence)
        self._emptied(sequence.tenant)

    def served(self, sequence: Sequence, output_tokens: int) -> None:
        """Charge the tokens to the sequence's tenant."""
        self._charge(sequence.tenant, OUTPUT_CHARGE * output_tokens)

    def _next(self) -> str:
        # Ties are common, since who comes back starts level; names must not decide them.
        waiting = self._waiting
        return min(waiting, key=lambda name: (self._counter(name), waiting[name][0].number))

    def _counter(self, tenant: str) -> Fraction:
        return self._tokens.get(tenant, Fraction(0))

    def _charge(self, tenant: str, tokens: int) -> None:
        # Fractions, so that many small charges make exactly one large one.
        weight = Fraction(self.weights.get(tenant, 1.0))
        self._tokens[tenant] = self._counter(tenant) + tokens / weight

    def _lift(self, tenant: str) -> None:
        if tenant in self._waiting:
            return
        waiting = [self._counter(name) for name in self._waiting]
        last = [] if self._last is None else [self._counter(self._last)]
        level = min(waiting) if waiting else max(last, default=Fraction(0))
        self._tokens[tenant] = max(self._counter(tenant), level)

    def _emptied(self, tenant: str) -> None:
        if not self._waiting[tenant]:
            del self._waiting[tenant]
            self._last = tenant


ORDERS = ("fcfs", "priority", "fair")
"""The orders a scenario may ask for."""


def queue_of(order: str, weights: Mapping[str, float] | None = None) -> Queue:
    """Return an empty queue of one of `ORDERS`; `weights` are the tenants' under `fair`."""
    if order == "fair":
        return FairShare(dict(weights or {}))
    return ByPriority() if order == "priority" else FirstCome()
