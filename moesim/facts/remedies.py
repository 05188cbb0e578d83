"""The way out where memory does not suffice: the smallest change of each kind that makes it fit."""

from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import ceil, floor

from moesim.facts.catalog import load_device, shipped
from moesim.facts.hardware import Device
from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory
from moesim.facts.mig import geometry_of
from moesim.facts.precision import Precision
from moesim.units import format_bytes

NARROWER = ("fp8", "int4")
"""Formats that are tried for what does not fit, unless told; int8 takes what fp8 takes."""

STEPS = 1000
"""Ratios in a remedy are in thousandths, rounded up to what fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change that makes a demand fit, as a person would say it, and the demand it makes."""

    change: str
    demand: MemoryDemand


def shortfall(
    demand: MemoryDemand, slices: Mapping[str, int], formats: Sequence[str] = NARROWER
) -> str:
    """Say what does not fit, and the nearest changes that would make it.

    `slices` are the other slices that could be taken, name to bytes; `formats` the narrower ones.
    """
    return short_of(plan_memory(demand), [r.change for r in remedies(demand, slices, formats)])


def short_of(plan: MemoryPlan, ways: Sequence[str]) -> str:
    """Say by how much a plan does not fit, and the ways out."""
    return (
        f"needs {format_bytes(plan.used_bytes)}, has {format_bytes(plan.slice_bytes)}: "
        f"{format_bytes(plan.short_by_bytes)} too many; "
        f"{'; or '.join(ways) or 'no single change is enough; make several'}"
    )


def narrower(device: Device) -> tuple[str, ...]:
    """Return the narrower formats that a device computes with."""
    return ("fp8" if device.fp8_flop_per_s else "int8", "int4")


def remedies(
    demand: MemoryDemand, slices: Mapping[str, int], formats: Sequence[str] = NARROWER
) -> list[Remedy]:
    """Return the smallest change of each kind that makes a demand fit; none where it does."""
    if plan_memory(demand).fits:
        return []
    found = (
        _fewer_blocks(demand),
        _fewer_sets(demand),
        _higher_ratio(demand),
        _fewer_resident(demand),
        _narrower(demand, formats),
        _larger_slice(demand, slices),
    )
    return [remedy for remedy in found if remedy is not None]


def fill_with_experts(demand: MemoryDemand) -> MemoryDemand:
    """Return the demand with as many experts resident as fit beside the rest.

    At least as many as one layer visits for a token have to; if not even these fit, it is with
    these, so that the plan shows what the rest has too much.
    """
    whole = replace(demand, resident=1.0)
    if plan_memory(whole).fits or not whole.expert_copies:
        return whole
    remedy = _fewer_resident(whole)
    if remedy is not None:
        return remedy.demand
    fewest = min(demand.spec.num_experts_per_tok, whole.expert_copies)
    return replace(whole, resident=_at_most(fewest, whole.expert_copies))


def fill_with_blocks(demand: MemoryDemand, most: int | None = None) -> MemoryDemand:
    """Return the demand with what is free as KV blocks of the variants, the same of each.

    None gets fewer than it has, nor beyond that more than `most`.
    """
    free = plan_memory(demand).free_bytes // demand.block_bytes
    room = (demand.kv_blocks + free) // demand.variants
    each = room if most is None else min(room, most)
    return replace(demand, kv_blocks=max(demand.kv_blocks, each * demand.variants))


def other_slices(device: Device, *, fp8: bool = False, proviso: str = "") -> dict[str, int]:
    """Return what could be taken in place of a device or its slices, name to bytes.

    What the planner has first: the device's MIG profiles and itself whole; then the other shipped
    GPUs, so that nobody is sent to buy a card for want of a larger slice. The smallest are first.
    Another GPU has to compute in fp8 if that is needed; a `proviso` is what else taking it asks.
    """
    profiles = geometry_of(device).profiles if device.mig else ()
    gpus = [each for name in shipped("hardware") if (each := load_device(name)).kind == "cuda"]
    own = {profile.name: profile.memory_bytes for profile in profiles}
    own |= {f"a whole {gpu.name}": gpu.memory_bytes for gpu in gpus if gpu.name == device.name}
    others = {
        f"a whole {gpu.name}{proviso}": gpu.memory_bytes
        for gpu in gpus
        if gpu.name != device.name and (gpu.fp8_flop_per_s or not fp8)
    }
    return _smallest_first(own) | _smallest_first(others)


def _smallest_first(slices: Mapping[str, int]) -> dict[str, int]:
    return dict(sorted(slices.items(), key=lambda item: item[1]))


def larger_slice(
    slices: Mapping[str, int], enough: Callable[[int], bool]
) -> tuple[str, int] | None:
    """Return the first slice that is `enough`, as a person would take it, and its bytes [B]."""
    for name, size in slices.items():
        if enough(size):
            return f"take {name} ({format_bytes(size)})", size
    return None


def _fewer_blocks(demand: MemoryDemand) -> Remedy | None:
    over = -(-plan_memory(demand).short_by_bytes // demand.block_bytes)
    blocks = demand.kv_blocks - over
    if blocks < 1:
        return None
    tokens = blocks * demand.block_size
    return Remedy(
        change=f"keep {tokens:,} tokens of KV cache ({over:,} blocks fewer)",
        demand=replace(demand, kv_blocks=blocks),
    )


def _fewer_sets(demand: MemoryDemand) -> Remedy | None:
    for sets in range(demand.sets - 1, 0, -1):
        changed = replace(demand, non_expert_sets=sets)
        if plan_memory(changed).fits:
            return Remedy(
                change=f"keep {sets} of {demand.variants} non-expert sets resident",
                demand=changed,
            )
    return None


def _higher_ratio(demand: MemoryDemand) -> Remedy | None:
    positions = demand.spec.expert_positions
    if demand.variants == 1 or not positions:
        return None

    def sharing(steps: int) -> MemoryDemand:
        return replace(demand, ratio=steps / STEPS)

    first = ceil(demand.ratio * STEPS)
    steps = range(first, STEPS + 1)
    index = bisect_left(steps, True, key=lambda step: plan_memory(sharing(step)).fits)
    if index == len(steps):
        return None
    changed = sharing(steps[index])
    if changed.resident_copies < min(demand.resident_copies, demand.spec.num_experts_per_tok):
        return None  # it would fit because hardly an expert is left
    return Remedy(
        change=f"raise the consolidation ratio to {changed.ratio:g} "
        f"({changed.shared_positions:,} of {positions:,} expert positions shared)",
        demand=changed,
    )


def _fewer_resident(demand: MemoryDemand) -> Remedy | None:
    """Offload as few experts as it takes."""
    expert_bytes = demand.spec.expert_bytes(demand.precision)
    short = plan_memory(demand).short_by_bytes
    if not short or not demand.expert_copies:
        return None
    most = demand.resident_copies - -(-short // expert_bytes)
    if most < demand.spec.num_experts_per_tok:
        return None
    changed = replace(demand, resident=_at_most(most, demand.expert_copies))
    away = demand.expert_copies - changed.resident_copies
    return Remedy(
        change=f"offload {away:,} of {demand.expert_copies:,} experts to host memory "
        f"(residency {changed.resident:g})",
        demand=changed,
    )


def _at_most(part: int, whole: int) -> float:
    """Return the shortest fraction, of no more than it takes, of which `whole` gives `part`."""
    rounded = (floor(scale * part / whole) / scale for scale in (100, 1000, 10**4, 10**5, 10**6))
    return next((short for short in rounded if round(short * whole) == part), part / whole)


def _narrower(demand: MemoryDemand, formats: Sequence[str]) -> Remedy | None:
    """Quantise the experts, or where that is not enough everything that can be."""
    now = demand.precision
    options = [replace(now, experts=name) for name in formats]
    options += [replace(now, experts=name, rest=name) for name in formats]
    for option in options:
        changed = replace(demand, precision=option)
        if plan_memory(changed).fits:
            return Remedy(change=_narrowing(now, option), demand=changed)
    return None


def _narrowing(now: Precision, then: Precision) -> str:
    if now.rest == then.rest:
        return f"store the experts in {then.experts}"
    return f"store the weights in {then.rest}"


def _larger_slice(demand: MemoryDemand, slices: Mapping[str, int]) -> Remedy | None:
    def on(size: int) -> MemoryDemand:
        return replace(demand, slice_bytes=size)

    larger = {name: size for name, size in slices.items() if size > demand.slice_bytes}
    found = larger_slice(larger, lambda size: plan_memory(on(size)).fits)
    return Remedy(change=found[0], demand=on(found[1])) if found else None
