"""The stage: stations that others reach while they run. simpy carries what interacts.

Who acts there: users who wait for answers, dispatchers that look at how busy replicas are, a
gateway, neighbours on one device. Each station says when its next step ends, and is woken then
(`moesim.simulation.site`), or it wakes for every iteration (`moesim.simulation.stepwise`).
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol
from zlib import crc32

import numpy as np
import simpy

from moesim.requests import Request
from moesim.serving.columns import Table
from moesim.simulation.crowd import Crowd
from moesim.simulation.dispatch import DISPATCHERS, Dispatcher
from moesim.simulation.gateway import Gateway
from moesim.simulation.neighbours import Neighbours
from moesim.simulation.replica import Served
from moesim.simulation.site import Site
from moesim.simulation.station import Station
from moesim.simulation.stepwise import Stepper
from moesim.simulation.users import AFTER_REFUSAL_S, User

Waiting = Generator[simpy.Event, None, None]


class Server(Protocol):
    """A station at work on the stage."""

    @property
    def load(self) -> int:
        """Requests handed in and not done."""

    def receive(self, request: Request) -> simpy.Event:
        """Take in a request that arrives now; the event happens when it is done."""

    def served(self) -> list[Served]:
        """Return what became of the requests, model by model."""


class Stage:
    """Stations, and everybody who sends them requests.

    `known` are the requests of stations that are handed none, by the station's place, model by
    model; `dispatchers` are the names of the models' dispatchers.
    """

    def __init__(
        self,
        stations: Sequence[Station],
        known: Mapping[int, Sequence[Table]],
        *,
        dispatchers: Mapping[str, str],
        gateway: Gateway | None = None,
        seed: int = 0,
        stepwise: bool = False,
    ) -> None:
        self._env = simpy.Environment()
        self._gateway = gateway
        self._servers: list[Server] = []
        self._by_model: dict[str, list[Server]] = {}
        crowds: dict[Crowd, Neighbours] = {}
        for place, station in enumerate(stations):
            neighbours = None
            if station.crowd:
                neighbours = crowds.setdefault(station.crowd, Neighbours(station.crowd))
            kind = Stepper if stepwise else Site
            server = kind(self._env, station, known=known.get(place), neighbours=neighbours)
            self._servers.append(server)
            for model in station.models:
                self._by_model.setdefault(model, []).append(server)
        self._dispatchers: dict[str, Dispatcher] = {
            model: DISPATCHERS[dispatchers[model]](
                np.random.default_rng([seed, crc32(model.encode())])
            )
            for model in self._by_model
        }

    def replay(self, requests: Sequence[Request]) -> None:
        """Have requests arrive at their times, in order."""
        self._env.process(self._replayed(requests))

    def seat(self, users: Iterable[User], *, until_s: float, ids: "count[int]") -> None:
        """Seat users; they ask until `until_s`, numbering their requests by `ids`."""
        for user in users:
            self._env.process(self._conversation(user, until_s, ids))

    def play(self) -> list[list[Served]]:
        """Run until nothing happens any more; return what each station did, model by model."""
        self._env.run()
        return [server.served() for server in self._servers]

    def _send(self, request: Request) -> simpy.Event:
        servers = self._by_model[request.model]
        loads = [server.load for server in servers]
        return servers[self._dispatchers[request.model].choose(request, loads)].receive(request)

    def _through_gateway(self, request: Request) -> Waiting:
        sent = self._gateway.sent(request) if self._gateway else request
        yield self._env.timeout(sent.delay_s)
        yield self._send(sent)

    def _asked(self, request: Request) -> simpy.Event:
        if self._gateway:
            return self._env.process(self._through_gateway(request))
        return self._send(request)

    def _replayed(self, requests: Sequence[Request]) -> Waiting:
        for request in requests:
            yield self._env.timeout(max(0.0, request.arrival_s - self._env.now))
            self._asked(request)

    def _conversation(self, user: User, until_s: float, ids: "count[int]") -> Waiting:
        while True:
            think_s = user.think_time_s()
            if think_s:  # who does not think asks in time for the very next iteration
                yield self._env.timeout(think_s)
            asked_s = self._env.now
            if asked_s >= until_s:
                return
            yield self._asked(user.request(next(ids), asked_s))
            if self._env.now == asked_s:
                yield self._env.timeout(AFTER_REFUSAL_S)
