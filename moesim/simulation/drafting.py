"""How drafts are made: one model on a slice, several in turns, variants with absent experts."""

from collections.abc import Sequence
from dataclasses import replace

from moesim.deployment import Offloading
from moesim.facts.memory import reserved_share
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder, Store
from moesim.simulation.demands import block_bytes, longest_blocks, most_blocks
from moesim.simulation.draft import Draft
from moesim.simulation.residency import Mask, Residency, reside, topped_up
from moesim.simulation.slice_memory import (
    SliceMemory,
    lone_memory,
    residents_memory,
    variants_memory,
)
from moesim.simulation.turns import Rules


def lone(builder: Builder, model: str, part: Slice | None) -> Draft:
    """Draft one model that has a slice for itself, all of it resident."""
    memory = lone_memory(builder, model, part) if part else None
    allocated = builder.deployment.kv_blocks or builder.profile(model).kv.num_blocks
    return Draft(
        builder=builder,
        models=(model,),
        part=part,
        memory=memory,
        blocks=memory.kv_blocks if memory else (allocated,),
        seen=(None,),
        stores=(None,),
    )


def side_by_side(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    *,
    rules: Rules | None = None,
    swapped: bool = False,
) -> Draft:
    """Draft models of any shape in turns; their weights are there at once, or `swapped` in and out.

    KV room is divided evenly: a model that waits for its turn keeps its blocks.
    """
    if len(models) == 1:
        return lone(builder, models[0], part)
    memory = residents_memory(builder, models, part, swapped=swapped)
    return Draft(
        builder=builder,
        models=memory.models,
        part=part,
        memory=memory,
        blocks=memory.kv_blocks,
        seen=(None,) * len(models),
        stores=(None,) * len(models),
        rules=rules,
    )


def offloaded(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    offloading: Offloading,
    *,
    rules: Rules | None = None,
    ratio: float = 0.0,
    non_expert_sets: int | None = None,
) -> Draft:
    """Draft variants of one shape whose experts may wait in host memory.

    Unless told, the KV cache of each holds one longest sequence and an even part of what experts
    leave free, as the engine's does.
    """
    residency = resided(
        builder, models, part, offloading, ratio=ratio, non_expert_sets=non_expert_sets
    )
    if builder.deployment.kv_blocks is None:
        residency = topped_up(residency, most_blocks(builder, models, part))
    memory = variants_memory(builder, models, part, residency.demand)
    return Draft(
        builder=builder,
        models=tuple(models),
        part=part,
        memory=memory,
        blocks=memory.kv_blocks,
        seen=usable(residency),
        stores=(store_of(residency),) * len(models),
        residencies=(residency,),
        offloading=offloading,
        rules=rules,
    )


def swapped_whole(
    builder: Builder, models: Sequence[str], part: Slice, offloading: Offloading
) -> tuple[Draft, list[int]]:
    """Draft models of which one is on the slice at a time, some of its experts in host memory.

    Returns the bytes of each that a change of model loads too. A model that waits for its turn
    keeps its KV blocks. Where all experts are there they get what is free, as without offloading.
    """
    blocks = tuple(builder.deployment.kv_blocks or longest_blocks(builder, m) for m in models)
    each_bytes = [block_bytes(builder, model, part) for model in models]
    kv_bytes = sum(count * size for count, size in zip(blocks, each_bytes, strict=True))
    found = [
        resided(builder, [model], part, offloading, kv_blocks=-(-kv_bytes // size))
        for model, size in zip(models, each_bytes, strict=True)
    ]
    memory = replace(_of_the_largest(builder, models, part, found), kv_blocks=blocks)
    if builder.deployment.kv_blocks is None and all(each.complete for each in found):
        memory = residents_memory(builder, models, part, swapped=True)
    draft = Draft(
        builder=builder,
        models=tuple(models),
        part=part,
        memory=memory,
        blocks=memory.kv_blocks,
        seen=tuple(seen for each in found for seen in usable(each)),
        stores=tuple(map(store_of, found)),
        residencies=tuple(found),
        offloading=offloading,
    )
    return draft, [each.plan.weight_bytes for each in found]


def resided(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    offloading: Offloading,
    *,
    kv_blocks: int | None = None,
    reserved: float | None = None,
    ratio: float = 0.0,
    non_expert_sets: int | None = None,
) -> Residency:
    """Lay out variants of one shape; `kv_blocks` and what is `reserved` as usual unless told."""
    usual = reserved_share(builder.device.kind)
    return reside(
        [builder.profile(model) for model in models],
        part.memory_bytes,
        precision=builder.common_precision(models),
        offloading=offloading,
        kv_blocks=kv_blocks or builder.deployment.kv_blocks,
        max_batched_tokens=builder.scheduler.max_batched_tokens,
        max_num_seqs=builder.scheduler.max_num_seqs,
        reserved_share=usual if reserved is None else reserved,
        ratio=ratio,
        non_expert_sets=non_expert_sets,
    )


def usable(residency: Residency) -> tuple[Mask | None, ...]:
    """Return the copies that each model can use, None where all are there."""
    return tuple(None if residency.complete else seen for seen in residency.seen)


def store_of(residency: Residency) -> Store:
    """Return what experts run from that are laid out so."""
    return Store(residency.demand.expert_copies, residency.complete)


def _of_the_largest(
    builder: Builder, models: Sequence[str], part: Slice, found: Sequence[Residency]
) -> SliceMemory:
    """Return the memory of a slice while the model is loaded that takes most of it.

    The others wait in host memory with all their weights.
    """
    largest = max(found, key=lambda each: each.plan.used_bytes)
    plans = [each.plan for each in found]
    memory = variants_memory(builder, models, part, largest.demand)
    experts = sum(plan.private_expert_bytes + plan.host_expert_bytes for plan in plans)
    others = sum(plan.non_expert_bytes for plan in plans)
    plan = replace(
        memory.plan,
        host_expert_bytes=experts - memory.plan.private_expert_bytes,
        host_non_expert_bytes=others - memory.plan.non_expert_bytes,
    )
    return replace(memory, plan=plan)
