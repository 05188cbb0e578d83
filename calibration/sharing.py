"""Several models on one device, served for real as a scenario's deployment says.

| kind | the engine |
|---|---|
| consolidated | variants of one family: shared experts by similarity, layers swapped or all there |
| offloaded | the same without a layout; all non-expert sets are there |
| time_shared | whole models swapped (`calibration.whole_models`) |
| expert_router | each expert model alone, one stream after the other, behind the gateway's draws |
| mps | an engine a model, each on a share of the device (`calibration.slices`) |

Expert models have a device each, and nothing in common once the gateway has sent a prompt on. So
one device that serves their streams one after the other does what several do at once.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd
import torch
from pydantic import BaseModel

from calibration.clients import Clients, Prompts
from calibration.probe import probe_s
from calibration.serving import engine_config, named_requests, warm_up
from calibration.whole_models import whole_models
from engine.model.checkpoint import load_decoder
from engine.serve.clock import WallClock
from engine.serve.engine import Engine
from engine.variants.command import consolidate
from engine.variants.copies import Popularity
from engine.variants.family import ALL, ONE, PACKED, Family, Sharing, load_family
from engine.variants.layout import Layout
from engine.variants.positions import positions_of
from engine.variants.serving import Turns, VariantsEngine, VariantsWallClock
from engine.variants.store import Residency
from moesim.commands import Reporter
from moesim.cost.profile import Profile
from moesim.deployment import (
    Consolidated,
    Dedicated,
    ExpertRouter,
    Mps,
    Offloaded,
    Offloading,
    TimeShared,
)
from moesim.errors import ScenarioError
from moesim.facts.memory import MemoryDemand
from moesim.requests import draw_requests
from moesim.scenario import Scenario
from moesim.serving.records import Ledger
from moesim.simulation.deploy import drafted_of, gateway_of
from moesim.simulation.draft import Draft
from moesim.simulation.inputs import load_inputs
from moesim.simulation.users import users_of
from moesim.traffic.users import Users

Part = TypeVar("Part", bound=BaseModel)
Shared = Consolidated | Offloaded | TimeShared


def refuse_unservable(scenario: Scenario) -> None:
    """Raise ScenarioError where a deployment has what the engine, on one device, has not."""
    deployment = scenario.deployment
    if isinstance(deployment, Consolidated | Offloaded | TimeShared):
        wrong = _shared_problem(deployment)
    elif isinstance(deployment, ExpertRouter):
        wrong = _router_problem(deployment, scenario)
    elif isinstance(deployment, Mps):
        wrong = _shares_problem(deployment, scenario)
    else:
        wrong = (
            f"kind: {deployment.kind}: models that share a device are validated consolidated, "
            "offloaded, time_shared, mps or behind an expert_router"
        )
    if wrong:
        raise ScenarioError(f"scenario {scenario.name}: deployment.{wrong}")


def _shared_problem(deployment: Shared) -> str:
    if deployment.layout is not None or deployment.replicas != 1:
        return "replicas: models are validated on one whole device; leave layout and replicas out"
    if isinstance(deployment, TimeShared):
        return "experts: whole models are swapped with all theirs" if deployment.experts else ""
    if deployment.experts.cpu_s_per_token_expert is not None:
        return "experts.cpu_s_per_token_expert: the engine computes no absent expert on the CPU"
    return ""


def _router_problem(deployment: ExpertRouter, scenario: Scenario) -> str:
    for name, own in deployment.experts.items():
        if not isinstance(own, Dedicated) or own.replicas != 1 or own.experts is not None:
            return f"experts.{name}: expert models are validated dedicated, one replica each"
    if any(isinstance(tenant.arrivals, Users) for tenant in scenario.tenants.values()):
        return (
            "gateway: users wait for one model before they ask another, which streams that are "
            "served one after the other cannot show; use arrivals of another kind"
        )
    return ""


def _shares_problem(deployment: Mps, scenario: Scenario) -> str:
    if deployment.experts is not None:
        return "experts: on shares of a device all experts are resident; leave experts out"
    if any(isinstance(tenant.arrivals, Users) for tenant in scenario.tenants.values()):
        return "kind: mps: users are not validated on shares; use arrivals of another kind"
    return ""


def served_together(scenario: Scenario, folders: Mapping[str, Path]) -> Scenario:
    """Return a scenario with checkpoints of this host as its models.

    What it says of other hosts and software, the speed of copies and floors, is left out: here
    the profile knows, and the engine has no floor.
    """
    models = {
        name: model.model_copy(
            update={
                "architecture": str(folders.get(name, model.architecture)),
                "precision": None,
                "kv_precision": None,
            }
        )
        for name, model in scenario.models.items()
    }
    deployment = scenario.deployment
    without = {
        "swap_gb_per_s": None,
        "load_gb_per_s": None,
        "swap_overhead_s": 0.0,
        "load_overhead_s": 0.0,
        "load_latency_s": 0.0,
        "floor_s": 0.0,
    }
    return scenario.model_copy(
        update={"models": models, "deployment": _without(deployment, without), "alternatives": {}}
    )


def _without(part: Part, values: Mapping[str, object]) -> Part:
    """Return a part of a deployment with some fields set, those of its own parts too."""
    fields = type(part).model_fields
    update = {name: value for name, value in values.items() if name in fields}
    for name in ("scheduler", "experts"):
        inner = getattr(part, name, None)
        if isinstance(inner, BaseModel):
            update[name] = _without(inner, values)
        elif isinstance(inner, Mapping):
            update[name] = {key: _without(own, values) for key, own in inner.items()}
    return part.model_copy(update=update)


class LateClock(VariantsWallClock):
    """Real time from when it is begun, not from when the engine was set up."""

    def begin(self) -> None:
        """Let time begin now."""
        self._start = time.perf_counter()


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What serves a scenario: the family, how its replicas are set up, in what turns."""

    family: Family
    blocks: int
    turns: Turns


def host_of(
    scenario: Scenario,
    profiles: Mapping[str, Profile],
    folders: Mapping[str, Path],
    device: torch.device,
    swap: str = PACKED,
    layout: Layout | None = None,
) -> Host:
    """Load the models as the simulator lays them out: as many resident copies, as many blocks.

    `swap` is the way in which non-expert sets are replaced, one of `engine.variants.family`. The
    `layout` of a consolidation is made where none is given.
    """
    deployment = scenario.deployment
    assert isinstance(deployment, Consolidated | Offloaded | TimeShared)  # noqa: S101 was checked
    draft = drafted_of(scenario, load_inputs(scenario, profiles))[0].drafts[0]
    if draft.memory is not None:
        draft.memory.require_fit()
    return Host(
        family=_family(deployment, draft, profiles, folders, device, swap, layout),
        blocks=min(draft.blocks),
        turns=Turns(policy=deployment.turns, quantum_s=deployment.quantum_s),
    )


def _family(
    deployment: Shared,
    draft: Draft,
    profiles: Mapping[str, Profile],
    folders: Mapping[str, Path],
    device: torch.device,
    swap: str,
    layout: Layout | None,
) -> Family:
    if isinstance(deployment, TimeShared):
        return whole_models(folders, device)
    one = isinstance(deployment, Consolidated) and deployment.non_expert_sets == "one"
    sharing = Sharing(
        residency=residency_of(deployment.experts, draft),
        non_expert_sets=ONE if one and len(folders) > 1 else ALL,
        swap=swap,
    )
    if layout is None and isinstance(deployment, Consolidated) and len(folders) > 1:
        layout = consolidate(folders, deployment.ratio, lambda done, what: None)
    popularity = [popularity_of(profiles[name]) for name in folders]
    return load_family(folders, sharing, device, layout=layout, popularity=popularity)


def residency_of(experts: Offloading, draft: Draft) -> Residency:
    """Return which copies stay: as many as the simulator takes to be resident."""
    demand = draft.memory.demand if draft.memory else None
    resident = 1.0
    if isinstance(demand, MemoryDemand) and demand.expert_copies:
        resident = demand.resident_copies / demand.expert_copies
    cache = "pinned" if experts.cache == "lfu" else experts.cache
    return Residency(resident=resident, cache=cache, prefetch=experts.overlap)


def popularity_of(profile: Profile) -> Popularity:
    """Return a router's popularity by position; its rows are those of layers with experts."""
    shares = [share for row in profile.router.popularity for share in row]
    return dict(zip(positions_of(profile.spec), shares, strict=True))


def serve_together(
    host: Host,
    scenario: Scenario,
    profiles: Mapping[str, Profile],
    progress: Reporter,
    *,
    title: str,
    seed: int,
    run: int,
    clock: LateClock | None = None,
) -> tuple[pd.DataFrame, float]:
    """Serve a workload once in real time; return the records and the probe's duration [s]."""
    profile = next(iter(profiles.values()))
    config = replace(engine_config(scenario, profile, run), num_blocks=host.blocks)
    warm = VariantsEngine(host.family, config, host.turns)
    for seat in warm.seats.values():
        warm_up(seat)
    before_s = probe_s(warm.seats[host.family.names[0]])
    del warm
    clients = Clients(
        named_requests(draw_requests(scenario, seed), scenario, config.block_size),
        users_of(scenario, config.block_size, seed),
        Prompts(profile.spec.vocab_size, config.block_size, (seed, run)),
        until_s=scenario.duration_s,
    )
    clock = clock or LateClock()
    engine = VariantsEngine(host.family, config, host.turns, clock)
    clock.begin()
    records = engine.serve(clients, _told(progress, scenario, title))
    after_s = probe_s(engine.seats[host.family.names[0]])
    in_order = records.sort_values(["arrival_s", "request_id"], ignore_index=True)
    return in_order, (before_s + after_s) / 2


def serve_behind_gateway(
    scenario: Scenario,
    profiles: Mapping[str, Profile],
    folders: Mapping[str, Path],
    device: torch.device,
    progress: Reporter,
    *,
    title: str,
    seed: int,
    run: int,
) -> tuple[pd.DataFrame, float]:
    """Serve each expert model's prompts, one stream after the other, as the gateway sends them.

    Returns the records, and the mean of the probes before the streams [s].
    """
    gateway = gateway_of(scenario, seed)
    assert gateway is not None  # noqa: S101 the deployment is an expert router
    sent = gateway.all_sent(draw_requests(scenario, seed))
    tables, probes_s = [], []
    for name, folder in folders.items():
        profile, own = profiles[name], scenario.deployment_of(name)
        config = engine_config(scenario.model_copy(update={"deployment": own}), profile, run)
        share = sent[sent["model"] == name]
        clients = Clients(
            named_requests(share, scenario, config.block_size),
            (),
            Prompts(profile.spec.vocab_size, config.block_size, (seed, run)),
            until_s=scenario.duration_s,
        )
        engine = Engine(load_decoder(folder, device), config)
        warm_up(engine)
        probes_s.append(probe_s(engine))
        engine.ledger, engine.clock = Ledger(), WallClock()
        tables.append(engine.serve(clients, _told(progress, scenario, f"{title}, {name}")))
    records = pd.concat([table for table in tables if len(table)])
    in_order = records.sort_values(["arrival_s", "request_id"], ignore_index=True)
    return in_order, float(np.mean(probes_s))


def _told(progress: Reporter, scenario: Scenario, title: str) -> Callable[[float], None]:
    return lambda now_s: progress(min(1.0, now_s / scenario.duration_s), title)
