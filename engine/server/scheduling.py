"""How `moesim-engine serve` schedules: a scenario's settings, under the same names."""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from math import inf, isfinite
from typing import TypeVar

from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.serving.policies import POLICIES, Policy
from moesim.serving.queues import ORDERS
from moesim.units import GIB

PREEMPTIONS = ("recompute", "swap")

Number = TypeVar("Number", int, float)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduling:
    """Who is next, how batches are put together, and what happens when the KV cache is full.

    `priorities` and `weights` belong to tenants, which are what requests give as their `user`;
    `swap_gib` of host memory take the blocks of preempted sequences.
    """

    policy: str = "chunked_prefill"
    order: str = "fcfs"
    preemption: str = "recompute"
    swap_gib: float = 4.0
    priorities: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_known("--policy", self.policy, POLICIES)
        _check_known("--order", self.order, ORDERS)
        _check_known("--preemption", self.preemption, PREEMPTIONS)
        if self.swaps and not self.rules.preempts:
            raise EngineError(
                f"--preemption swap: policy {self.policy} never preempts; leave it out"
            )
        for option, given, order in (
            ("--priority", self.priorities, "priority"),
            ("--weight", self.weights, "fair"),
        ):
            if given and self.order != order:
                raise EngineError(
                    f"{option}: does nothing under --order {self.order}; add --order {order}"
                )

    @property
    def rules(self) -> Policy:
        """How batches are put together."""
        return POLICIES[self.policy]

    @property
    def swaps(self) -> bool:
        """Whether the blocks of preempted sequences are copied to host memory."""
        return self.preemption == "swap"

    def swap_blocks(self, spec: ModelSpec, block_size: int, useful: int) -> int:
        """Return the blocks that host memory takes, no more than `useful`; 0 where none are kept.

        Raises EngineError where there is no room for one, or no end to it.
        """
        if not self.swaps:
            return 0
        if not isfinite(self.swap_gib):
            raise EngineError(f"--swap-gib {self.swap_gib:g}: give a number, say 4")
        blocks = int(self.swap_gib * GIB // (block_size * spec.kv_bytes_per_token))
        if blocks < 1:
            raise EngineError(f"--swap-gib {self.swap_gib:g}: no room for one KV block; give more")
        return min(blocks, useful)


def by_tenant(
    option: str, texts: Collection[str], number: Callable[[str], Number]
) -> dict[str, Number]:
    """Return numbers by tenant.

    >>> by_tenant("--priority", ["chat=-1", "reports=5"], int)
    {'chat': -1, 'reports': 5}
    """
    found = {}
    for text in texts:
        tenant, _, value = text.rpartition("=")
        try:
            found[tenant] = number(value)
        except ValueError:
            tenant = ""
        if not tenant:
            raise EngineError(f"{option} {text}: is not TENANT=NUMBER, as in chat=1")
    return found


def weight(text: str) -> float:
    """Return a share of service; ValueError where it is not a number above zero."""
    value = float(text)
    if not 0 < value < inf:
        raise ValueError(f"{text} is not above zero")
    return value


def _check_known(option: str, name: str, known: Collection[str]) -> None:
    if name not in known:
        raise EngineError(f"{option}: {name!r} is none of {', '.join(known)}")
