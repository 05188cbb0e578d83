"""What the parts of a slice's memory are made of, in words."""

from collections.abc import Mapping, Sequence

from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory
from moesim.facts.residents import Residents, plan_residents
from moesim.units import format_bytes

Demand = MemoryDemand | Residents


def plan_of(demand: Demand) -> MemoryPlan:
    """Return the plan of either kind of demand."""
    return plan_memory(demand) if isinstance(demand, MemoryDemand) else plan_residents(demand)


def made_of(demand: Demand, plan: MemoryPlan) -> Mapping[str, str]:
    """Say for each part of a plan what it is made of."""
    own = _variants(demand) if isinstance(demand, MemoryDemand) else _residents(demand)
    return {
        "runtime": f"{100 * demand.reserved_share:g} % of the slice set aside",
        "free": _room(demand, plan),
        **own,
    }


def _variants(demand: MemoryDemand) -> dict[str, str]:
    spec, precision = demand.spec, demand.precision
    shared = min(demand.shared_positions, demand.resident_copies)
    private = demand.resident_copies - shared
    expert = format_bytes(spec.expert_bytes(precision))
    tokens = demand.kv_blocks * demand.block_size
    away = demand.expert_copies - demand.resident_copies
    offloaded = f"; {away:,} more in host memory" if away else ""
    return {
        "non-expert sets": f"{demand.sets} x {format_bytes(spec.non_expert_bytes(precision))}",
        "shared experts": f"{shared:,} x {expert}{'' if private else offloaded}",
        "private experts": f"{private:,} x {expert}{offloaded}",
        "KV cache": f"{tokens:,} tokens in blocks of {demand.block_size}",
        "activations": f"{demand.max_batched_tokens:,} tokens, {demand.max_num_seqs:,} sequences",
    }


def _residents(demand: Residents) -> dict[str, str]:
    names = [model.name for model in demand.models]
    here = [model.name for model in demand.loaded]
    one = ", one model at a time" if demand.swapped else ""
    tokens = [f"{model.kv_blocks * model.block_size:,} tokens" for model in demand.models]
    sizes = {
        "non-expert sets": [format_bytes(model.non_expert_bytes) for model in demand.loaded],
        "private experts": [format_bytes(model.expert_bytes) for model in demand.loaded],
    }
    active = "of all models at once" if demand.at_once else "of the model that runs"
    return {
        **{part: _listed(here, each) + one for part, each in sizes.items()},
        "KV cache": _listed(names, tokens),
        "activations": active if len(names) > 1 else "of one iteration",
    }


def _listed(names: Sequence[str], sizes: Sequence[str]) -> str:
    """List sizes by name, equal ones as so many times one."""
    if len(set(sizes)) == 1:
        return f"{len(sizes)} x {sizes[0]}"
    return ", ".join(f"{name} {size}" for name, size in zip(names, sizes, strict=True))


def _room(demand: Demand, plan: MemoryPlan) -> str:
    """Say how many KV blocks more free memory would hold, the same of each model."""
    if isinstance(demand, MemoryDemand):
        models, block_size = demand.variants, demand.block_size
        blocks = plan.free_bytes // (models * demand.block_bytes)
    else:
        models, block_size = len(demand.models), min(each.block_size for each in demand.models)
        blocks = plan.free_bytes // sum(model.block_bytes for model in demand.models)
    whose = " a model" if models > 1 else ""
    return f"room for {blocks:,} more KV blocks{whose} ({blocks * block_size:,} tokens)"
