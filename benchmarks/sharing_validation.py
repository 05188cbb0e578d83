"""Variants that share a device, served for real beside their prediction, tenant by tenant.

    python benchmarks/sharing_validation.py --out sharing-validation

Makes two and three variants of a small checkpoint with random weights, profiles the first with what
sharing costs, and serves them consolidated at ratios 0, 0.5 and 1, at about 30, 60 and 90 % of what
the simulator takes for their capacity. As many expert copies have a place as one model has experts,
so that a lower ratio leaves more of them absent; one non-expert set is loaded at a time. Rounds go
over all cells in an order drawn anew, so that a slow spell of the host touches all alike. What is
finished is kept in `--out`: the same command goes on from there.

With `--clock own`, the default, every clock of the process counts the CPU time of the one thread
that serves, and jumps to the next arrival while there is nothing to do: a host that is shared with
others takes that thread off its core, and what it does meanwhile is neither the engine's nor the
simulator's. What others do to caches and memory stays in. `--clock wall` is plain time.
"""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: one thread does all the work

import argparse
import json
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibration.calibrate import Settings, calibrate, engine_for
from calibration.host import detect
from calibration.probe import probe_s
from calibration.sharing import Host, LateClock, host_of, serve_together
from calibration.transfers import Asked
from engine.model.checkpoint import random_decoder, save_decoder
from moesim.cost.profile import Profile, load_profile
from moesim.evidence.compare import compare_tenants, in_words
from moesim.facts.models import ModelSpec
from moesim.files import write_text
from moesim.scenario import Scenario, scenario_from
from moesim.serving.records import read_records, write_records
from moesim.simulation.replications import MOST, replicate
from moesim.simulation.run import simulate

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
"""The demo model at about a fifth of its size: an expert is 1.5 MiB, 32 of them a model."""

NAMES = ("a", "b", "c")
FIGURES = (
    ("ttft_s", "mean"),
    ("tpot_s", "mean"),
    ("turnaround_s", "mean"),
    ("throughput_rps", "mean"),
)
SCHEDULER = {"max_num_seqs": 4, "max_batched_tokens": 128}
BURST = {"kind": "constant", "rate_per_s": 1000.0}
BURST_S = 0.2
"""All at once, to see how fast a queue is worked off."""

Cell = tuple[int, float, float]
"""Variants, ratio, load."""


class OwnClock(LateClock):
    """The CPU time of this thread; idle, it jumps."""

    def wait_until(self, moment_s: float) -> None:
        """Jump to `moment_s`."""
        self._start -= max(0.0, moment_s - self.now())


def scenario_of(
    folder: Path, cell: Cell, arrivals: Mapping[str, Any], duration_s: float
) -> Scenario:
    """Return a scenario of a cell; every tenant has the same arrivals."""
    count, ratio, _ = cell
    names = NAMES[:count]
    # Copies in all: P (r + V (1 - r)); P of them have a place.
    resident = min(1.0, 1 / (ratio + count * (1 - ratio)))
    lengths = {"kind": "lognormal", "cv": 0.5}
    tenant = {
        "arrivals": arrivals,
        "prompt_tokens": {**lengths, "mean": 32, "max": 96},
        "output_tokens": {**lengths, "mean": 16, "max": 48},
    }
    profile = str(folder / "profile.json")
    return scenario_from(
        {
            "name": f"{count} variants, ratio {ratio:g}",
            "duration_s": duration_s,
            "models": {
                name: {"architecture": str(folder / name), "profile": profile} for name in names
            },
            "tenants": {name: {**tenant, "model": name} for name in names},
            "hardware": {"device": "cpu-2core"},
            "deployment": {
                "kind": "consolidated",
                "ratio": ratio,
                "kv_blocks": 64,
                "experts": {"resident": resident},
                "scheduler": SCHEDULER,
            },
        }
    )


def capacity_rps(folder: Path, cell: Cell) -> float:
    """Return how many requests a second the simulator has served when many come at once."""
    records = simulate(scenario_of(folder, cell, BURST, BURST_S), seed=0).records
    return len(records) / float(records["finish_s"].max())


def cells_of(variants: list[int], ratios: list[float], loads: list[float]) -> list[Cell]:
    """Return all combinations."""
    return [(v, ratio, load) for v in variants for ratio in ratios for load in loads]


def loaded(folder: Path, cell: Cell, duration_s: float) -> Scenario:
    """Return a cell's scenario at its share of the capacity, divided among the tenants."""
    rate = cell[2] * capacity_rps(folder, cell) / cell[0]
    return scenario_of(folder, cell, {"kind": "poisson", "rate_per_s": rate}, duration_s)


def profiled(folder: Path, budget_s: float) -> Profile:
    """Return the profile in a folder; make checkpoints and profile where they are missing."""
    for seed, name in enumerate(NAMES):
        if not (folder / name).exists():
            save_decoder(random_decoder(SPEC, seed=seed), folder / name)
    path = folder / "profile.json"
    if not path.exists():
        calibrate(settings_of(folder, budget_s), path, detect(), lambda part, doing: None)
    return load_profile(path)


def settings_of(folder: Path, budget_s: float = 60.0) -> Settings:
    """Return what is profiled."""
    return Settings(
        model=str(folder / NAMES[0]),
        budget_s=budget_s,
        max_num_seqs=8,
        max_batched_tokens=128,
        device=torch.device("cpu"),
        transfers=Asked(variants={name: folder / name for name in NAMES}),
    )


def file_of(folder: Path, cell: Cell, run: int) -> Path:
    """Return where a real run's records are."""
    return folder / "runs" / f"{cell[0]}-{cell[1]:g}-{cell[2]:g}-{run}.parquet"


def serve_all(folder: Path, scenarios: Mapping[Cell, Scenario], runs: int, *, own: bool) -> None:
    """Serve every cell that is not on file yet, round by round."""
    (folder / "runs").mkdir(exist_ok=True)
    hosts: dict[tuple[int, float], Host] = {}
    plain = engine_for(settings_of(folder))
    cells = list(scenarios)
    todo = [
        (run, cells[place])
        for run in range(runs)
        for place in np.random.default_rng(run).permutation(len(cells))
        if not file_of(folder, cells[place], run).exists()
    ]
    for done, (run, cell) in enumerate(todo):
        print(f"{done + 1} of {len(todo)}: run {run + 1} of {cell}", file=sys.stderr, flush=True)
        scenario = scenarios[cell]
        profiles = {n: load_profile(folder / "profile.json").of_variant(n) for n in scenario.models}
        if cell[:2] not in hosts:
            folders = {name: folder / name for name in scenario.models}
            hosts[cell[:2]] = host_of(scenario, profiles, folders, torch.device("cpu"))
        before_s = probe_s(plain)
        records, _ = serve_together(
            hosts[cell[:2]],
            scenario,
            profiles,
            lambda part, doing: None,
            title="",
            seed=0,
            run=run,
            clock=OwnClock() if own else None,
        )
        probes_s = [before_s, probe_s(plain)]
        write_text(probe_of(folder, cell, run), json.dumps(probes_s))
        write_records(records, file_of(folder, cell, run))


def probe_of(folder: Path, cell: Cell, run: int) -> Path:
    """Return where is kept how fast the host was around a real run."""
    return file_of(folder, cell, run).with_suffix(".json")


def slowness(folder: Path, cell: Cell, runs: int, profile: Profile) -> float | None:
    """Return how many times as long the host took for one small batch as while it was profiled."""
    found = [probe_of(folder, cell, run) for run in range(runs)]
    probes_s = [taken for path in found if path.exists() for taken in json.loads(path.read_text())]
    if not probes_s or not profile.verdict.probe_s:
        return None
    return float(np.mean(probes_s)) / profile.verdict.probe_s


def rows_of(folder: Path, cell: Cell, scenario: Scenario, runs: int) -> Iterator[dict[str, Any]]:
    """Yield measured beside predicted for each tenant and figure of a cell."""
    files = [file_of(folder, cell, run) for run in range(runs)]
    measured = [read_records(path) for path in files if path.exists()]
    if not measured:
        return
    predicted = replicate(scenario, seed=0, replications=MOST, same_requests=True)
    table = compare_tenants(measured, predicted.metrics())
    table = table[[key in FIGURES for key in zip(table["metric"], table["statistic"], strict=True)]]
    requests = measured[0]["tenant"].value_counts()
    host = slowness(folder, cell, runs, load_profile(folder / "profile.json"))
    for row in json.loads(table.to_json(orient="records")):
        counts = {"runs": len(measured), "requests": int(requests[row["tenant"]]), "host": host}
        yield {"variants": cell[0], "ratio": cell[1], "load": cell[2], **row, **counts}


def print_table(rows: list[dict[str, Any]]) -> None:
    """Print a line for each tenant of each cell, and how many figures are close."""
    print(
        "measured / predicted, error (run-to-run spread); ! where it is off; host: how many times"
    )
    print("as long one small batch took around the runs as while it was profiled\n")
    print(
        "| variants | ratio | load | host | tenant | TTFT [ms] | TPOT [ms] | turnaround [ms] "
        "| req/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    lines: dict[tuple[Any, ...], dict[str, str]] = {}
    for row in rows:
        host = "?" if row["host"] is None else f"{row['host']:.2f}"
        key = row["variants"], f"{row['ratio']:g}", f"{row['load']:.0%}", host, row["tenant"]
        lines.setdefault(key, {})[row["metric"]] = in_words(row)
    for key, cells in lines.items():
        print("| " + " | ".join([*map(str, key), *(cells.get(m, "") for m, _ in FIGURES)]) + " |")
    for metric, _ in FIGURES:
        own = [row for row in rows if row["metric"] == metric]
        print(f"{metric}: {sum(row['close'] for row in own)} of {len(own)} close")


def main() -> None:
    """Make, profile, serve, predict, print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path("sharing-validation"))
    parser.add_argument("--variants", type=int, nargs="+", default=[2, 3])
    parser.add_argument("--ratios", type=float, nargs="+", default=[0.0, 0.5, 1.0])
    parser.add_argument("--loads", type=float, nargs="+", default=[0.3, 0.6, 0.9])
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--duration-s", type=float, default=10.0)
    parser.add_argument("--budget-s", type=float, default=60.0, help="for the profile")
    parser.add_argument("--clock", choices=("own", "wall"), default="own")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args()
    if given.clock == "own":
        time.perf_counter = time.thread_time  # every clock of the engine and of calibration
    torch.set_num_threads(1)
    given.out.mkdir(parents=True, exist_ok=True)
    profiled(given.out, given.budget_s)
    cells = cells_of(given.variants, given.ratios, given.loads)
    scenarios = {cell: loaded(given.out, cell, given.duration_s) for cell in cells}
    serve_all(given.out, scenarios, given.runs, own=given.clock == "own")
    rows = [row for cell in cells for row in rows_of(given.out, cell, scenarios[cell], given.runs)]
    if given.json:
        print(json.dumps(rows, indent=1))
    else:
        print_table(rows)


if __name__ == "__main__":
    main()
