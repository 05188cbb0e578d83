"""The stage: what interacts plays on one simpy clock.

Users of a closed loop wait for their answers before they ask again, so arrivals depend on what the
replicas do; and so does a dispatcher that looks at their loads.
"""

from collections.abc import Generator, Iterable, Mapping, Sequence
from itertools import count
from typing import Protocol
from zlib import crc32

import numpy as np
import simpy

from moesim.requests import Request
from moesim.simulation.dispatch import DISPATCHERS
from moesim.simulation.live import Jumper
from moesim.simulation.replica import Replica, Served
from moesim.simulation.stepwise import Stepper
from moesim.simulation.users import AFTER_REFUSAL_S, User

Waiting = Generator[simpy.Event, None, None]


class Server(Protocol):
    """A replica at work on the stage."""

    @property
    def load(self) -> int:
        """Requests in the replica's care, running or waiting."""

    def receive(self, request: Request) -> simpy.Event:
        """Take in a request that arrives now; the event happens when it is done."""

    def served(self) -> Served:
        """Return what became of the requests."""


class Stage:
    """Replicas by model, and everybody who sends them requests."""

    def __init__(
        self,
        replicas: Mapping[str, Sequence[Replica]],
        *,
        dispatcher: str = "round_robin",
        seed: int = 0,
        stepwise: bool = False,
    ) -> None:
        self._env = simpy.Environment()
        kind = Stepper if stepwise else Jumper
        self._servers: dict[str, list[Server]] = {
            model: [kind(self._env, replica) for replica in parts]
            for model, parts in replicas.items()
        }
        self._dispatchers = {
            model: DISPATCHERS[dispatcher](np.random.default_rng([seed, crc32(model.encode())]))
            for model in replicas
        }

    def replay(self, requests: Sequence[Request]) -> None:
        """Have requests arrive at their times, in order."""
        self._env.process(self._replayed(requests))

    def seat(self, users: Iterable[User], *, until_s: float, ids: "count[int]") -> None:
        """Seat users; they ask until `until_s`, numbering their requests by `ids`."""
        for user in users:
            self._env.process(self._conversation(user, until_s, ids))

    def play(self) -> list[Served]:
        """Run until nothing happens any more; return what each replica did."""
        self._env.run()
        return [server.served() for servers in self._servers.values() for server in servers]

    def _send(self, request: Request) -> simpy.Event:
        servers = self._servers[request.model]
        loads = [server.load for server in servers]
        return servers[self._dispatchers[request.model].choose(request, loads)].receive(request)

    def _replayed(self, requests: Sequence[Request]) -> Waiting:
        for request in requests:
            yield self._env.timeout(max(0.0, request.arrival_s - self._env.now))
            self._send(request)

    def _conversation(self, user: User, until_s: float, ids: "count[int]") -> Waiting:
        while True:
            yield self._env.timeout(user.think_time_s())
            asked_s = self._env.now
            if asked_s >= until_s:
                return
            yield self._send(user.request(next(ids), asked_s))
            if self._env.now == asked_s:
                yield self._env.timeout(AFTER_REFUSAL_S)
