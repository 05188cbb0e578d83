"""Models of any shape with all their weights on one slice: together, or one at a time.

Of a group of devices this is what each of them holds. Variants of one shape whose experts may be
absent or shared are in `moesim.facts.memory`; a plan is the same for both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import ceil

from moesim.facts.memory import MemoryPlan


@dataclass(frozen=True, slots=True, kw_only=True)
class Resident:
    """A model on a slice, as the part of it that one device holds [B]."""

    name: str
    non_expert_bytes: int
    expert_bytes: int
    """Of all its experts together."""
    activation_bytes: int
    block_bytes: int
    block_size: int
    """Tokens of a KV block."""
    kv_blocks: int = 0

    @property
    def weight_bytes(self) -> int:
        """All its weights [B]."""
        return self.non_expert_bytes + self.expert_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Residents:
    """What one slice is asked to hold of some models; each keeps its KV blocks while it waits.

    `swapped` have the slice for their weights one at a time, the others wait in host memory. Models
    that run `at_once` have activations at the same time.
    """

    models: tuple[Resident, ...]
    slice_bytes: int
    reserved_share: float
    swapped: bool = False
    at_once: bool = False

    @property
    def loaded(self) -> tuple[Resident, ...]:
        """The models whose weights are there at once; of swapped ones the largest."""
        if not self.swapped:
            return self.models
        return (max(self.models, key=lambda model: model.weight_bytes),)

    @property
    def kv_blocks(self) -> tuple[int, ...]:
        """KV blocks of each model."""
        return tuple(model.kv_blocks for model in self.models)

    def with_blocks(self, kv_blocks: tuple[int, ...]) -> "Residents":
        """Return the same with other KV blocks, model by model."""
        pairs = zip(self.models, kv_blocks, strict=True)
        return replace(self, models=tuple(replace(model, kv_blocks=n) for model, n in pairs))

    def filled(self) -> "Residents":
        """Return the same with as many KV blocks as there is room for, divided evenly by bytes."""
        bare = self.with_blocks((0,) * len(self.models))
        room = plan_residents(bare).free_bytes // len(self.models)
        return self.with_blocks(tuple(room // model.block_bytes for model in self.models))


def plan_residents(demand: Residents) -> MemoryPlan:
    """Lay out what a slice is asked to hold, whether it fits or not."""
    experts = sum(model.expert_bytes for model in demand.loaded)
    others = sum(model.non_expert_bytes for model in demand.loaded)
    active = [model.activation_bytes for model in demand.models]
    return MemoryPlan(
        slice_bytes=demand.slice_bytes,
        non_expert_bytes=others,
        shared_expert_bytes=0,
        private_expert_bytes=experts,
        kv_bytes=sum(model.kv_blocks * model.block_bytes for model in demand.models),
        activation_bytes=sum(active) if demand.at_once else max(active),
        reserved_bytes=ceil(demand.reserved_share * demand.slice_bytes),
        host_expert_bytes=sum(model.expert_bytes for model in demand.models) - experts,
        host_non_expert_bytes=sum(model.non_expert_bytes for model in demand.models) - others,
    )


def fewer_blocks(demand: Residents) -> Residents | None:
    """Return the demand with as few KV blocks less as it takes to fit, the same of each model.

    None where even a single block of each is too much.
    """
    plan = plan_residents(demand)
    less = -(-plan.short_by_bytes // sum(model.block_bytes for model in demand.models))
    if min(demand.kv_blocks) - less < 1:
        return None
    return demand.with_blocks(tuple(count - less for count in demand.kv_blocks))


def first_that_fits(candidates: Mapping[str, Residents]) -> str | None:
    """Return what to call the first of some demands that fits, None where none does."""
    return next((name for name, each in candidates.items() if plan_residents(each).fits), None)
