"""Run a scenario: `simulate(scenario, profiles, seed) -> Result`, pure and deterministic."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd

from moesim import MODEL_REVISION
from moesim.cost.curves import WEAKEST
from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile, load_profile
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.hardware import Device
from moesim.facts.memory import place_replica
from moesim.facts.models import ModelSpec
from moesim.requests import draw_requests
from moesim.scenario import PROFILED, Scenario
from moesim.serving.kv_cache import KvCache
from moesim.serving.metrics import SloTargets, summarise
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica, Usage, serve
from moesim.simulation.stepwise import step_through


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation found."""

    scenario: str
    seed: int
    records: pd.DataFrame
    replicas: pd.DataFrame
    basis: dict[str, str]
    warnings: tuple[str, ...]
    slos: Mapping[str, SloTargets]
    elapsed_s: float

    def metrics(self) -> dict[str, Any]:
        """Return `overall` and `tenants`, with utilisation, basis and warnings beside them."""
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "model_revision": MODEL_REVISION,
            **summarise(self.records, self.slos),
            "utilisation": self.replicas.set_index("replica")["utilisation"].to_dict(),
            "basis": self.basis,
            "warnings": list(self.warnings),
        }


def simulate(
    scenario: Scenario,
    profiles: Mapping[str, Profile] | None = None,
    seed: int = 0,
    *,
    stepwise: bool = False,
) -> Result:
    """Simulate a scenario from the first arrival to the last token.

    `profiles` replaces the profiles that the scenario names, by model. `stepwise` runs every
    iteration one by one, as a check on jumping; the records are the same to rounding. Raises
    ProfileError where a profile is of another model's shape or does not reach far enough,
    ScenarioError (CapacityError) where the scenario cannot run.
    """
    started = time.perf_counter()
    device = _device(scenario)
    profiles = load_profiles(scenario, profiles or {}, device)
    requests = draw_requests(scenario, seed)
    served = [
        (step_through if stepwise else serve)(replica, mine)
        for model, profile in profiles.items()
        for replica, mine in _replicas(scenario, model, profile, device, requests)
    ]
    tables = [part.records for part in served if len(part.records)]
    records = tables[0]
    if len(tables) > 1:
        records = pd.concat(tables)
        records = records.sort_values("request_id", kind="stable", ignore_index=True)
    basis = _weakest([part.basis for part in served])
    return Result(
        scenario=scenario.name,
        seed=seed,
        records=records,
        replicas=_usage_frame([part.usage for part in served], records),
        basis=basis,
        warnings=tuple(_warnings(profiles, basis)),
        slos=scenario.slos,
        elapsed_s=time.perf_counter() - started,
    )


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
        profile = given.get(name) or load_profile(model.profile, relative_to=scenario.folder)
        _same_shape(name, spec, profile)
        if device and profile.provenance.device_kind != device.kind:
            raise ProfileError(
                f"models.{name}.profile: measured on {profile.provenance.device} "
                f"({profile.provenance.device_kind}), hardware.device {device.name} is "
                f"{device.kind}; profile on that device"
            )
        profiles[name] = profile
    return profiles


def limits_of(scenario: Scenario, spec: ModelSpec) -> Limits:
    """Return what each replica of a model accepts."""
    scheduler = scenario.deployment.scheduler
    return Limits(
        max_num_seqs=scheduler.max_num_seqs,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_model_len=spec.max_position_embeddings,
    )


def _replicas(
    scenario: Scenario, model: str, profile: Profile, device: Device | None, requests: pd.DataFrame
) -> Iterator[tuple[Replica, pd.DataFrame]]:
    """Yield each replica of a model with its share of the requests, dealt round robin."""
    mine = requests[requests["model"] == model] if len(scenario.models) > 1 else requests
    count = scenario.deployment.replicas
    limits = limits_of(scenario, profile.spec)
    num_blocks = scenario.deployment.kv_blocks or profile.kv.num_blocks
    if device:
        place_replica(
            model,
            profile.spec,
            kv_blocks=num_blocks,
            block_size=profile.kv.block_size,
            device=device.name,
            device_bytes=device.memory_bytes,
        )
    for index in range(count):
        replica = Replica(
            name=f"{model}/{index}",
            limits=limits,
            cache=KvCache(num_blocks, profile.kv.block_size),
            cost=CostModel(
                profile,
                max_batched_tokens=limits.max_batched_tokens,
                max_num_seqs=limits.max_num_seqs,
            ),
        )
        yield replica, mine.iloc[index::count] if count > 1 else mine


def _same_shape(name: str, spec: ModelSpec, profile: Profile) -> None:
    wanted, measured = asdict(spec), asdict(profile.spec)
    for field, value in wanted.items():
        if measured[field] != value:
            raise ProfileError(
                f"models.{name}.profile: measured with {field} {measured[field]}, "
                f"the model has {value}; profile this model"
            )


def _usage_frame(usages: list[Usage], records: pd.DataFrame) -> pd.DataFrame:
    frame = pd.DataFrame([asdict(usage) for usage in usages])
    span_s = records["finish_s"].max() - records["arrival_s"].min()
    return frame.assign(
        utilisation=frame["busy_s"] / span_s if span_s > 0 else 0.0,
        mean_batched_tokens=frame["batched_tokens"] / frame["iterations"].clip(lower=1),
    )


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
        if not profile.verdict.stable:
            found.append(f"the profile of {name} judged itself unstable; profile again")
    return found
