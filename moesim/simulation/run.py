"""Run a scenario: `simulate(scenario, profiles, seed) -> Result`, pure and deterministic."""

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from typing import Any

import pandas as pd

from moesim import MODEL_REVISION
from moesim.cost.curves import WEAKEST
from moesim.cost.profile import Profile
from moesim.errors import ScenarioError
from moesim.requests import draw_requests, requests_from
from moesim.scenario import Scenario
from moesim.serving.fairness import fairness
from moesim.serving.iterations import Iterations
from moesim.serving.metrics import SloTargets, summarise
from moesim.serving.series import time_series
from moesim.serving.steady import steady_state
from moesim.simulation.course import Copy
from moesim.simulation.deploy import replicas_of
from moesim.simulation.inputs import Inputs, load_inputs
from moesim.simulation.prefixes import with_block_names
from moesim.simulation.replica import Replica, Served, Usage
from moesim.simulation.serve import serve
from moesim.simulation.stage import Stage
from moesim.simulation.stepwise import step_through
from moesim.simulation.users import users_of
from moesim.traffic.users import Users


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a simulation found."""

    scenario: str
    seed: int
    records: pd.DataFrame
    logs: Mapping[str, Iterations]
    copies: Mapping[str, tuple[Copy, ...]]
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
        model: list(replicas_of(scenario, model, profile, inputs.device))
        for model, profile in inputs.profiles.items()
    }
    tables, logs, copies, usages, bases = [], {}, {}, [], []
    for part in chain(
        _open_loop(scenario, replicas, requests, stepwise=stepwise),
        _on_stage(scenario, replicas, requests, seed, stepwise=stepwise),
    ):
        tables.append(part.records)
        logs[part.usage.replica] = part.log
        copies[part.usage.replica] = part.copies
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
        copies=copies,
        replicas=_usage_frame(usages, records),
        basis=basis,
        warnings=tuple(_warnings(inputs.profiles, basis)),
        slos=scenario.slos,
        elapsed_s=time.perf_counter() - started,
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
        if _interacts(scenario, model, parts):
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
    live = {m: parts for m, parts in replicas.items() if _interacts(scenario, m, parts)}
    if not live:
        return []
    dispatcher = scenario.deployment.dispatcher
    stage = Stage(live, dispatcher=dispatcher, seed=seed, stepwise=stepwise)
    ids = count(len(requests))
    for model, parts in live.items():
        stage.replay(requests_from(_requests_of(scenario, model, requests, parts[0])))
        users = users_of(scenario, model, parts[0].cache.block_size, seed)
        stage.seat(users, until_s=scenario.duration_s, ids=ids)
    return stage.play()


def _interacts(scenario: Scenario, model: str, parts: Sequence[Replica]) -> bool:
    """Whether users wait for a model's answers, or a dispatcher looks at its replicas."""
    looks = len(parts) > 1 and scenario.deployment.dispatcher != "round_robin"
    return looks or any(
        tenant.model == model and isinstance(tenant.arrivals, Users)
        for tenant in scenario.tenants.values()
    )


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
    drawn = [name for name, profile in profiles.items() if profile.source == "roofline"]
    unstable = [name for name, profile in profiles.items() if not profile.verdict.stable]
    found = []
    if drawn:
        names = ", ".join(drawn)
        found.append(f"nothing of {names} was measured: durations are datasheet rooflines")
    if outside:
        found.append(f"beyond what was measured, extrapolated: {', '.join(outside)}")
    for name in unstable:
        found.append(f"the profile of {name} judged itself unstable; profile again")
    return found
