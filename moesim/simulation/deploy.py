"""From a scenario's deployment to stations: which slices there are, and what runs on each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from zlib import crc32

import numpy as np

from moesim.cost.iteration import Cost
from moesim.cost.link import fair_level
from moesim.deployment import (
    Consolidated,
    Dedicated,
    ExpertParallel,
    ExpertRouter,
    Mig,
    Mps,
    Offloaded,
    TensorParallel,
    TimeShared,
)
from moesim.facts.hardware import Device
from moesim.facts.slices import Slice, check_divides, group, mig_slices, whole
from moesim.facts.sm_share import ASSUMED, drawn, sm_share
from moesim.scenario import Scenario
from moesim.simulation.builder import Builder
from moesim.simulation.crowd import Busy, Crowd
from moesim.simulation.draft import Draft, Drafted
from moesim.simulation.drafting import lone, offloaded, side_by_side, swapped_whole
from moesim.simulation.gateway import Gateway
from moesim.simulation.inputs import Inputs
from moesim.simulation.pool import pooled, pooled_offloaded
from moesim.simulation.rivals import beside, rivals_of
from moesim.simulation.station import Station
from moesim.simulation.turns import Rules


def stations_of(scenario: Scenario, inputs: Inputs) -> list[Station]:
    """Return every slice with what runs on it.

    Raises ScenarioError or CapacityError where a slice does not exist or hold what it should.
    """
    return stations_from(drafted_of(scenario, inputs))


def stations_from(drafted: Sequence[Drafted]) -> list[Station]:
    """Return the stations of drafts; CapacityError where a slice does not hold what it should."""
    return [station for each in drafted for station in each.stations()]


def absent_experts(drafted: Sequence[Drafted]) -> str:
    """Say how many copies of experts wait in host memory, nothing where none does."""
    found = [
        f"{away:,} of {each.demand.expert_copies:,} expert copies of {' + '.join(names)}"
        for part in drafted
        for draft in part.drafts
        for names, each in draft.laid_out()
        if (away := each.demand.expert_copies - each.demand.resident_copies)
    ]
    return f"in host memory: {', '.join(dict.fromkeys(found))}" if found else ""


def drafted_of(scenario: Scenario, inputs: Inputs) -> list[Drafted]:
    """Return drafts of every slice, whether or not it holds what it should.

    Raises ScenarioError or CapacityError where a slice does not exist.
    """
    deployment = scenario.deployment
    if not isinstance(deployment, ExpertRouter):
        return [_drafted(Builder(scenario, inputs, deployment), list(scenario.models))]
    return [
        _drafted(Builder(scenario, inputs, own), [model])
        for model, own in deployment.experts.items()
    ]


def assumed(scenario: Scenario, device: Device | None) -> list[str]:
    """Say what a deployment's durations take for granted beyond the profiles."""
    deployment = scenario.deployment
    if not isinstance(deployment, Mps) or device is None or device.sm_bytes_per_s:
        return []
    percents = deployment.sm_percent.values()
    return [ASSUMED] if any(drawn(device, percent / 100) < 1 for percent in percents) else []


def gateway_of(scenario: Scenario, seed: int) -> Gateway | None:
    """Return the gateway before a scenario's models; None where tenants ask them directly."""
    if not isinstance(scenario.deployment, ExpertRouter):
        return None
    gateway = scenario.deployment.gateway
    return Gateway(
        gateway.shares,
        classify_s=gateway.classify_s,
        rng=np.random.default_rng([seed, crc32(gateway.name.encode())]),
    )


def _drafted(builder: Builder, models: Sequence[str]) -> Drafted:
    return _KINDS[builder.deployment.kind](builder, builder.deployment, models)


def _dedicated(builder: Builder, deployment: Dedicated, models: Sequence[str]) -> Drafted:
    if deployment.experts is None:
        part = whole(builder.device) if builder.has_device else None
        drafts = [lone(builder, model, part) for model in models]
    else:
        part = whole(builder.device)
        drafts = [offloaded(builder, [model], part, deployment.experts) for model in models]
    return Drafted(drafts=[draft for draft in drafts for _ in range(deployment.replicas)])


def _grouped(
    builder: Builder, deployment: TensorParallel | ExpertParallel, models: Sequence[str]
) -> Drafted:
    parts = 1 if isinstance(deployment, TensorParallel) else deployment.expert_parallel
    part = group(builder.device, tensor_parallel=deployment.tensor_parallel, expert_parallel=parts)
    for model in models:
        check_divides(builder.profile(model).spec, part)
    drafts = [lone(builder, model, part) for model in models]
    return Drafted(drafts=[draft for draft in drafts for _ in range(deployment.replicas)])


def _mig(builder: Builder, deployment: Mig, models: Sequence[str]) -> Drafted:
    dealt = deployment.dealt(models)
    drafts = []
    for index, part in enumerate(mig_slices(builder.device, deployment.layout)):
        here = [model for model in models if index in dealt[model]]
        rules = _rules(builder, deployment, [0.0] * len(here))
        if here and deployment.experts is not None:
            drafts.append(offloaded(builder, here, part, deployment.experts, rules=rules))
        elif here:
            drafts.append(side_by_side(builder, here, part, rules=rules))
    return Drafted(drafts=drafts, crowding=beside)


def _mps(builder: Builder, deployment: Mps, models: Sequence[str]) -> Drafted:
    """Draft each model on SMs of its own; memory and bandwidth are everybody's.

    The busy divide the bandwidth fairly: who can draw less than an even part leaves the rest.
    """
    parts = {model: sm_share(builder.device, deployment.sm_percent[model]) for model in models}
    if deployment.experts is None:
        drafts = pooled(builder, parts)
    else:
        drafts = pooled_offloaded(builder, parts, deployment.experts)

    def beside_others(drafts: Sequence[Draft]) -> Crowd:
        rivals = rivals_of(drafts)

        def pricing(member: int, busy: Busy) -> Sequence[Cost]:
            most = {place: parts[models[place]].bandwidth_share for place in busy.running}
            share = min(most[member], fair_level(list(most.values())))
            (store,) = drafts[member].stores
            own = builder.cost(
                models[member], replace(parts[models[member]], bandwidth_share=share), store
            )
            link, cpu = rivals.link_stretch(member, busy), rivals.cpu_stretch(member, busy)
            return drafts[member].costs(link, cpu, [own])

        return Crowd(pricing=pricing, stretching=rivals.link_stretch)

    return Drafted(drafts=drafts, crowding=beside_others if len(models) > 1 else None, pool=True)


def _time_shared(builder: Builder, deployment: TimeShared, models: Sequence[str]) -> Drafted:
    drafts = []
    for part in _parts(builder, deployment):
        if deployment.experts is None:
            draft = side_by_side(builder, models, part, swapped=True)
            held = [builder.weight_bytes(model) for model in models]
        else:
            draft, held = swapped_whole(builder, models, part, deployment.experts)
        loads_s = [
            builder.swap_s(model, count, deployment.load_gb_per_s, what="whole_model")
            for model, count in zip(models, held, strict=True)
        ]
        rules = _rules(builder, deployment, loads_s, deployment.load_overhead_s)
        drafts.append(replace(draft, rules=rules))
    return Drafted(drafts=drafts, crowding=beside if deployment.layout else None)


def _offloaded(builder: Builder, deployment: Offloaded, models: Sequence[str]) -> Drafted:
    rules = _rules(builder, deployment, [0.0] * len(models))
    drafts = [
        offloaded(builder, models, part, deployment.experts, rules=rules)
        for part in _parts(builder, deployment)
    ]
    return Drafted(drafts=drafts, crowding=beside if deployment.layout else None)


def _consolidated(builder: Builder, deployment: Consolidated, models: Sequence[str]) -> Drafted:
    one = deployment.non_expert_sets == "one" and len(models) > 1
    swaps_s = [
        builder.swap_s(
            model,
            builder.non_expert_bytes(model),
            deployment.swap_gb_per_s,
            what="non_expert_set",
        )
        if one
        else 0.0
        for model in models
    ]
    rules = _rules(builder, deployment, swaps_s, deployment.swap_overhead_s if one else 0.0)
    drafts = [
        offloaded(
            builder,
            models,
            part,
            deployment.experts,
            rules=rules,
            ratio=deployment.ratio,
            non_expert_sets=1 if one else None,
        )
        for part in _parts(builder, deployment)
    ]
    return Drafted(drafts=drafts, crowding=beside if deployment.layout else None)


def _rules(
    builder: Builder,
    deployment: Mig | TimeShared | Offloaded | Consolidated,
    copy_s: Sequence[float],
    overhead_s: float = 0.0,
) -> Rules:
    """Return how models share a slice; a change copies for `copy_s` and takes the overhead too.

    Where there are no neighbours the copy has the link for itself, and is no step of its own.
    """
    return Rules(
        policy=deployment.turns,
        quantum_s=deployment.quantum_s,
        reconfigure_s=tuple(copied_s + overhead_s for copied_s in copy_s),
        copy_s=tuple(copy_s) if deployment.layout else (),
        urgent=builder.scheduler.order == "priority",
    )


def _parts(builder: Builder, deployment: TimeShared | Offloaded | Consolidated) -> list[Slice]:
    """Return the slices that each have all models."""
    if deployment.layout:
        return mig_slices(builder.device, deployment.layout)
    return [whole(builder.device)] * deployment.replicas


_KINDS: Mapping[str, Callable[..., Drafted]] = MappingProxyType(
    {
        "dedicated": _dedicated,
        "tensor_parallel": _grouped,
        "expert_parallel": _grouped,
        "mig": _mig,
        "mps": _mps,
        "time_shared": _time_shared,
        "offloaded": _offloaded,
        "consolidated": _consolidated,
    }
)
