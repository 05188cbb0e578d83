"""Models that run at once on one device without a wall in its memory (CUDA MPS)."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import ceil

from moesim.deployment import Offloading
from moesim.facts.memory import reserved_share
from moesim.facts.residents import Resident, Residents, plan_residents
from moesim.facts.slices import Slice, whole
from moesim.simulation.builder import Builder
from moesim.simulation.draft import Draft
from moesim.simulation.drafting import resided, store_of, usable
from moesim.simulation.residency import Residency
from moesim.simulation.slice_memory import SliceMemory, residents_memory
from moesim.simulation.ways import ways_of_residents

AMPLE_BYTES = 2**62
"""More than any model takes: what everything fits into."""


def pooled(builder: Builder, parts: Mapping[str, Slice]) -> list[Draft]:
    """Draft whole models by their parts of a device; KV blocks get an even part of what is left."""
    memory = residents_memory(builder, list(parts), whole(builder.device), at_once=True)
    return [
        Draft(
            builder=builder,
            models=(model,),
            part=part,
            memory=memory,
            blocks=(blocks,),
            seen=(None,),
            stores=(None,),
        )
        for (model, part), blocks in zip(parts.items(), memory.kv_blocks, strict=True)
    ]


def pooled_offloaded(
    builder: Builder, parts: Mapping[str, Slice], offloading: Offloading
) -> list[Draft]:
    """Draft models whose experts may wait in host memory by their parts of a device.

    Experts get an even part of what all else leaves, and of what others cannot use.
    """
    device = whole(builder.device)
    found = _resided(builder, list(parts), device, offloading)
    memory = _together(builder, list(parts), device, found)
    return [
        Draft(
            builder=builder,
            models=(model,),
            part=part,
            memory=memory,
            blocks=(count,),
            seen=usable(each),
            stores=(store_of(each),),
            residencies=(each,),
            offloading=offloading,
        )
        for (model, part), each, count in zip(parts.items(), found, memory.kv_blocks, strict=True)
    ]


def _resided(
    builder: Builder, models: Sequence[str], device: Slice, offloading: Offloading
) -> list[Residency]:
    """Lay out each model on the bytes that are its own: what it needs, and its part of the rest."""

    def on(model: str, size: int) -> Residency:
        part = replace(device, memory_bytes=size)
        return resided(builder, [model], part, offloading, reserved=0.0)

    least = [on(model, 1).plan.used_bytes for model in models]
    most = [on(model, AMPLE_BYTES).plan.used_bytes for model in models]
    reserved = ceil(reserved_share(builder.device.kind) * device.memory_bytes)
    room = device.memory_bytes - reserved - sum(least)
    more = shared_out(room, [high - low for low, high in zip(least, most, strict=True)])
    return [on(model, low + part) for model, low, part in zip(models, least, more, strict=True)]


def shared_out(room: int, wanted: Sequence[int]) -> list[int]:
    """Share out evenly; what some do not want is for the others.

    >>> shared_out(100, [10, 90, 90])
    [10, 45, 45]
    """
    given = [0] * len(wanted)
    left = max(0, room)
    for place, index in enumerate(sorted(range(len(wanted)), key=wanted.__getitem__)):
        given[index] = min(wanted[index], left // (len(wanted) - place))
        left -= given[index]
    return given


def _together(
    builder: Builder, models: Sequence[str], device: Slice, found: Sequence[Residency]
) -> SliceMemory:
    """Return the memory of a device with what each model has on it.

    Where all experts are there, KV caches get what is free unless told, as without offloading.
    """
    demand = Residents(
        models=tuple(map(_resident, models, found)),
        slice_bytes=device.memory_bytes,
        reserved_share=reserved_share(builder.device.kind),
        at_once=True,
    )
    if builder.deployment.kv_blocks is None and all(each.complete for each in found):
        demand = demand.filled() if plan_residents(demand).fits else demand
    away = sum(each.plan.host_expert_bytes for each in found)
    plan = replace(plan_residents(demand), host_expert_bytes=away)
    ways = ways_of_residents(builder, device, demand, complete=False)
    return SliceMemory(
        name=device.name,
        models=tuple(models),
        kv_blocks=demand.kv_blocks,
        plan=plan,
        demand=demand,
        remedies=() if plan.fits else tuple(ways),
    )


def _resident(model: str, residency: Residency) -> Resident:
    """Return a model with those of its experts that are on the device."""
    demand, plan = residency.demand, residency.plan
    return Resident(
        name=model,
        non_expert_bytes=plan.non_expert_bytes,
        expert_bytes=plan.private_expert_bytes,
        activation_bytes=plan.activation_bytes,
        block_bytes=demand.block_bytes,
        block_size=demand.block_size,
        kv_blocks=demand.kv_blocks,
    )
