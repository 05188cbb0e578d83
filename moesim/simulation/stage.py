"""The stage: what interacts plays on one simpy clock.

Users of a closed loop wait for their answers before they ask again, so arrivals depend on what the
replicas do; and so does a dispatcher that looks at their loads.
"""

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from typing import Protocol, TypeGuard
from zlib import crc32

import numpy as np
import simpy
from numpy.typing import NDArray

from moesim.errors import ScenarioError
from moesim.requests import Request
from moesim.scenario import Tenant
from moesim.simulation.dispatch import DISPATCHERS
from moesim.simulation.live import Jumper
from moesim.simulation.replica import Replica, Served
from moesim.simulation.stepwise import Stepper
from moesim.traffic.users import Users

Waiting = Generator[simpy.Event, None, None]

AFTER_REFUSAL_S = 1.0
"""How long a user waits, besides thinking, after being refused at once [s]."""


class _Drawn(Protocol):
    """Lengths that are drawn one at a time."""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `count` lengths."""


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

    def seat(
        self,
        name: str,
        tenant: Tenant,
        prefix: tuple[int, ...],
        block_size: int,
        *,
        seed: int,
        until_s: float,
        ids: "count[int]",
    ) -> None:
        """Seat a tenant's users; they ask until `until_s`, numbering their requests by `ids`.

        `prefix` names the full blocks of `block_size` tokens that all their prompts begin with.
        """
        asked = _Asked.by(name, tenant, prefix, block_size)
        streams = np.random.SeedSequence([seed, crc32(name.encode())]).spawn(asked.manners.count)
        for stream in streams:
            rng = np.random.default_rng(stream)
            self._env.process(self._conversation(asked, rng, until_s, ids))

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

    def _conversation(
        self, asked: "_Asked", rng: np.random.Generator, until_s: float, ids: "count[int]"
    ) -> Waiting:
        while True:
            yield self._env.timeout(asked.manners.think_time_s(rng))
            asked_s = self._env.now
            if asked_s >= until_s:
                return
            yield self._send(asked.request(next(ids), asked_s, rng))
            if self._env.now == asked_s:
                yield self._env.timeout(AFTER_REFUSAL_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """What the users of one tenant ask."""

    tenant: str
    model: str
    manners: Users
    prompt: _Drawn
    output: _Drawn
    prefix: tuple[int, ...]
    block_size: int

    @classmethod
    def by(cls, name: str, tenant: Tenant, prefix: tuple[int, ...], block_size: int) -> "_Asked":
        manners, prompt, output = tenant.arrivals, tenant.prompt_tokens, tenant.output_tokens
        if not isinstance(manners, Users) or not _drawn(prompt) or not _drawn(output):
            raise ScenarioError(f"tenants.{name}: users draw their lengths from a distribution")
        return cls(
            tenant=name,
            model=tenant.model,
            manners=manners,
            prompt=prompt,
            output=output,
            prefix=prefix,
            block_size=block_size,
        )

    def request(self, number: int, now_s: float, rng: np.random.Generator) -> Request:
        """Draw a user's next request."""
        prompt = int(self.prompt.draw(1, rng)[0])
        return Request(
            request_id=number,
            tenant=self.tenant,
            model=self.model,
            arrival_s=now_s,
            prompt_tokens=prompt,
            output_tokens=int(self.output.draw(1, rng)[0]),
            prefix=self.prefix[: prompt // self.block_size],
        )


def _drawn(lengths: object) -> TypeGuard[_Drawn]:
    return hasattr(lengths, "draw")
