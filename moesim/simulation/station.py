"""A station: one slice and the models on it, one for good or several in turns."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

import pandas as pd

from moesim.cost.iteration import Cost
from moesim.simulation.course import Course
from moesim.simulation.intake import Intake
from moesim.simulation.replica import Replica, Served
from moesim.simulation.turns import Rules, Turns
from moesim.simulation.worker import Worker, course_of

Pricing = Callable[[int, frozenset[int]], Sequence[Cost]]
"""From a member and the busy ones, itself among them, to what its models' iterations cost."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Crowd:
    """Stations of one device that slow each other down while they are busy."""

    pricing: Pricing
    _known: dict[tuple[int, frozenset[int]], Sequence[Cost]] = field(default_factory=dict)

    def costs(self, member: int, busy: frozenset[int]) -> Sequence[Cost]:
        """Return what a member's iterations cost while others are busy, model by model."""
        key = member, busy | {member}
        if key not in self._known:
            self._known[key] = self.pricing(*key)
        return self._known[key]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Station:
    """A slice with a replica a model; `rules` where there are several, `crowd` where neighbours."""

    replicas: tuple[Replica, ...]
    models: tuple[str, ...]
    rules: Rules | None = None
    crowd: Crowd | None = None
    member: int = 0


def engaged(station: Station, intakes: Sequence[Intake]) -> Worker | Turns:
    """Return a station at work on what its replicas take in."""
    workers = [
        Worker(replica, intake.stream)
        for replica, intake in zip(station.replicas, intakes, strict=True)
    ]
    return Turns(workers, station.rules) if station.rules else workers[0]


def serve(replica: Replica, requests: pd.DataFrame) -> Served:
    """Serve an open-loop stream that nothing outside can disturb."""
    intake, course = Intake(replica, requests), Course()
    for _ in course_of(replica, intake.stream, course):
        pass  # with no horizon nothing is yielded
    return intake.served(course)


def serve_alone(station: Station, requests: Sequence[pd.DataFrame]) -> list[Served]:
    """Serve open-loop streams, one a model, that nothing outside can disturb."""
    if station.rules is None:
        return [serve(station.replicas[0], requests[0])]
    return serve_in_turns(station, requests)


def serve_in_turns(station: Station, requests: Sequence[pd.DataFrame]) -> list[Served]:
    """Serve open-loop streams, one a model, that nothing outside can disturb."""
    intakes = [
        Intake(replica, frame) for replica, frame in zip(station.replicas, requests, strict=True)
    ]
    core = engaged(station, intakes)
    while core.end_s < inf:
        core.step()
    core.close()
    return served_by(core, intakes)


def served_by(core: Worker | Turns, intakes: Sequence[Intake]) -> list[Served]:
    """Return what became of each intake's requests."""
    workers = core.workers if isinstance(core, Turns) else (core,)
    return [intake.served(worker.course) for intake, worker in zip(intakes, workers, strict=True)]
