"""Run a scenario: `simulate(scenario, profiles, seed) -> Result`, pure and deterministic."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from typing import Any

import pandas as pd

from moesim import MODEL_REVISION
from moesim.cost.curves import WEAKEST
from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile, load_profile
from moesim.cost.roofline import roofline_profile
from moesim.errors import ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.hardware import Device
from moesim.facts.memory import place_replica
from moesim.facts.models import ModelSpec
from moesim.requests import Traces, draw_requests, load_traces, requests_from
from moesim.scenario import PROFILED, ROOFLINE, Scenario, Tenant
from moesim.serving.fairness import fairness
from moesim.serving.iterations import Iterations
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.metrics import SloTargets, summarise
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits
from moesim.serving.series import time_series
from moesim.serving.steady import steady_state
from moesim.simulation.prefixes import shared_names, with_block_names
from moesim.simulation.replica import Replica, Served, Usage
from moesim.simulation.serve import serve
from moesim.simulation.stage import Stage
from moesim.simulation.stepwise import step_through
from moesim.traffic.users import Users
from moesim.units import GIB


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation found."""

    scenario: str
    seed: int
    records: pd.DataFrame
    logs: Mapping[str, Iterations]
    replicas: pd.DataFrame
    basis: dict[str, str]
    warnings: tuple[str, ...]
    slos: Mapping[str, SloTargets]
    elapsed_s: float

    def metrics(self) -> dict[str, Any]:
        """Return `overall` and `tenants`, the verdict on the run, utilisation, basis, warnings."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "model_revision": MODEL_REVISION,
            **summarise(self.records, self.slos, self.logs),
            "fairness": fairness(self.records),
            "steady": steady_state(self.records).as_dict(),
            "utilisation": self._of_replicas("utilisation"),
            "basis": self.basis,
            "warnings": list(self.warnings),
        }

    def series(self, points: int = 200) -> pd.DataFrame:
        """Return queue, batch, KV cache and rates over time; `moesim.serving.series` names them."""
        return time_series(self.records, self.logs, self._of_replicas("kv_tokens"), points)

    def _of_replicas(self, column: str) -> dict[str, Any]:
        """Return a column of the replicas' table by the replicas' names."""
        names = self.replicas["replica"].tolist()
        return dict(zip(names, self.replicas[column].tolist(), strict=True))


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What the files behind a scenario say, each read once, for many runs."""

    device: Device | None
    """The scenario's device; None for the one that was profiled."""
    profiles: Mapping[str, Profile]
    """By model."""
    traces: Traces


def simulate(
    scenario: Scenario,
    profiles: Mapping[str, Profile] | None = None,
    seed: int = 0,
    *,
    stepwise: bool = False,
    inputs: Inputs | None = None,
) -> Result:
    """Simulate a scenario from the first arrival to the last token.

    `profiles` replaces the profiles that the scenario names, by model. `stepwise` runs every
    iteration one by one, as a check on jumping; the records are the same to rounding. `inputs` are
    the scenario's files, profiles among them, where they are read already. Raises
    ProfileError where a profile is of another model's shape or does not reach far enough,
    ScenarioError (CapacityError) where the scenario cannot run.
    """
    started = time.perf_counter()
    inputs = inputs or load_inputs(scenario, profiles)
    requests = draw_requests(scenario, seed, inputs.traces)
    replicas = {
        model: list(_replicas(scenario, model, profile, inputs.device))
        for model, profile in inputs.profiles.items()
    }
    tables, logs, usages, bases = [], {}, [], []
    for part in chain(
        _open_loop(scenario, replicas, requests, stepwise=stepwise),
        _on_stage(scenario, replicas, requests, seed, stepwise=stepwise),
    ):
        tables.append(part.records)
        logs[part.usage.replica] = part.log
        usages.append(part.usage)
        bases.append(part.basis)
    del requests  # a million of them need not be held beside their records
    records = _in_order_of_arrival(tables)
    basis = _weakest(bases)
    return Result(
        scenario=scenario.name,
        seed=seed,
        records=records,
        logs=logs,
        replicas=_usage_frame(usages, records),
        basis=basis,
        warnings=tuple(_warnings(inputs.profiles, basis)),
        slos=scenario.slos,
        elapsed_s=time.perf_counter() - started,
    )


def load_inputs(scenario: Scenario, profiles: Mapping[str, Profile] | None = None) -> Inputs:
    """Read the files behind a scenario; raises what `simulate` raises where one does not fit."""
    device = _device(scenario)
    return Inputs(
        device=device,
        profiles=load_profiles(scenario, profiles or {}, device),
        traces=load_traces(scenario),
    )


def _open_loop(
    scenario: Scenario,
    replicas: Mapping[str, Sequence[Replica]],
    requests: pd.DataFrame,
    *,
    stepwise: bool,
) -> Iterator[Served]:
    """Serve the models whose requests depend on no replica: each has its share, dealt in turn."""
    for model, parts in replicas.items():
        if _interacts(scenario, model):
            continue
        mine = _requests_of(scenario, model, requests, parts[0])
        for index, replica in enumerate(parts):
            dealt = mine.iloc[index :: len(parts)] if len(parts) > 1 else mine
            yield (step_through if stepwise else serve)(replica, dealt)


def _on_stage(
    scenario: Scenario,
    replicas: Mapping[str, Sequence[Replica]],
    requests: pd.DataFrame,
    seed: int,
    *,
    stepwise: bool,
) -> list[Served]:
    """Serve the models whose requests, or where they go, depend on what the replicas do."""
    live = {model: parts for model, parts in replicas.items() if _interacts(scenario, model)}
    if not live:
        return []
    dispatcher = scenario.deployment.dispatcher
    stage = Stage(live, dispatcher=dispatcher, seed=seed, stepwise=stepwise)
    ids = count(len(requests))
    for model, parts in live.items():
        stage.replay(requests_from(_requests_of(scenario, model, requests, parts[0])))
        for name in _users_of(scenario, model):
            tenant = scenario.tenants[name]
            block_size = parts[0].cache.block_size
            names = shared_names(name, tenant, block_size)
            stage.seat(
                name, tenant, names, block_size, seed=seed, until_s=scenario.duration_s, ids=ids
            )
    return stage.play()


def _interacts(scenario: Scenario, model: str) -> bool:
    """Whether users wait for a model's answers, or a dispatcher looks at its replicas."""
    deployment = scenario.deployment
    looks = deployment.replicas > 1 and deployment.dispatcher != "round_robin"
    return looks or bool(_users_of(scenario, model))


def _users_of(scenario: Scenario, model: str) -> list[str]:
    """Return the tenants of a model that are users in a closed loop."""
    return [
        name
        for name, tenant in scenario.tenants.items()
        if tenant.model == model and isinstance(tenant.arrivals, Users)
    ]


def _requests_of(
    scenario: Scenario, model: str, requests: pd.DataFrame, replica: Replica
) -> pd.DataFrame:
    """Return a model's requests, their prompts' blocks named if its replicas keep prefixes."""
    mine = requests[requests["model"] == model] if len(scenario.models) > 1 else requests
    if replica.keeps_prefixes:
        return with_block_names(mine, scenario, replica.cache.block_size)
    return mine.drop(columns="prefix") if "prefix" in mine else mine


def _in_order_of_arrival(tables: list[pd.DataFrame]) -> pd.DataFrame:
    """Merge record tables, emptying the list: a million requests need not be held twice."""
    parts = [table for table in tables if len(table)]
    tables.clear()
    if not parts:
        raise ScenarioError("no request arrives; make duration_s longer or think times shorter")
    merged = parts[0] if len(parts) == 1 else pd.concat(parts)
    if len(parts) == 1 and merged["arrival_s"].is_monotonic_increasing:
        return merged
    parts.clear()
    # Requests of the same instant were numbered in order.
    return merged.sort_values(["arrival_s", "request_id"], ignore_index=True)


def _device(scenario: Scenario) -> Device | None:
    """Return the scenario's device; None for the one that was profiled."""
    name = scenario.hardware.device
    return None if name == PROFILED else load_device(name, relative_to=scenario.folder)


def load_profiles(
    scenario: Scenario, given: Mapping[str, Profile], device: Device | None
) -> dict[str, Profile]:
    """Return each model's profile, checked against the model's shape and the device."""
    for name in given:
        if name not in scenario.models:
            raise ProfileError(
                f"profile given for {name!r}, which is not one of the scenario's models: "
                f"{', '.join(scenario.models)}"
            )
    profiles = {}
    for name, model in scenario.models.items():
        spec = load_model(model.architecture, relative_to=scenario.folder)
        profile = given.get(name) or _profile_of(scenario, name, spec, device)
        _same_shape(name, spec, profile)
        if device and profile.provenance.device_kind != device.kind:
            raise ProfileError(
                f"models.{name}.profile: measured on {profile.provenance.device} "
                f"({profile.provenance.device_kind}), hardware.device {device.name} is "
                f"{device.kind}; profile on that device"
            )
        profiles[name] = profile
    return profiles


def _profile_of(scenario: Scenario, name: str, spec: ModelSpec, device: Device | None) -> Profile:
    """Load a model's profile, or draw its roofline."""
    wanted = scenario.models[name].profile
    if wanted != ROOFLINE:
        return load_profile(wanted, relative_to=scenario.folder)
    if device is None:
        raise ProfileError(
            f"models.{name}.profile: roofline needs the datasheet of a hardware.device, which is "
            f"{PROFILED!r}; name the device"
        )
    scheduler = scenario.deployment.scheduler
    return roofline_profile(
        spec,
        device,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
    )


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


def _replicas(
    scenario: Scenario, model: str, profile: Profile, device: Device | None
) -> Iterator[Replica]:
    """Yield each replica of a model."""
    scheduler = scenario.deployment.scheduler
    block_size = profile.kv.block_size
    limits = limits_of(scenario, profile.spec, block_size)
    num_blocks = scenario.deployment.kv_blocks or profile.kv.num_blocks
    if device:
        place_replica(
            model,
            profile.spec,
            kv_blocks=num_blocks,
            block_size=block_size,
            device=device.name,
            device_bytes=device.memory_bytes,
        )
    tenants = {name: t for name, t in scenario.tenants.items() if t.model == model}
    block_bytes = block_size * profile.spec.kv_bytes_per_token
    for index in range(scenario.deployment.replicas):
        yield Replica(
            name=f"{model}/{index}",
            limits=limits,
            cache=cache_of(scenario, num_blocks, block_size),
            cost=CostModel(
                profile,
                max_batched_tokens=limits.max_batched_tokens,
                max_num_seqs=limits.max_num_seqs,
            ),
            # With one tenant there is only the order of arrival.
            order=scheduler.order if len(tenants) > 1 else "fcfs",
            priorities=_by_tenant(tenants, "priority") if scheduler.order == "priority" else {},
            weights=_by_tenant(tenants, "weight") if scheduler.order == "fair" else {},
            swap_block_s=block_bytes / (scheduler.swap_gb_per_s or 1.0) / 1e9,
        )


def _by_tenant(tenants: Mapping[str, Tenant], field: str) -> dict[str, Any]:
    return {name: getattr(tenant, field) for name, tenant in tenants.items()}


def _same_shape(name: str, spec: ModelSpec, profile: Profile) -> None:
    wanted, measured = asdict(spec), asdict(profile.spec)
    for field, value in wanted.items():
        if measured[field] != value:
            raise ProfileError(
                f"models.{name}.profile: measured with {field} {measured[field]}, "
                f"the model has {value}; profile this model"
            )


def _usage_frame(usages: list[Usage], records: pd.DataFrame) -> pd.DataFrame:
    """Return what each replica did, a row each, with its utilisation and its mean batch."""
    span_s = float(records["finish_s"].max() - records["arrival_s"].min())
    rows = [
        {
            **asdict(usage),
            "utilisation": usage.busy_s / span_s if span_s > 0 else 0.0,
            "mean_batched_tokens": usage.batched_tokens / max(1, usage.iterations),
        }
        for usage in usages
    ]
    return pd.DataFrame(rows)


def _weakest(bases: list[dict[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for basis in bases:
        for name, value in basis.items():
            merged[name] = max(merged.get(name, value), value, key=WEAKEST.index)
    return merged


def _warnings(profiles: Mapping[str, Profile], basis: Mapping[str, str]) -> list[str]:
    outside = [name for name, value in basis.items() if value == "extrapolated"]
    found = []
    if outside:
        found.append(f"beyond what was measured, extrapolated: {', '.join(outside)}")
    for name, profile in profiles.items():
        if profile.source == ROOFLINE:
            found.insert(0, f"nothing of {name} was measured: durations are datasheet rooflines")
        if not profile.verdict.stable:
            found.append(f"the profile of {name} judged itself unstable; profile again")
    return found
