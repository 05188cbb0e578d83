"""The way out where memory does not suffice: the smallest change of each kind that makes it fit."""

from bisect import bisect_left
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from math import ceil, floor

from moesim.errors import CapacityError
from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory
from moesim.facts.precision import Precision
from moesim.units import format_bytes

NARROWER = ("fp8", "int4")
"""Formats that are tried for what does not fit; int8 takes what fp8 takes."""

STEPS = 1000
"""Ratios in a remedy are in thousandths, rounded up to what fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """A change that makes a demand fit, as a person would say it, and the demand it makes."""

    change: str
    demand: MemoryDemand


def require_fit(name: str, demand: MemoryDemand, slices: Mapping[str, int]) -> MemoryPlan:
    """Return the plan of a demand that fits.

    Raises CapacityError with needs, has and remedies where it does not; `slices` are the other
    slices that could be taken, name to bytes.
    """
    plan = plan_memory(demand)
    if not plan.fits:
        raise CapacityError(f"{name}: {shortfall(demand, slices)}")
    return plan


def shortfall(demand: MemoryDemand, slices: Mapping[str, int]) -> str:
    """Say what does not fit, and the nearest changes that would make it."""
    plan = plan_memory(demand)
    found = [remedy.change for remedy in remedies(demand, slices)]
    ways = "; or ".join(found) or "no single change is enough; make several"
    return (
        f"needs {format_bytes(plan.used_bytes)}, has {format_bytes(plan.slice_bytes)}: "
        f"{format_bytes(plan.short_by_bytes)} too many; {ways}"
    )


def remedies(demand: MemoryDemand, slices: Mapping[str, int]) -> list[Remedy]:
    """Return the smallest change of each kind that makes a demand fit; none where it does."""
    if plan_memory(demand).fits:
        return []
    found = (
        _fewer_blocks(demand),
        _fewer_sets(demand),
        _higher_ratio(demand),
        _fewer_resident(demand),
        _narrower(demand),
        _larger_slice(demand, slices),
    )
    return [remedy for remedy in found if remedy is not None]


def fill_with_experts(demand: MemoryDemand) -> MemoryDemand:
    """Return the demand with as many experts resident as fit beside the rest.

    At least as many as one layer visits for a token have to; if not even these fit, the demand
    stays as it is.
    """
    remedy = _fewer_resident(replace(demand, resident=1.0))
    whole = replace(demand, resident=1.0)
    if remedy is None:
        return whole if plan_memory(whole).fits else demand
    return remedy.demand


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


def _narrower(demand: MemoryDemand) -> Remedy | None:
    """Quantise the experts, or where that is not enough everything that can be."""
    now = demand.precision
    options = [replace(now, experts=name) for name in NARROWER]
    options += [replace(now, experts=name, rest=name) for name in NARROWER]
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
    for name, size in _from_the_smallest(slices):
        changed = replace(demand, slice_bytes=size)
        if size > demand.slice_bytes and plan_memory(changed).fits:
            return Remedy(change=f"take {name} ({format_bytes(size)})", demand=changed)
    return None


def _from_the_smallest(slices: Mapping[str, int]) -> Iterator[tuple[str, int]]:
    yield from sorted(slices.items(), key=lambda item: item[1])
