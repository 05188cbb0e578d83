"""Turns: which of several models a device serves next, asked before every iteration.

Variants that share a device cannot share an iteration, since their non-expert layers differ. Each
has a scheduler of its own; this says whose iteration is next. To change the model may cost a
reconfiguration, so the policies differ in how long they stay.

| policy | serves |
|---|---|
| `fcfs` | the model of the oldest unfinished request; others of that model join its batch |
| `longest_queue` | the model with most unfinished requests, asked again whenever one finishes |
| `quantum` | each model in turn, for `quantum_s` while others wait |
| `drain` | the loaded model until it has nothing left, then that of the oldest request |

Where requests have priorities the most urgent unfinished request decides first, and it is asked
again whenever somebody arrives.
"""

from collections.abc import Callable, Mapping, Sequence
from math import inf
from types import MappingProxyType
from typing import NamedTuple


class Standing(NamedTuple):
    """How a model stands: unfinished requests, when the oldest arrived, the most urgent's number.

    A model with nothing to do has `oldest_s` and `urgency` at infinity.
    """

    unfinished: int = 0
    oldest_s: float = inf
    urgency: float = inf


class Moment(NamedTuple):
    """When it is asked: the loaded model since when, and whether one of its requests finished."""

    now_s: float
    loaded: int
    since_s: float
    finished: bool


Choice = Callable[[Sequence[Standing], Moment, float], int]
"""From the standings of the models, of which one has something to do, and the quantum [s]."""


def next_turn(
    policy: str, standings: Sequence[Standing], moment: Moment, quantum_s: float = inf
) -> int | None:
    """Return the model whose iteration is next; None where nobody has anything to do.

    >>> standings = [Standing(2, 5.0, 0), Standing(1, 3.0, 0)]
    >>> moment = Moment(now_s=9.0, loaded=0, since_s=4.0, finished=False)
    >>> {policy: next_turn(policy, standings, moment, 2.0) for policy in sorted(POLICIES)}
    {'drain': 0, 'fcfs': 1, 'longest_queue': 0, 'quantum': 1}
    """
    urgencies = [standing.urgency for standing in standings]
    urgent = min(urgencies)
    if urgent == inf:
        return None
    if max(urgencies) > urgent:
        standings = [s if s.urgency == urgent else Standing() for s in standings]
    return POLICIES[policy](standings, moment, quantum_s)


def stays_until_s(
    policy: str, moment: Moment, *, others_wait: bool, arrival_s: float, quantum_s: float
) -> float:
    """Return until when time alone will not take the turn away; infinity where it never does.

    `arrival_s` is when the next request of another model arrives, as far as is known.
    """
    if policy != "quantum":
        return inf
    ends_s = moment.since_s + quantum_s
    return ends_s if others_wait else max(ends_s, arrival_s)


def _oldest(standings: Sequence[Standing], moment: Moment, quantum_s: float) -> int:
    return min(
        range(len(standings)),
        key=lambda model: (standings[model].oldest_s, model != moment.loaded, model),
    )


def _longest(standings: Sequence[Standing], moment: Moment, quantum_s: float) -> int:
    if standings[moment.loaded].unfinished and not moment.finished:
        return moment.loaded
    return max(
        range(len(standings)),
        key=lambda model: (standings[model].unfinished, model == moment.loaded, -model),
    )


def _in_turn(standings: Sequence[Standing], moment: Moment, quantum_s: float) -> int:
    stays = moment.now_s < moment.since_s + quantum_s
    if standings[moment.loaded].unfinished and stays:
        return moment.loaded
    count = len(standings)
    following = [(moment.loaded + step) % count for step in range(1, count + 1)]
    return next(model for model in following if standings[model].unfinished)


def _drained(standings: Sequence[Standing], moment: Moment, quantum_s: float) -> int:
    if standings[moment.loaded].unfinished:
        return moment.loaded
    return _oldest(standings, moment, quantum_s)


POLICIES: Mapping[str, Choice] = MappingProxyType(
    {"fcfs": _oldest, "longest_queue": _longest, "quantum": _in_turn, "drain": _drained}
)
"""Policies by the names that scenarios use."""
