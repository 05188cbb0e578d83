"""A station: one slice and the models on it, one for good or several in turns."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf

from moesim.serving.columns import Table
from moesim.simulation.course import Course
from moesim.simulation.crowd import Crowd
from moesim.simulation.intake import Intake
from moesim.simulation.replica import Replica, Served
from moesim.simulation.shelf import Shelf, Shelves
from moesim.simulation.turns import Rules, Turns
from moesim.simulation.worker import Worker, course_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Station:
    """A slice with a replica a model; `rules` where there are several, `crowd` where neighbours.

    `shelves` are caches of what was used last: there are `rules` then, even for one model. `beside`
    counts the other stations of its device, which have the same link to the host.
    """

    replicas: tuple[Replica, ...]
    models: tuple[str, ...]
    rules: Rules | None = None
    crowd: Crowd | None = None
    member: int = 0
    beside: int = 0
    shelves: tuple[Shelf, ...] = ()


def engaged(station: Station, intakes: Sequence[Intake]) -> Worker | Turns:
    """Return a station at work on what its replicas take in."""
    shelves = Shelves(station.shelves) if station.shelves else None
    workers = [
        Worker(replica, intake.stream, shelves.course(place) if shelves else Course())
        for place, (replica, intake) in enumerate(zip(station.replicas, intakes, strict=True))
    ]
    return Turns(workers, station.rules, shelves) if station.rules else workers[0]


def serve(replica: Replica, requests: Table) -> Served:
    """Serve an open-loop stream that nothing outside can disturb."""
    intake, course = Intake(replica, requests), Course()
    for _ in course_of(replica, intake.stream, course):
        pass  # with no horizon nothing is yielded
    return intake.served(course)


def serve_alone(station: Station, requests: Sequence[Table]) -> list[Served]:
    """Serve open-loop streams, one a model, that nothing outside can disturb."""
    if station.rules is None:
        return [serve(station.replicas[0], requests[0])]
    return serve_in_turns(station, requests)


def serve_in_turns(station: Station, requests: Sequence[Table]) -> list[Served]:
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
