"""From a scenario's deployment to replicas: which slices there are, and what runs on each."""

from collections.abc import Iterator, Mapping
from typing import Any

from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile
from moesim.cost.roofline import blocks_beside, on_slice
from moesim.errors import ScenarioError
from moesim.facts.hardware import Device
from moesim.facts.memory import place_replica
from moesim.facts.models import ModelSpec
from moesim.facts.slices import Slice, mig_slices, whole
from moesim.scenario import PROFILED, Dedicated, Scenario, Tenant
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica
from moesim.units import GIB


def limits_of(scenario: Scenario, spec: ModelSpec, block_size: int) -> Limits:
    """Return what each replica of a model accepts."""
    scheduler = scenario.deployment.scheduler
    swap_bytes = int(scheduler.swap_gib * GIB) if scheduler.preemption == "swap" else 0
    return Limits(
        max_num_seqs=scheduler.max_num_seqs,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_model_len=spec.max_position_embeddings,
        policy=POLICIES[scheduler.policy],
        swap_blocks=swap_bytes // (block_size * spec.kv_bytes_per_token),
    )


def cache_of(scenario: Scenario, num_blocks: int, block_size: int) -> KvCache:
    """Return a replica's empty cache."""
    kind = PrefixCache if scenario.deployment.scheduler.prefix_caching else KvCache
    return kind(num_blocks, block_size)


def replicas_of(
    scenario: Scenario, model: str, profile: Profile, device: Device | None
) -> Iterator[Replica]:
    """Yield each replica of a model on its slice."""
    scheduler = scenario.deployment.scheduler
    block_size = profile.kv.block_size
    limits = limits_of(scenario, profile.spec, block_size)
    tenants = {name: t for name, t in scenario.tenants.items() if t.model == model}
    block_bytes = block_size * profile.spec.kv_bytes_per_token
    costs: dict[Slice | None, CostModel] = {}  # one for all replicas on slices of a kind
    for index, part in enumerate(slices_of(scenario, model, device)):
        if part not in costs:
            costs[part] = CostModel(
                on_slice(profile, device, part) if device and part else profile,
                max_batched_tokens=limits.max_batched_tokens,
                max_num_seqs=limits.max_num_seqs,
            )
        yield Replica(
            name=f"{model}/{index}",
            limits=limits,
            cache=cache_of(scenario, _num_blocks(scenario, model, profile, part), block_size),
            cost=costs[part],
            # With one tenant there is only the order of arrival.
            order=scheduler.order if len(tenants) > 1 else "fcfs",
            priorities=_by_tenant(tenants, "priority") if scheduler.order == "priority" else {},
            weights=_by_tenant(tenants, "weight") if scheduler.order == "fair" else {},
            swap_block_s=block_bytes / (scheduler.swap_gb_per_s or 1.0) / 1e9,
        )


def _by_tenant(tenants: Mapping[str, Tenant], field: str) -> dict[str, Any]:
    return {name: getattr(tenant, field) for name, tenant in tenants.items()}


def slices_of(scenario: Scenario, model: str, device: Device | None) -> list[Slice] | list[None]:
    """Return what each replica of a model runs on; None is the device that was profiled.

    Raises ScenarioError or CapacityError where a MIG layout does not exist.
    """
    deployment = scenario.deployment
    if isinstance(deployment, Dedicated):
        return [whole(device)] * deployment.replicas if device else [None] * deployment.replicas
    if device is None:
        raise ScenarioError(
            f"deployment.kind: mig needs a hardware.device that can be divided, not {PROFILED!r}"
        )
    parts = mig_slices(device, deployment.layout)
    return [parts[index] for index in deployment.dealt(list(scenario.models))[model]]


def _num_blocks(scenario: Scenario, model: str, profile: Profile, part: Slice | None) -> int:
    """Return a replica's KV blocks; CapacityError where they do not fit its slice."""
    asked, own, size = scenario.deployment.kv_blocks, profile.kv.num_blocks, profile.kv.block_size
    if part is None:
        return asked or own
    fit = own if part.whole else max(1, blocks_beside(profile.spec, part.memory_bytes, size))
    blocks = asked or fit
    place_replica(
        model,
        profile.spec,
        kv_blocks=blocks,
        block_size=size,
        device=part.name,
        device_bytes=part.memory_bytes,
    )
    return blocks
