"""The users of a closed loop: how long each thinks, and what it asks.

Every user has a random stream of its own, keyed by seed, tenant and number, so that what it asks
does not depend on how fast it is answered; only when it asks does. Simulated and real runs share
them.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from zlib import crc32

import numpy as np

from moesim.errors import ScenarioError
from moesim.requests import Request
from moesim.scenario import Scenario, Tenant
from moesim.simulation.prefixes import shared_names
from moesim.traffic.lengths import Fixed, Lognormal, Quantiles
from moesim.traffic.users import Users

Drawn = Fixed | Lognormal | Quantiles
"""Lengths that a user can draw one at a time."""

AFTER_REFUSAL_S = 1.0
"""How long a user waits, besides thinking, after being refused at once [s]."""


@dataclass(slots=True, kw_only=True, eq=False)
class User:
    """One user of a closed loop; `prefix` names the blocks that all its prompts begin with."""

    tenant: str
    model: str
    manners: Users
    prompt: Drawn
    output: Drawn
    prefix: tuple[int, ...]
    block_size: int
    rng: np.random.Generator

    def think_time_s(self) -> float:
        """Draw how long the user thinks before asking [s]."""
        return self.manners.think_time_s(self.rng)

    def request(self, number: int, now_s: float) -> Request:
        """Draw what the user asks."""
        prompt = int(self.prompt.draw(1, self.rng)[0])
        return Request(
            request_id=number,
            tenant=self.tenant,
            model=self.model,
            arrival_s=now_s,
            prompt_tokens=prompt,
            output_tokens=int(self.output.draw(1, self.rng)[0]),
            prefix=self.prefix[: prompt // self.block_size],
        )


def users_of(scenario: Scenario, block_size: int, seed: int) -> list[User]:
    """Return all users, tenant by tenant.

    Raises ScenarioError where their lengths cannot be drawn one at a time.
    """
    return [
        user
        for name, tenant in scenario.tenants.items()
        for user in _users(name, tenant, block_size, seed)
    ]


def _users(name: str, tenant: Tenant, block_size: int, seed: int) -> Iterator[User]:
    manners, prompt, output = tenant.arrivals, tenant.prompt_tokens, tenant.output_tokens
    if not isinstance(manners, Users):
        return
    if not isinstance(prompt, Drawn) or not isinstance(output, Drawn):
        raise ScenarioError(f"tenants.{name}: users draw their lengths from a distribution")
    for stream in np.random.SeedSequence([seed, crc32(name.encode())]).spawn(manners.count):
        yield User(
            tenant=name,
            model=tenant.model,
            manners=manners,
            prompt=prompt,
            output=output,
            prefix=shared_names(name, tenant, block_size),
            block_size=block_size,
            rng=np.random.default_rng(stream),
        )
