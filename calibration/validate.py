"""Serve a workload for real, predict it from the profile alone, and put both side by side.

Requests arrive at their own times on the wall clock. Nothing here tunes the profile, and the
profile never saw a serving run.
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calibration.grid import Part, Point
from calibration.host import Host
from calibration.models import model_digest, open_model
from calibration.operations import measure
from calibration.probe import probe_s
from engine.model.decoder import Decoder
from engine.serve.clock import WallClock
from engine.serve.engine import Engine, EngineConfig
from engine.serve.sampling import Sampling
from moesim.commands import Reporter
from moesim.cost.profile import Profile
from moesim.errors import CalibrationError, ScenarioError
from moesim.evidence.compare import compare
from moesim.evidence.validation import (
    COMPARISON,
    PREDICTED,
    Validation,
    comparison_json,
    measured_file,
)
from moesim.files import write_text
from moesim.requests import Request, requests_of
from moesim.scenario import Scenario
from moesim.serving.records import read_records, write_records
from moesim.serving.scheduling import Limits
from moesim.simulation.run import Result, limits_of, simulate
from moesim.simulation.stepwise import record_of
from moesim.units import format_bytes, format_seconds

STATE = "validation.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is validated: a workload for one model, served by the engine on this host."""

    scenario: Scenario
    profile: Profile
    model: str
    runs: int
    seed: int
    device: torch.device


def validate(
    plan: Plan, out: Path, host: Host, progress: Reporter, *, overwrite: bool = False
) -> Validation:
    """Run and predict a workload; every table is in `out` when this returns.

    Each finished real run is kept at once: interrupted, the same command goes on with the next.
    Raises CalibrationError where profile, checkpoint or host do not belong together, or `out`
    holds another validation.
    """
    _belong_together(plan, host)
    name = next(iter(plan.scenario.models))
    predicted = simulate(plan.scenario, {name: plan.profile}, plan.seed)
    requests = requests_of(plan.scenario, plan.seed)
    state = _State.open(out, _setting(plan, requests), overwrite=overwrite)
    decoder = open_model(plan.model, plan.device)
    for number in range(state.runs_done, plan.runs):
        records, around_s = _serve(plan, decoder, requests, number, progress)
        write_records(records, out / measured_file(number + 1))
        state.probes_s.append(around_s)
        state.finished(number + 1)
    measured = [read_records(out / measured_file(n + 1)) for n in range(plan.runs)]
    validation = Validation(
        measured=measured,
        predicted=predicted.records,
        comparison=compare(measured, predicted.records),
        facts=_facts(plan, host, requests),
        notes=_notes(plan, predicted, host, state.probes_s),
    )
    _drop_runs_after(plan.runs, out)
    write_records(predicted.records, out / PREDICTED)
    write_text(out / COMPARISON, comparison_json(validation))
    state.complete()
    return validation


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

    @classmethod
    def open(cls, out: Path, setting: Mapping[str, Any], *, overwrite: bool) -> "_State":
        path = out / STATE
        if path.exists():
            content = _read_state(path)
            unfinished = not content.get("complete")
            if unfinished and content.get("setting") == setting:
                done = int(content.get("runs_done", 0))
                return cls(path, setting, done, list(content.get("probes_s", []))[:done])
            if not overwrite:
                what = "an unfinished validation of another setting" if unfinished else "one"
                raise CalibrationError(
                    f"{out}: holds {what} already; give another --out, or --overwrite"
                )
        state = cls(path, setting)
        state.finished(0)
        return state

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
            "complete": complete,
        }
        write_text(self.path, json.dumps(content, indent=1) + "\n")


def _read_state(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return {"complete": True}
    return content if isinstance(content, dict) else {"complete": True}


def _belong_together(plan: Plan, host: Host) -> None:
    made = plan.profile.provenance
    if len(plan.scenario.models) != 1 or plan.scenario.deployment.replicas != 1:
        raise ScenarioError(
            f"scenario {plan.scenario.name}: the engine validates one model on one replica"
        )
    if made.host_hash != host.hash:
        raise CalibrationError(
            f"the profile was measured on another host ({made.device}), this one is {host.cpu}; "
            "profile here first: moesim-calibrate profile"
        )
    spec = plan.profile.spec
    if made.model_digest != model_digest(plan.model, spec):
        raise CalibrationError(
            f"--model: {plan.model} is not the checkpoint that was profiled "
            f"({made.model_source}); profile it first"
        )


def _setting(plan: Plan, requests: list[Request]) -> dict[str, Any]:
    workload = json.dumps([asdict(request) for request in requests])
    return {
        "workload": hashlib.sha256(workload.encode()).hexdigest()[:16],
        "model": plan.profile.provenance.model_digest,
        "host": plan.profile.provenance.host_hash,
        "limits": asdict(_limits(plan)),
        "num_blocks": _num_blocks(plan),
        "runs": plan.runs,
    }


def _limits(plan: Plan) -> Limits:
    return limits_of(plan.scenario, plan.profile.spec, plan.profile.kv.block_size)


def _num_blocks(plan: Plan) -> int:
    return plan.scenario.deployment.kv_blocks or plan.profile.kv.num_blocks


def _serve(
    plan: Plan, decoder: Decoder, requests: list[Request], number: int, progress: Reporter
) -> tuple[pd.DataFrame, float]:
    """Serve the workload once in real time; runs differ in the tokens sampled.

    Returns the records, and the probe's duration around the run [s].
    """
    limits = _limits(plan)
    config = EngineConfig(
        limits=limits,
        num_blocks=_num_blocks(plan),
        block_size=plan.profile.kv.block_size,
        sampling=Sampling(temperature=1.0, seed=number),
    )
    engine = Engine(decoder, config)
    _warm_up(engine, limits)
    rng = np.random.default_rng([plan.seed, number])
    vocabulary = decoder.spec.vocab_size
    arrivals = [
        (
            record_of(request, f"{request.model}/0"),
            rng.integers(vocabulary, size=request.prompt_tokens).tolist(),
        )
        for request in requests
    ]
    title = f"serving for real, run {number + 1} of {plan.runs}"
    last_s = max(plan.scenario.duration_s, requests[-1].arrival_s)
    before_s = probe_s(engine)
    engine.clock = WallClock()
    records = engine.serve(arrivals, lambda now_s: progress(min(1.0, now_s / last_s), title))
    return records, (before_s + probe_s(engine)) / 2


def _warm_up(engine: Engine, limits: Limits) -> None:
    """Touch every code path once, so that the first request does not pay for it."""
    rng = np.random.default_rng(0)
    size = min(32, limits.max_batched_tokens - 1)
    parts = (Part(1, 8), Part(size, 0)) if size > 1 else (Part(1, 8),)
    for _ in range(10):
        measure(engine, Point(parts[: limits.max_num_seqs]), rng)


def _facts(plan: Plan, host: Host, requests: list[Request]) -> dict[str, str]:
    spec, made = plan.profile.spec, plan.profile.provenance
    prompts = np.mean([request.prompt_tokens for request in requests])
    outputs = np.mean([request.output_tokens for request in requests])
    return {
        "device": f"{made.device}, {made.threads} threads",
        "model": (
            f"{Path(plan.model).name}: {spec.num_hidden_layers} layers of "
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
        "software": ", ".join(f"{name} {version}" for name, version in made.software.items()),
        "seed": str(plan.seed),
        "load at the end": f"{host.load:.2f}",
    }


def _notes(plan: Plan, predicted: Result, host: Host, probes_s: list[float]) -> list[str]:
    notes = [plan.scenario.description] if plan.scenario.description else []
    extrapolated = [name for name, basis in predicted.basis.items() if basis == "extrapolated"]
    if not extrapolated:
        notes.append("Every predicted duration lies inside the measured grid.")
    then_s = plan.profile.verdict.probe_s
    if then_s:
        times = ", ".join(f"{now_s / then_s:.2f}" for now_s in probes_s)
        notes.append(
            f"Around the real runs the host took {times} times as long for one and the same small "
            "batch as while it was profiled; nothing is corrected by this."
        )
    return [*notes, *predicted.warnings, *host.notes]
