"""Serve a workload for real, predict it from the profile alone, and put both side by side.

Requests arrive at their own times on the wall clock, users ask when they have read and thought, and
the engine schedules them as the scenario says. Nothing here tunes the profile, and the
profile never saw a serving run.

What is uncertain about a prediction, given the requests, is the profile. So the very requests that
are served are simulated many times, the profile redrawn within its errors, and a prediction is the
median of these runs with its 90 % interval, as `moesim simulate` shows it. The table of predicted
records is of the profile as measured.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from calibration.belonging import check_belonging
from calibration.foresight import foresee
from calibration.host import Host
from calibration.models import model_digest, open_model
from calibration.plan import Plan
from calibration.serving import drawn_requests, engine_config, serve_for_real
from calibration.sharing import (
    host_of,
    serve_behind_gateway,
    serve_together,
)
from calibration.slices import Around, serve_on_shares
from moesim.commands import Reporter
from moesim.cost.profile import Verdict
from moesim.deployment import (
    Consolidated,
    ExpertRouter,
    Mps,
    Offloaded,
    Scheduler,
    TimeShared,
)
from moesim.errors import CalibrationError
from moesim.evidence.compare import compare_replications, compare_tenants
from moesim.evidence.validation import (
    COMPARISON,
    PREDICTED,
    Validation,
    comparison_json,
    measured_file,
)
from moesim.files import write_text
from moesim.scenario import Scenario
from moesim.serving.records import read_records, write_records
from moesim.simulation.measured import load_of, swap_of
from moesim.simulation.replications import COVERAGE, MOST, Replications, replicate
from moesim.traffic.users import Users
from moesim.units import format_bytes, format_seconds

STATE = "validation.json"


def validate(
    plan: Plan, out: Path, host: Host, progress: Reporter, *, overwrite: bool = False
) -> Validation:
    """Run and predict a workload; every table is in `out` when this returns.

    Each finished real run is kept at once: interrupted, the same command goes on with the next.
    Raises CalibrationError where profile, checkpoint or host do not belong together, or `out`
    holds another validation.
    """
    check_belonging(plan, host)
    foreseen = foresee(plan)
    predicted = replicate(
        foreseen.scenario,
        foreseen.profiles,
        plan.seed,
        replications=MOST,
        same_requests=True,
    )
    records = predicted.first.records
    state = _State.open(out, _setting(plan), overwrite=overwrite)
    serve = _server(plan, progress)
    for number in range(state.runs_done, plan.runs):
        served, around = serve(number, f"serving for real, run {number + 1} of {plan.runs}")
        write_records(served, out / measured_file(number + 1))
        state.took_note(around)
        state.finished(number + 1)
    measured = [read_records(out / measured_file(n + 1)) for n in range(plan.runs)]
    validation = Validation(
        measured=measured,
        predicted=records,
        comparison=compare_replications(measured, predicted.metrics()),
        tenants=compare_tenants(measured, predicted.metrics()),
        facts=_facts(plan, host, predicted),
        notes=[*_notes(plan, predicted, host, state), *foreseen.notes],
    )
    _drop_runs_after(plan.runs, out)
    write_records(records, out / PREDICTED)
    write_text(out / COMPARISON, comparison_json(validation))
    state.complete()
    return validation


Serve = Callable[[int, str], tuple[pd.DataFrame, float | Around]]
"""From a run's number and title to its records, and the probe's duration around it [s]; on shares
with how much longer that was beside busy neighbours."""


def _server(plan: Plan, progress: Reporter) -> Serve:
    """Load what is served; return what serves it once."""
    scenario, profiles, seed = plan.scenario, plan.profiles, plan.seed
    if not plan.variants:
        profile = plan.profile
        decoder = open_model(plan.model, plan.device, profile.narrowed, dtype=profile.spec.dtype)
        return lambda run, title: serve_for_real(
            scenario, plan.profile, decoder, progress, title=title, seed=seed, run=run
        )
    folders = {name: plan.variants[name] for name in scenario.models}
    if isinstance(scenario.deployment, ExpertRouter):
        return lambda run, title: serve_behind_gateway(
            scenario, profiles, folders, plan.device, progress, title=title, seed=seed, run=run
        )
    if isinstance(scenario.deployment, Mps):

        def serve(run: int, title: str) -> tuple[pd.DataFrame, Around]:
            progress(run / plan.runs, title)
            return serve_on_shares(scenario, profiles, folders, plan.device, seed=seed, run=run)

        return serve
    host = host_of(scenario, profiles, folders, plan.device)
    return lambda run, title: serve_together(
        host, scenario, profiles, progress, title=title, seed=seed, run=run
    )


def _drop_runs_after(runs: int, out: Path) -> None:
    """Remove the runs of a longer validation that this one replaces."""
    kept = {measured_file(number + 1) for number in range(runs)}
    for path in out.glob("measured-*.parquet"):
        if path.name not in kept:
            path.unlink()


@dataclass(slots=True)
class _State:
    """Which real runs a folder holds, and of what."""

    path: Path
    setting: Mapping[str, Any]
    runs_done: int = 0
    probes_s: list[float] = field(default_factory=list)
    stretches: list[float] = field(default_factory=list)

    @classmethod
    def open(cls, out: Path, setting: Mapping[str, Any], *, overwrite: bool) -> "_State":
        path = out / STATE
        if path.exists():
            content = _read_state(path)
            unfinished = not content.get("complete")
            if unfinished and content.get("setting") == setting:
                done = int(content.get("runs_done", 0))
                kept = (list(content.get(name, []))[:done] for name in ("probes_s", "stretches"))
                return cls(path, setting, done, *kept)
            if not overwrite:
                what = "an unfinished validation of another setting" if unfinished else "one"
                raise CalibrationError(
                    f"{out}: holds {what} already; give another --out, or --overwrite"
                )
        state = cls(path, setting)
        state.finished(0)
        return state

    def took_note(self, around: float | Around) -> None:
        self.probes_s.append(around.probe_s if isinstance(around, Around) else around)
        self.stretches += [around.stretch] if isinstance(around, Around) else []

    def finished(self, runs: int) -> None:
        self.runs_done = runs
        self._write(complete=False)

    def complete(self) -> None:
        self._write(complete=True)

    def _write(self, *, complete: bool) -> None:
        content = {
            "setting": self.setting,
            "runs_done": self.runs_done,
            "probes_s": self.probes_s,
            "stretches": self.stretches,
            "complete": complete,
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {"complete": True}
    known = isinstance(content, dict) and isinstance(content.get("runs_done"), int)
    return content if known else {"complete": True}


def _setting(plan: Plan) -> dict[str, Any]:
    """Return what the real runs depend on; interrupted, only the same are gone on with."""
    scenario, profile = plan.scenario, plan.profile
    requests = drawn_requests(scenario, profile.kv.block_size, plan.seed)
    users = {
        name: tenant.model_dump(mode="json")
        for name, tenant in scenario.tenants.items()
        if isinstance(tenant.arrivals, Users)
    }
    workload = json.dumps([[asdict(request) for request in requests], users, scenario.duration_s])
    return {
        "workload": hashlib.sha256(workload.encode()).hexdigest()[:16],
        "model": profile.provenance.model_digest,
        "host": profile.provenance.host_hash,
        "engine": asdict(engine_config(scenario, profile)),
        **_shared_setting(plan),
        "seed": plan.seed,
        "runs": plan.runs,
    }


def _shared_setting(plan: Plan) -> dict[str, Any]:
    """Return how models share the device, none where there is one."""
    if not plan.variants:
        return {}
    spec = plan.profile.spec
    return {
        "variants": {n: model_digest(str(folder), spec) for n, folder in plan.variants.items()},
        "deployment": plan.scenario.deployment.model_dump(mode="json"),
    }


def _quality(predicted: Replications) -> dict[str, str]:
    """Return the line on quality, none where the scenario names no curve."""
    found = predicted.first.quality
    return {"quality": found["sentence"].removeprefix("quality: ")} if found else {}


def _facts(plan: Plan, host: Host, predicted: Replications) -> dict[str, str]:
    spec, made = plan.profile.spec, plan.profile.provenance
    requests = predicted.first.records
    prompts, outputs = requests["prompt_tokens"].mean(), requests["output_tokens"].mean()
    return {
        "device": f"{made.device}, {made.threads} threads",
        "model": (
            f"{_served(plan)}: {spec.num_hidden_layers} layers of "
            f"{spec.num_local_experts} experts, {spec.parameters / 1e6:.0f} M parameters, "
            f"{format_bytes(spec.weight_bytes)} {spec.dtype}"
        ),
        "profile": (
            f"made {made.date} in {format_seconds(made.duration_s)}, "
            f"{'stable' if plan.profile.verdict.stable else 'unstable'}, drift "
            f"{100 * plan.profile.verdict.drift:.0f} %"
        ),
        "workload": (
            f"{plan.scenario.name}: {len(requests)} requests in {plan.scenario.duration_s:g} s, "
            f"mean prompt {prompts:.0f} and output {outputs:.0f} tokens"
        ),
        **({"deployment": _deployed(plan.scenario)} if plan.variants else {}),
        "scheduling": _scheduling(plan.scenario.deployment.scheduler),
        **_quality(predicted),
        "prediction": (
            f"median [low, high] over {len(predicted.runs)} simulations of the same requests, the "
            f"profile redrawn within its errors: {100 * COVERAGE:.0f} % of them fall inside; "
            "curves are of the profile as measured"
        ),
        "software": ", ".join(f"{name} {version}" for name, version in made.software.items()),
        "seed": str(plan.seed),
        "load at the end": f"{host.load:.2f}",
    }


def _served(plan: Plan) -> str:
    return ", ".join(plan.variants) if plan.variants else Path(plan.model).name


def _deployed(scenario: Scenario) -> str:
    """Say what kind of deployment it is, with what it turns on."""
    deployment = scenario.deployment
    parts: list[str] = [deployment.kind]
    if isinstance(deployment, Consolidated):
        parts += [f"ratio {deployment.ratio:g}", f"non-expert sets: {deployment.non_expert_sets}"]
    if isinstance(deployment, Consolidated | Offloaded):
        parts.append(f"resident experts: {deployment.experts.resident}")
    if isinstance(deployment, Consolidated | Offloaded | TimeShared):
        parts.append(f"turns: {deployment.turns}")
    if isinstance(deployment, Mps):
        parts += [f"{name} {share:g} %" for name, share in deployment.sm_percent.items()]
    return ", ".join(parts)


def _scheduling(scheduler: Scheduler) -> str:
    caching = ", prefix caching" if scheduler.prefix_caching else ""
    return f"{scheduler.policy}, {scheduler.order}, preemption by {scheduler.preemption}{caching}"


def _errors_known(verdict: Verdict) -> str | None:
    """Say what the intervals rest on where that is not residuals of iterations held out."""
    if verdict.iteration_residuals:
        return None
    if verdict.iteration_error_p50 is not None:
        return (
            "The profile keeps no residuals of iterations it had not seen; intervals are drawn "
            f"from their median size alone, {100 * verdict.iteration_error_p50:.1f} %, and know of "
            "no bias. Profile again."
        )
    return (
        "The profile was never checked on iterations it had not seen: intervals hold only the "
        "scatter of its cells and the host's drift, and are too narrow. Profile again."
    )


def _notes(plan: Plan, predicted: Replications, host: Host, state: _State) -> list[str]:
    first = predicted.first
    notes = [plan.scenario.description] if plan.scenario.description else []
    fallen_back = _errors_known(plan.profile.verdict)
    notes += [fallen_back] if fallen_back else []
    extrapolated = [name for name, basis in first.basis.items() if basis == "extrapolated"]
    if not extrapolated:
        notes.append("Every predicted duration lies inside the measured grid.")
    scheduler = plan.scenario.deployment.scheduler
    if scheduler.preemption == "swap":
        notes.append(
            f"Swapping is predicted at the scenario's {scheduler.swap_gb_per_s:g} GB/s; no profile "
            "measures that."
        )
    if plan.variants:
        notes += _sharing_notes(plan)
    if state.stretches:
        times = ", ".join(f"{stretch:.2f}" for stretch in state.stretches)
        notes.append(
            f"Before the real runs one small batch took {times} times as long while all shares "
            "computed the same as alone; nothing is corrected by this."
        )
    then_s = plan.probed_s
    if then_s:
        times = ", ".join(f"{now_s / then_s:.2f}" for now_s in state.probes_s)
        notes.append(
            f"Around the real runs the host took {times} times as long for one and the same small "
            "batch as while it was profiled; nothing is corrected by this."
        )
    return [*notes, *first.warnings, *host.notes]


def _sharing_notes(plan: Plan) -> list[str]:
    """Say what swaps and loads are predicted from, and what the real runs stand in for."""
    notes, deployment = [], plan.scenario.deployment
    what = {"consolidated": "non_expert_set", "time_shared": "whole_model"}.get(deployment.kind)
    swap = swap_of(plan.profile, what) if what else None
    if swap is not None:
        notes.append(
            f"Swaps are predicted as the profile measured them ({swap.way}, {swap.memory}): "
            f"{format_seconds(swap.median_s)} for {format_bytes(swap.set_bytes)}."
        )
    load = load_of(plan.profile)
    if load is not None and deployment.kind in {"consolidated", "offloaded"}:
        notes.append(
            f"Loads of absent experts are predicted as the profile measured them "
            f"({load.how.replace('_', ' ')}, {load.memory}): {format_seconds(load.median_s)} each."
        )
    if isinstance(deployment, ExpertRouter):
        notes.append(
            "Expert models were served one after the other, each with this device for itself, as "
            "they would have had one each; prompts went where the prediction's gateway sends them, "
            f"each after the {format_seconds(deployment.gateway.classify_s)} of the scenario."
        )
    return notes
