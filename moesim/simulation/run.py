"""Run a scenario: `simulate(scenario, profiles, seed) -> Result`, pure and deterministic."""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count
from typing import Any

import numpy as np
import pandas as pd

from moesim import MODEL_REVISION
from moesim.cost.curves import WEAKEST
from moesim.cost.profile import Profile
from moesim.deployment import ExpertRouter
from moesim.errors import ScenarioError
from moesim.requests import drawn, requests_from
from moesim.scenario import Scenario
from moesim.serving.columns import Columns, joined
from moesim.serving.fairness import fairness
from moesim.serving.iterations import Iterations
from moesim.serving.metrics import SloTargets, summarise
from moesim.serving.series import time_series
from moesim.serving.steady import steady_state
from moesim.simulation.course import Copy
from moesim.simulation.dealing import Dealing
from moesim.simulation.deploy import (
    absent_experts,
    assumed,
    drafted_of,
    gateway_of,
    stations_from,
)
from moesim.simulation.inputs import Inputs, load_inputs
from moesim.simulation.kv_copies import unshared_link
from moesim.simulation.misses import with_misses
from moesim.simulation.quality import Quality
from moesim.simulation.replica import Served, Usage
from moesim.simulation.stage import Stage
from moesim.simulation.station import Station, serve_alone
from moesim.simulation.stepwise import step_through
from moesim.simulation.users import users_of
from moesim.traffic.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation found; `table` are its records."""

    scenario: str
    seed: int
    table: Columns
    logs: Mapping[str, Iterations]
    copies: Mapping[str, tuple[Copy, ...]]
    loads: Mapping[str, tuple[tuple[float, float], ...]]
    usages: tuple[Usage, ...]
    basis: dict[str, str]
    warnings: tuple[str, ...]
    slos: Mapping[str, SloTargets]
    elapsed_s: float
    quality: Quality | None = None
    absent_experts: str = ""
    """How many copies of experts wait in host memory, in words; nothing where none does."""

    @property
    def records(self) -> pd.DataFrame:
        """One row a request in order of arrival, the columns of `moesim.serving.records`."""
        return self.table.frame

    def metrics(self) -> dict[str, Any]:
        """Return `overall` and `tenants`, the verdict on the run, utilisation, basis, warnings."""
        figures = summarise(self.table, self.slos, self.logs)
        return {
            "scenario": self.scenario,
            "seed": self.seed,
            "model_revision": MODEL_REVISION,
            **figures,
            "fairness": fairness(self.table) if len(figures["tenants"]) > 1 else None,
            "steady": steady_state(self.table).as_dict(),
            "utilisation": {each.replica: self._share(each.busy_s) for each in self.usages},
            "reconfigurations": {
                each.replica: {
                    "count": each.reconfigurations,
                    "share_of_time": self._share(each.reconfiguring_s),
                }
                for each in self.usages
            },
            "quality": self.quality,
            "absent_experts": self.absent_experts or None,
            "basis": self.basis,
            "warnings": list(self.warnings),
        }

    def series(self, points: int = 200) -> pd.DataFrame:
        """Return queue, batch, KV cache and rates over time; `moesim.serving.series` names them."""
        room = {usage.replica: usage.kv_tokens for usage in self.usages}
        return time_series(self.records, self.logs, room, points)

    @property
    def replicas(self) -> pd.DataFrame:
        """What each replica did, a row each, with its utilisation and its mean batch."""
        return pd.DataFrame(
            [
                {
                    **asdict(usage),
                    "utilisation": self._share(usage.busy_s),
                    "mean_batched_tokens": usage.batched_tokens / max(1, usage.iterations),
                }
                for usage in self.usages
            ]
        )

    def _share(self, seconds: float) -> float:
        """Return the share of the run that some seconds are."""
        last_s = np.nanmax(self.table["finish_s"], initial=-np.inf)
        span_s = float(last_s - self.table["arrival_s"].min())
        return seconds / span_s if span_s > 0 else 0.0


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
    requests = drawn(scenario, seed, inputs.traces)
    drafted = drafted_of(scenario, inputs)
    stations = stations_from(drafted)
    found = _played(scenario, stations, requests, seed, stepwise=stepwise)
    tables, logs, copies, loads, usages, bases = [], {}, {}, {}, [], []
    for part in found:
        tables.append(part.table)
        logs[part.usage.replica] = part.log
        copies[part.usage.replica] = part.copies
        loads[part.usage.replica] = part.loads
        usages.append(part.usage)
        bases.append(part.basis)
    del requests, found, part  # a million of them need not be held beside their records
    table = with_misses(_in_order_of_arrival(tables), stations, logs)
    basis = _weakest(bases)
    return Result(
        scenario=scenario.name,
        seed=seed,
        table=table,
        logs=logs,
        copies=copies,
        loads=loads,
        usages=tuple(usages),
        basis=basis,
        warnings=(
            *_warnings(inputs.profiles, basis),
            *assumed(scenario, inputs.device),
            *unshared_link(stations, copies, loads, table),
        ),
        slos=scenario.slos,
        elapsed_s=time.perf_counter() - started,
        quality=inputs.quality,
        absent_experts=absent_experts(drafted),
    )


def _played(
    scenario: Scenario,
    stations: Sequence[Station],
    requests: Columns,
    seed: int,
    *,
    stepwise: bool,
) -> list[Served]:
    """Have every station serve its requests, on the stage where others can reach it."""
    gateway = gateway_of(scenario, seed)
    handed = _handed(scenario, stations)
    if gateway and not handed:
        requests = Columns.of(gateway.all_sent(requests.frame))
    dealing = Dealing(scenario, stations, requests)
    on_stage = [
        place
        for place, station in enumerate(stations)
        if station.crowd or handed.intersection(station.models)
    ]
    alone = step_through if stepwise else serve_alone
    found = {
        place: alone(station, dealing.share(place))
        for place, station in enumerate(stations)
        if place not in on_stage
    }
    if on_stage:
        known = {
            index: dealing.share(place)
            for index, place in enumerate(on_stage)
            if not handed.intersection(stations[place].models)
        }
        stage = Stage(
            [stations[place] for place in on_stage],
            known,
            dispatchers={
                model: scenario.deployment_of(model).dispatcher for model in scenario.models
            },
            gateway=gateway,
            seed=seed,
            stepwise=stepwise,
        )
        _people(stage, scenario, stations, dealing, handed, len(requests), seed)
        found |= dict(zip(on_stage, stage.play(), strict=True))
    return [part for place in range(len(stations)) for part in found[place]]


def _people(
    stage: Stage,
    scenario: Scenario,
    stations: Sequence[Station],
    dealing: Dealing,
    handed: frozenset[str],
    numbered: int,
    seed: int,
) -> None:
    """Have those requests arrive on the stage that a station is handed, and seat the users."""
    if not handed:
        return
    routed = isinstance(scenario.deployment, ExpertRouter)
    stage.replay(requests_from(dealing.undealt() if routed else dealing.of(handed)))
    block_size = stations[0].replicas[0].cache.block_size
    users = users_of(scenario, block_size, seed)
    stage.seat(users, until_s=scenario.duration_s, ids=count(numbered))


def _handed(scenario: Scenario, stations: Sequence[Station]) -> frozenset[str]:
    """Return the models whose requests depend, or where they go, on what the stations do.

    A model that shares a station with such a one is one too; behind a gateway all are if one is.
    """
    homes = Counter(model for station in stations for model in station.models)
    asked = {
        tenant.model for tenant in scenario.tenants.values() if isinstance(tenant.arrivals, Users)
    }
    found = asked | {
        model
        for model, count in homes.items()
        if count > 1 and scenario.deployment_of(model).dispatcher != "round_robin"
    }
    if found and isinstance(scenario.deployment, ExpertRouter):
        return frozenset(homes)
    while True:
        beside = {
            model
            for station in stations
            if found.intersection(station.models)
            for model in station.models
        }
        if beside == found:
            return frozenset(found)
        found = beside


def _in_order_of_arrival(tables: list[Columns]) -> Columns:
    """Merge record tables, emptying the list: a million requests need not be held twice."""
    parts = [table for table in tables if len(table)]
    tables.clear()
    if not parts:
        raise ScenarioError("no request arrives; make duration_s longer or think times shorter")
    merged = joined(parts)
    if len(parts) == 1 and (np.diff(merged["arrival_s"]) >= 0).all():
        return merged
    parts.clear()
    # Requests of the same instant were numbered in order.
    return merged.take(np.lexsort([merged["request_id"], merged["arrival_s"]]))


def _weakest(bases: list[dict[str, str]]) -> dict[str, str]:
    merged: dict[str, str] = {}
    for basis in bases:
        for name, value in basis.items():
            merged[name] = max(merged.get(name, value), value, key=WEAKEST.index)
    return merged


def _assembled(profiles: Mapping[str, Profile]) -> dict[str, list[str]]:
    """Return the models whose profiles were added up from kernels, by where these are from."""
    found: dict[str, list[str]] = {}
    for name, profile in profiles.items():
        if profile.source == "kernels":
            found.setdefault(profile.verdict.warnings[0], []).append(name)
    return found


def _warnings(profiles: Mapping[str, Profile], basis: Mapping[str, str]) -> list[str]:
    outside = [name for name, value in basis.items() if value == "extrapolated"]
    drawn = [name for name, profile in profiles.items() if profile.source == "roofline"]
    unstable = [name for name, profile in profiles.items() if not profile.verdict.stable]
    found = []
    if drawn:
        names = ", ".join(drawn)
        found.append(f"nothing of {names} was measured: durations are datasheet rooflines")
    for origin, models in _assembled(profiles).items():
        names = ", ".join(models)
        found.append(f"{names}: {origin}; the software around them takes time that they lack")
    if outside:
        found.append(f"beyond what was measured, extrapolated: {', '.join(outside)}")
    for name in unstable:
        found.append(f"the profile of {name} judged itself unstable; profile again")
    return found
