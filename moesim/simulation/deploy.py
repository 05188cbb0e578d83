"""From a scenario's deployment to stations: which slices there are, and what runs on each."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from zlib import crc32

import numpy as np

from moesim.cost.iteration import Cost
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
from moesim.facts.slices import Slice, check_divides, group, mig_slices, whole
from moesim.scenario import Scenario
from moesim.simulation.builder import Builder
from moesim.simulation.draft import Draft, Drafted, by_link, factors_of
from moesim.simulation.drafting import lone, offloaded, side_by_side, swapped_whole
from moesim.simulation.gateway import Gateway
from moesim.simulation.inputs import Inputs
from moesim.simulation.pool import pooled, pooled_offloaded
from moesim.simulation.station import Pricing, Station
from moesim.simulation.turns import Rules


def stations_of(scenario: Scenario, inputs: Inputs) -> list[Station]:
    """Return every slice with what runs on it.

    Raises ScenarioError or CapacityError where a slice does not exist or hold what it should.
    """
    return [station for each in drafted_of(scenario, inputs) for station in each.stations()]


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
        rules = _rules(builder, deployment.turns, deployment.quantum_s, [0.0] * len(here))
        if here and deployment.experts is not None:
            drafts.append(offloaded(builder, here, part, deployment.experts, rules=rules))
        elif here:
            drafts.append(side_by_side(builder, here, part, rules=rules))
    return Drafted(drafts=drafts, pricing=by_link)


def _mps(builder: Builder, deployment: Mps, models: Sequence[str]) -> Drafted:
    """Draft each model on SMs of its own; memory and bandwidth are everybody's."""
    device = builder.device
    parts = {
        model: Slice(
            name=f"{device.name}/{deployment.sm_percent[model]:g} % of the SMs",
            compute_share=deployment.sm_percent[model] / 100,
            bandwidth_share=1.0,
            memory_bytes=device.memory_bytes,
        )
        for model in models
    }
    if deployment.experts is None:
        drafts = pooled(builder, parts)
    else:
        drafts = pooled_offloaded(builder, parts, deployment.experts)

    def beside_others(drafts: Sequence[Draft]) -> Pricing:
        factor = factors_of(drafts)

        def pricing(member: int, busy: frozenset[int]) -> Sequence[Cost]:
            part = replace(parts[models[member]], bandwidth_share=1 / len(busy))
            own = builder.cost(models[member], part)
            return drafts[member].costs(factor(member, busy) if factor else 1.0, [own])

        return pricing

    return Drafted(drafts=drafts, pricing=beside_others if len(models) > 1 else None, pool=True)


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
            + deployment.load_overhead_s
            for model, count in zip(models, held, strict=True)
        ]
        rules = _rules(builder, deployment.turns, deployment.quantum_s, loads_s)
        drafts.append(replace(draft, rules=rules))
    return Drafted(drafts=drafts, pricing=by_link if deployment.layout else None)


def _offloaded(builder: Builder, deployment: Offloaded, models: Sequence[str]) -> Drafted:
    rules = _rules(builder, deployment.turns, deployment.quantum_s, [0.0] * len(models))
    drafts = [
        offloaded(builder, models, part, deployment.experts, rules=rules)
        for part in _parts(builder, deployment)
    ]
    return Drafted(drafts=drafts, pricing=by_link if deployment.layout else None)


def _consolidated(builder: Builder, deployment: Consolidated, models: Sequence[str]) -> Drafted:
    one = deployment.non_expert_sets == "one" and len(models) > 1
    swaps_s = [
        builder.swap_s(
            model,
            builder.non_expert_bytes(model),
            deployment.swap_gb_per_s,
            what="non_expert_set",
        )
        + deployment.swap_overhead_s
        if one
        else 0.0
        for model in models
    ]
    rules = _rules(builder, deployment.turns, deployment.quantum_s, swaps_s)
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
    return Drafted(drafts=drafts, pricing=by_link if deployment.layout else None)


def _rules(builder: Builder, turns: str, quantum_s: float, reconfigure_s: Sequence[float]) -> Rules:
    return Rules(
        policy=turns,
        quantum_s=quantum_s,
        reconfigure_s=tuple(reconfigure_s),
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
