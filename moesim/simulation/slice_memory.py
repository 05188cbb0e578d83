"""What one slice is asked to hold, and whether it does: for simulations and for planners alike."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from moesim.errors import CapacityError
from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory, reserved_share
from moesim.facts.remedies import short_of
from moesim.facts.residents import Residents, plan_residents
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder
from moesim.simulation.demands import bare_demand, longest_blocks, resident_of
from moesim.simulation.ways import ways_of_residents, ways_of_variants
from moesim.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceMemory:
    """What is to sit on one slice; of a group of devices, on each of them.

    `demand` says what the plan is made of; of models that are swapped, the largest's. `remedies`
    are the nearest changes of each kind that make it fit, none where it does.
    """

    name: str
    models: tuple[str, ...]
    kv_blocks: tuple[int, ...]
    """Of each model."""
    plan: MemoryPlan
    demand: MemoryDemand | Residents
    remedies: tuple[str, ...] = ()
    devices: int = 1
    """Devices of the group, of each of which the plan is."""

    @property
    def sentence(self) -> str:
        """Whether it fits, and what would make it."""
        if self.plan.fits:
            return "fits"
        return f"does not fit: {short_of(self.plan, self.remedies)}"

    def require_fit(self) -> None:
        """Raise CapacityError, with needs, has and remedies, where it does not fit."""
        plan = self.plan
        if plan.fits:
            return
        needs = {
            "weights": plan.weight_bytes,
            "KV cache": plan.kv_bytes,
            "activations": plan.activation_bytes,
            "runtime": plan.reserved_bytes,
        }
        parts = " + ".join(f"{part} {format_bytes(size)}" for part, size in needs.items() if size)
        subject, verb = ("model", "does") if len(self.models) == 1 else ("models", "do")
        raise CapacityError(
            f"{subject} {' and '.join(self.models)} {verb} not fit on {self.name}: {parts} > "
            f"{format_bytes(plan.slice_bytes)}; {short_of(plan, self.remedies)}"
        )


def lone_memory(builder: Builder, model: str, part: Slice) -> SliceMemory:
    """Return the memory of a slice that one whole model has for itself.

    Its KV cache is what is asked for; else what fits, on a whole device no more than the profiled
    engine allocated.
    """
    if part.devices > 1:
        return residents_memory(builder, [model], part)
    bare = bare_demand(builder, model, part)
    room = plan_memory(bare).free_bytes // bare.block_bytes
    most = min(room, builder.profile(model).kv.num_blocks) if part.whole else room
    blocks = builder.deployment.kv_blocks or most or longest_blocks(builder, model)
    return variants_memory(builder, [model], part, replace(bare, kv_blocks=blocks))


def variants_memory(
    builder: Builder, models: Sequence[str], part: Slice, demand: MemoryDemand
) -> SliceMemory:
    """Return the memory of a slice with variants of one shape, as demanded."""
    plan = plan_memory(demand)
    return SliceMemory(
        name=part.name,
        models=tuple(models),
        kv_blocks=(demand.kv_blocks // len(models),) * len(models),
        plan=plan,
        demand=demand,
        remedies=() if plan.fits else tuple(ways_of_variants(builder, models, demand)),
    )


def residents_memory(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    *,
    swapped: bool = False,
    at_once: bool = False,
) -> SliceMemory:
    """Return the memory of a slice, or of each device of a group, that holds whole models.

    Unless told, each has an even part of what is left for KV blocks.
    """
    demand = Residents(
        models=tuple(resident_of(builder, model, part) for model in models),
        slice_bytes=part.memory_bytes,
        reserved_share=reserved_share(builder.device.kind),
        swapped=swapped,
        at_once=at_once,
    ).filled()
    asked = builder.deployment.kv_blocks
    if asked:
        demand = demand.with_blocks((asked,) * len(models))
    elif min(demand.kv_blocks) < 1:
        demand = demand.with_blocks(tuple(longest_blocks(builder, model) for model in models))
    plan = plan_residents(demand)
    return SliceMemory(
        name=part.name,
        models=tuple(models),
        kv_blocks=demand.kv_blocks,
        plan=plan,
        demand=demand,
        remedies=() if plan.fits else tuple(ways_of_residents(builder, part, demand)),
        devices=part.devices,
    )
