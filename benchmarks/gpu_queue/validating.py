"""Step `validate`: one model at three loads, served for real beside what its profile predicts."""

from collections.abc import Hashable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.released import release
from benchmarks.gpu_queue.sizes import Traffic
from benchmarks.gpu_queue.tables import shown, write_tables
from calibration.plan import Plan
from calibration.validate import validate
from moesim.commands import progress_bar
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError, MoesimError
from moesim.evidence.validation import Validation, load_validation
from moesim.scenario import PROFILED, Scenario, scenario_from
from moesim.simulation.run import simulate

LOADS = (0.3, 0.6, 0.9)
RUNS = 2
"""Real runs of each load: two show how far one differs from the other."""

DRAIN = 1.25
"""How much longer than its arrivals a run is taken to last."""

BURST_S, BURST = 1.0, 10
"""A burst of so many times as many requests as run at once, to see how fast they are worked off."""

MEDIAN_WANTED, P99_WANTED = 0.05, 0.10
"""Errors at the median and at p99 that the project aims at."""


def run(begun: Begun) -> bool:
    """Serve and predict each load, write every figure, and print a short table."""
    asked = begun.asked
    if not asked.profile.exists():
        raise CalibrationError(f"{asked.profile}: is not there; run the step profile first")
    capacity = capacity_rps(asked)
    each_s = asked.measuring("validate") / (len(LOADS) * RUNS) / DRAIN
    rows: list[dict[str, Any]] = []
    for load in LOADS:
        made = validated(begun, load, load * capacity, each_s)
        requests = len(made.measured[0])
        head = {"load": load, "rate_rps": load * capacity, "requests": requests}
        rows += [{**head, **_named(row)} for row in made.comparison.to_dict("records")]
        release()
    write_tables(begun, {"figures": rows}, capacity_rps=capacity, runs=RUNS, duration_s=each_s)
    print(shown(short(rows)))
    for line in verdict(rows):
        print(line)
    return True


def _named(row: Mapping[Hashable, Any]) -> dict[str, Any]:
    return {str(name): value for name, value in row.items()}


def validated(begun: Begun, load: float, rate_per_s: float, duration_s: float) -> Validation:
    """Return one load, served and predicted; what was finished before is taken up again."""
    asked = begun.asked
    arrivals = {"kind": "poisson", "rate_per_s": rate_per_s}
    plan = Plan(
        scenario=scenario_of(asked, arrivals, duration_s, f"{load:.0%} of capacity"),
        profile=load_profile(asked.profile),
        model=asked.model,
        runs=RUNS,
        seed=round(100 * load),
        device=asked.device,
    )
    folder = asked.out / f"validate-{100 * load:.0f}"
    done = finished(folder, plan)
    if done is not None:
        return done
    with progress_bar() as progress:
        return validate(plan, folder, begun.host, progress, overwrite=True)


def finished(folder: Path, plan: Plan) -> Validation | None:
    """Return a validation of the same profile for the same time that is there; None without."""
    try:
        found = load_validation(folder)
    except MoesimError:
        return None
    profile, lasted = found.facts.get("profile", ""), found.facts.get("workload", "")
    same = plan.profile.provenance.date in profile
    return found if same and f" in {plan.scenario.duration_s:g} s," in lasted else None


def capacity_rps(asked: Asked) -> float:
    """Return how many requests a second the simulator has served when many come at once."""
    at_once = {"kind": "constant", "rate_per_s": BURST * asked.size.traffic.max_num_seqs / BURST_S}
    records = simulate(scenario_of(asked, at_once, BURST_S, "burst"), seed=0).records
    return len(records) / float(records["finish_s"].max())


def scenario_of(asked: Asked, arrivals: dict[str, Any], duration_s: float, name: str) -> Scenario:
    """Return the traffic of the size, with such arrivals, to one model on one device."""
    traffic: Traffic = asked.size.traffic
    scheduler = {
        "max_num_seqs": traffic.max_num_seqs,
        "max_batched_tokens": asked.size.max_batched_tokens,
    }
    content = {
        "name": name,
        "duration_s": duration_s,
        "models": {"model": {"architecture": asked.model, "profile": str(asked.profile)}},
        "tenants": {"users": traffic.tenant("model", arrivals)},
        "hardware": {"device": PROFILED},
        "deployment": {"kind": "dedicated", "scheduler": scheduler},
    }
    return scenario_from(content).served_here(asked.model)


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return means, medians, p99 and throughputs, in seconds or a second."""
    wanted = [row for row in rows if row["statistic"] in ("mean", "p50", "p99")]
    return [
        {
            "load": row["load"],
            "figure": f"{row['metric']} {row['statistic']}",
            **{key: row[key] for key in ("measured", "predicted", "low", "high")},
            "error %": 100 * row["error"],
            "spread %": 100 * row["spread"],
            "hit": row["hit"],
        }
        for row in wanted
    ]


def verdict(rows: list[dict[str, Any]]) -> list[str]:
    """Say how large errors are at the median and at p99, and how many intervals hold."""
    frame = pd.DataFrame(rows)
    lines = []
    for statistic, wanted in (("p50", MEDIAN_WANTED), ("p99", P99_WANTED)):
        errors = frame.loc[frame["statistic"] == statistic, "error"].abs()
        within = int((errors <= wanted).sum())
        lines.append(
            f"{statistic}: {within} of {len(errors)} figures within {wanted:.0%}, "
            f"largest error {errors.max():.1%}"
        )
    return [*lines, f"intervals hold {int(frame['hit'].sum())} of {len(frame)} figures"]
