"""A site: a station on the stage, woken when its next step ends."""

from collections.abc import Sequence
from math import inf

import simpy

from moesim.requests import Request
from moesim.serving.columns import Table
from moesim.simulation.crowd import Activity
from moesim.simulation.intake import Intake
from moesim.simulation.neighbours import Neighbours
from moesim.simulation.replica import Served
from moesim.simulation.station import Station, engaged, served_by
from moesim.simulation.turns import Turns
from moesim.simulation.worker import Worker

ROUNDING = 1e-14
"""Share of a time by which simpy's clock may be late: it is now + (then - now), two roundings."""


class Site:
    """A station at work on the stage, jumping.

    `known` are the requests of its models, where they are known from the start; else they are
    handed in. Its next step is taken when it ends: till then whatever happens may change it.
    """

    def __init__(
        self,
        env: simpy.Environment,
        station: Station,
        *,
        known: Sequence[Table] | None = None,
        neighbours: Neighbours | None = None,
    ) -> None:
        tables: Sequence[Table | None] = known or [None for _ in station.replicas]
        self._env = env
        self._models = {model: place for place, model in enumerate(station.models)}
        self._intakes = [
            Intake(replica, table) for replica, table in zip(station.replicas, tables, strict=True)
        ]
        self._core = engaged(station, self._intakes)
        if isinstance(self._core, Worker):
            self._core.course.stops = True
        self._member, self._neighbours = station.member, neighbours
        self._late_price = False
        self._waited: dict[tuple[int, int], simpy.Event] = {}
        self._load = 0
        self._due: simpy.Event | None = None
        self._due_s = inf
        if neighbours:
            neighbours.join(station.member, self._disturbed)
            if self._core.activity is not Activity.IDLE:  # who is asked at time 0
                env.timeout(0).callbacks.append(lambda _: self._note())
        self._wake_at(self._core.end_s)

    @property
    def load(self) -> int:
        """Requests handed in and not done."""
        return self._load

    def receive(self, request: Request) -> simpy.Event:
        """Take in a request that arrives now; the event happens when it is done."""
        place = self._models[request.model]
        done = self._env.event()
        index = self._intakes[place].receive(request)
        if index is None:
            return done.succeed()
        self._waited[place, index] = done
        self._load += 1
        if self._core.idle:
            self._wake_at(self._env.now)  # when all have come who come at this very moment
        elif self._core.planned:
            self._core.plan()
            self._wake_at(self._core.end_s)
        return done

    def served(self) -> list[Served]:
        """Return what became of the requests, model by model."""
        self._core.close()
        return served_by(self._core, self._intakes)

    def _happens(self, event: simpy.Event) -> None:
        """Take the step that ends now."""
        if event is not self._due:
            return  # the step became another one meanwhile
        due_s, self._due_s = self._due_s, inf
        core = self._core
        if core.idle or not core.planned:
            core.plan()
            if core.idle and core.end_s <= due_s:
                core.step()
        else:
            self._tell(core.step())
        if self._late_price:
            self._reprice()
        self._note()
        self._wake_at(core.end_s)

    def _tell(self, done: Sequence[tuple[int, int]]) -> None:
        """Tell those who wait for their requests; nobody waits for known ones."""
        for key in done if self._waited else ():
            self._load -= 1
            self._waited.pop(key).succeed()

    def _wake_at(self, due_s: float) -> None:
        """Be woken then, and not when it was planned before."""
        if due_s == self._due_s:
            return
        self._due_s = due_s
        if due_s == inf:
            self._due = None
            return
        self._due = self._env.timeout(max(0.0, due_s - self._env.now))
        self._due.callbacks.append(self._happens)

    def _note(self) -> None:
        if self._neighbours:
            self._neighbours.note(self._member, self._core.activity)

    def _disturbed(self) -> None:
        """Neighbours do something else: a copy has another part of the link from now on.

        Iterations cost something else from the next on.
        """
        core = self._core
        if isinstance(core, Turns) and core.activity is Activity.COPYING:
            self._restretch(core)
        elif core.idle or self._begins_now() or not core.planned:
            self._reprice()
        else:
            core.stop_by(self._env.now)
            self._late_price = True
        self._wake_at(core.end_s)

    def _restretch(self, core: Turns) -> None:
        if self._neighbours:
            core.stretch(self._env.now, self._neighbours.stretch(self._member))

    def _begins_now(self) -> bool:
        """Whether the next step begins at this very moment; simpy's clock adds, and so rounds."""
        now_s = self._env.now
        return self._core.now_s >= now_s - ROUNDING * now_s

    def _reprice(self) -> None:
        self._late_price = False
        if self._neighbours:
            self._core.reprice(self._neighbours.costs(self._member))
