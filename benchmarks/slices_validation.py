"""Two models, each on half the cores of a CPU, served for real beside their prediction.

    python benchmarks/slices_validation.py --out slices-validation

Makes two checkpoints of one small shape with random weights, measures the CPU's rates, profiles a
whole device and each half, sees how many requests a second both halves work off together, and
serves about 30, 60 and 90 % of that. Measured stands beside the simulator's `mps` three times:

| prediction | profiles | bandwidth |
|---|---|---|
| scaled | of the whole device, scaled to its half | divided among the busy |
| own | of each half | divided among the busy |
| own, undivided | of each half | as if each half had all of it |

Rounds go over all loads in an order drawn anew. What is finished is kept in `--out`: the same
command goes on from there.

With `--clock own`, the default, a share's clock counts the CPU time of the thread that serves, and
plain time while it waits for the next request: a host that is shared with others takes that thread
off its core, and what it does meanwhile is neither the engine's nor the simulator's. What others do
to caches and memory stays in. `--clock wall` is plain time. The profile of the whole device, on
several threads, is always in plain time.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from calibration.calibrate import Settings, calibrate, silent
from calibration.datasheet import device_yaml, measured_device
from calibration.host import Host, detect
from calibration.sharing import LateClock
from calibration.slices import serve_on_shares
from calibration.validate import Plan, foresee
from engine.model.checkpoint import random_decoder, save_decoder
from engine.slices.at_once import Gate, on_cores
from engine.slices.cores import Cores, divide_cores
from moesim.cost.profile import Profile, load_profile
from moesim.evidence.compare import compare_tenants, in_words
from moesim.facts.catalog import load_device
from moesim.facts.models import ModelSpec
from moesim.files import write_text
from moesim.scenario import Scenario, scenario_from
from moesim.serving.records import read_records, write_records
from moesim.simulation.replications import MOST, replicate

SPEC = ModelSpec(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=64,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=4096,
    max_position_embeddings=512,
    dtype="float32",
)
"""The demo model at about a fifth of its size: 60 MiB of weights, more than a core's own cache."""

CPU = torch.device("cpu")
NAMES = ("a", "b")
HALF = Fraction(1, 2)
SCHEDULER = {"max_num_seqs": 4, "max_batched_tokens": 128}
BURST = {"kind": "constant", "rate_per_s": 100.0}
BURST_S = 0.3
"""All at once, to see how fast a queue is worked off."""

UNDIVIDED = 1e6
"""By how much the bandwidth of a device is larger of which nobody can miss anything."""

FIGURES = ("ttft_s", "tpot_s", "turnaround_s", "throughput_rps")
KINDS = ("scaled", "own", "own, undivided")


class WorkedClock(LateClock):
    """The CPU time of this thread while it works, plain time while it waits.

    All that a share's process times besides, such as its probes, is CPU time too.
    """

    def __init__(self) -> None:
        time.perf_counter = time.thread_time
        self._waited_s = 0.0

    def begin(self) -> None:
        """Let time begin now."""
        self._waited_s = -time.thread_time()

    def now(self) -> float:
        """Return seconds since the beginning."""
        return time.thread_time() + self._waited_s

    def wait_until(self, moment_s: float) -> None:
        """Sleep until `moment_s`."""
        left_s = max(0.0, moment_s - self.now())
        time.sleep(left_s)
        self._waited_s += left_s


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A profile to make, in a process on the cores that it is of."""

    model: Path
    out: Path
    budget_s: float
    host: Host
    share: str
    own_time: bool


def make_profile(asked: Asked, gate: Gate) -> None:
    """Profile a checkpoint on the cores that this process has."""
    if asked.own_time:
        time.perf_counter = time.thread_time  # every clock of the engine and of calibration
    settings = Settings(
        model=str(asked.model),
        budget_s=asked.budget_s,
        **SCHEDULER,  # so that probes are of the batch that is probed around the real runs
        device=CPU,
        share=asked.share,
    )
    calibrate(settings, asked.out, asked.host, silent)


def prepare(folder: Path, budget_s: float, *, own_time: bool) -> None:
    """Make checkpoints, device files and profiles where they are missing."""
    host = detect()
    for seed, name in enumerate(NAMES):
        if not (folder / name).exists():
            save_decoder(random_decoder(SPEC, seed=seed), folder / name)
    if not (folder / "cpu.yaml").exists():
        device = measured_device(host, "cpu")
        much = UNDIVIDED * (device.memory_bandwidth_bytes_per_s or 0.0)
        undivided = device.model_copy(
            update={"memory_bandwidth_bytes_per_s": much, "sm_bytes_per_s": None}
        )
        write_text(folder / "cpu.yaml", device_yaml(device))
        write_text(folder / "undivided.yaml", device_yaml(undivided))
    halves = divide_cores([HALF] * len(NAMES))
    (everything,) = divide_cores([Fraction(1)])
    places: dict[str, tuple[str, Cores]] = {
        name: (str(half.part), half) for name, half in zip(NAMES, halves, strict=True)
    }
    for name, (share, cores) in {"whole": ("", everything), **places}.items():
        out = folder / f"{name}.json"
        if not out.exists():
            print(f"profiling {name} on {share or 'all cores'}", file=sys.stderr, flush=True)
            asked = Asked(
                model=folder / (name if share else NAMES[0]),
                out=out,
                budget_s=budget_s,
                host=host,
                share=share,
                own_time=own_time and bool(share),
            )
            on_cores([cores], make_profile, [asked])


def scenario_of(
    folder: Path, arrivals: Mapping[str, Any], duration_s: float, device: str = "cpu"
) -> Scenario:
    """Return both tenants with the same arrivals, each on half the cores."""
    lengths = {"kind": "lognormal", "cv": 0.5}
    tenant = {
        "arrivals": arrivals,
        "prompt_tokens": {**lengths, "mean": 32, "max": 96},
        "output_tokens": {**lengths, "mean": 16, "max": 48},
    }
    return scenario_from(
        {
            "name": "two models on halves of a CPU",
            "duration_s": duration_s,
            "models": {
                name: {
                    "architecture": str(folder / name),
                    "profile": str(folder / "whole.json"),
                }
                for name in NAMES
            },
            "tenants": {name: {**tenant, "model": name} for name in NAMES},
            "hardware": {"device": str(folder / f"{device}.yaml")},
            "deployment": {
                "kind": "mps",
                "sm_percent": {name: 100 * float(HALF) for name in NAMES},
                "kv_blocks": 64,
                "scheduler": SCHEDULER,
            },
        }
    )


def serve(folder: Path, scenario: Scenario, run: int, *, own_time: bool) -> dict[str, Any]:
    """Serve a scenario for real; return its records and what was measured before."""
    profiles = {name: load_profile(folder / f"{name}.json") for name in NAMES}
    folders = {name: folder / name for name in NAMES}
    clock = WorkedClock if own_time else LateClock
    records, around = serve_on_shares(
        scenario, profiles, folders, CPU, seed=0, run=run, clock=clock
    )
    return {"records": records, **asdict(around)}


def capacity_rps(folder: Path, *, own_time: bool) -> float:
    """Return how many requests a second a half works off while the other does the same."""
    path = folder / "capacity.json"
    if not path.exists():
        burst = scenario_of(folder, BURST, BURST_S)
        found = [serve(folder, burst, run, own_time=own_time)["records"] for run in range(3)]
        rates = [
            len(rows) / float(rows["finish_s"].max())
            for records in found
            for _, rows in records.groupby("tenant")
        ]
        write_text(path, json.dumps(float(np.median(rates))))
    return float(json.loads(path.read_text()))


def loaded(folder: Path, rate_per_s: float, duration_s: float, device: str = "cpu") -> Scenario:
    """Return the scenario at a rate."""
    arrivals = {"kind": "poisson", "rate_per_s": rate_per_s}
    return scenario_of(folder, arrivals, duration_s, device)


def serve_all(
    folder: Path, rates: Mapping[float, float], runs: int, duration_s: float, *, own_time: bool
) -> None:
    """Serve every load that is not on file yet, round by round."""
    (folder / "runs").mkdir(exist_ok=True)
    for run in range(runs):
        for load in np.random.default_rng(run).permutation(list(rates)):
            path = file_of(folder, load, run)
            if path.exists():
                continue
            print(f"run {run + 1} of {runs} at {load:.0%}", file=sys.stderr, flush=True)
            found = serve(folder, loaded(folder, rates[load], duration_s), run, own_time=own_time)
            kept = {name: found[name] for name in ("probe_s", "stretch")}
            write_text(path.with_suffix(".json"), json.dumps(kept))
            write_records(found["records"], path)


def file_of(folder: Path, load: float, run: int) -> Path:
    """Return where a real run's records are."""
    return folder / "runs" / f"{load:g}-{run}.parquet"


def predicted(folder: Path, kind: str, rate_per_s: float, duration_s: float) -> dict[str, Any]:
    """Return the simulator's metrics of the requests that are served."""
    own = {name: load_profile(folder / f"{name}.json") for name in NAMES}
    device = "undivided" if kind == "own, undivided" else "cpu"
    plan = Plan(
        scenario=loaded(folder, rate_per_s, duration_s, device),
        profile=load_profile(folder / "whole.json"),
        model="",
        runs=1,
        seed=0,
        device=CPU,
        variants={name: folder / name for name in NAMES},
        share_profiles={} if kind == "scaled" else own,
    )
    foreseen = foresee(plan)
    many = replicate(foreseen.scenario, foreseen.profiles, 0, replications=MOST, same_requests=True)
    return many.metrics()


def rows_of(
    folder: Path, load: float, rate_per_s: float, runs: int, duration_s: float
) -> Iterator[dict[str, Any]]:
    """Yield measured beside each prediction, tenant by tenant and figure by figure."""
    files = [file_of(folder, load, run) for run in range(runs)]
    measured = [read_records(path) for path in files]
    for kind in KINDS:
        table = compare_tenants(measured, predicted(folder, kind, rate_per_s, duration_s))
        table = table[(table["statistic"] == "mean") & table["metric"].isin(FIGURES)]
        for row in json.loads(table.to_json(orient="records")):
            yield {"load": load, "prediction": kind, **row, **_host(folder, files)}


def _host(folder: Path, files: list[Path]) -> dict[str, float]:
    """Return how slow the host was around the runs, and how much slower beside a neighbour."""
    around = [json.loads(path.with_suffix(".json").read_text()) for path in files]
    then_s = [profile.verdict.probe_s or 0.0 for profile in _profiles(folder)]
    return {
        "host": float(np.mean([each["probe_s"] for each in around]) / np.mean(then_s)),
        "stretch": float(np.mean([each["stretch"] for each in around])),
    }


def _profiles(folder: Path) -> list[Profile]:
    return [load_profile(folder / f"{name}.json") for name in NAMES]


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line for each load, tenant and prediction, and how many figures are close."""
    print("measured / predicted, error (run-to-run spread); ! where it is off\n")
    print(
        "| load | host | stretch | tenant | prediction | TTFT [ms] | TPOT [ms] | turnaround [ms] "
        "| req/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for key, cells in pd.DataFrame(rows).groupby(
        ["load", "host", "stretch", "tenant", "prediction"], sort=False
    ):
        load, host, stretch, tenant, kind = key
        told = {cell["metric"]: in_words(cell) for cell in cells.to_dict("records")}
        line = [f"{load:.0%}", f"{host:.2f}", f"{stretch:.2f}", tenant, kind]
        print("| " + " | ".join([*line, *(told.get(metric, "") for metric in FIGURES)]) + " |")
    for kind in KINDS:
        for metric in FIGURES:
            own = [r for r in rows if (r["prediction"], r["metric"]) == (kind, metric)]
            print(f"{kind}: {metric}: {sum(r['close'] for r in own)} of {len(own)} close")


def main() -> None:
    """Make, profile, serve, predict, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("slices-validation"))
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--budget-s", type=float, default=40.0, help="for each profile")
    parser.add_argument("--clock", choices=("own", "wall"), default="own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    own_time = given.clock == "own"
    given.out.mkdir(parents=True, exist_ok=True)
    prepare(given.out, given.budget_s, own_time=own_time)
    most = capacity_rps(given.out, own_time=own_time)
    rates = {load: load * most for load in given.loads}
    serve_all(given.out, rates, given.runs, given.duration_s, own_time=own_time)
    rows = [
        row
        for load, rate in rates.items()
        for row in rows_of(given.out, load, rate, given.runs, given.duration_s)
    ]
    device = load_device(str(given.out / "cpu.yaml"))
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        print(f"{device.source}\na half works off {most:.3g} requests/s beside the other\n")
        print_table(rows)


if __name__ == "__main__":
    main()
