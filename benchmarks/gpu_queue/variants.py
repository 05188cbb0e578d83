"""Step `variants`: two and three of them, consolidated, in turns, on shares; measured, predicted.

Whole variants do not fit, so these have a few layers and the whole ones' shortage of memory
(`room`). Rates are shares of what the packed consolidation works off, the same for every
deployment. A cell of which the prediction says that its queue outlasts its arrivals by far is not
served. What is finished is kept: the same command goes on from there.
"""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.gpu_queue.cells import SLICES, Cell, Ground, cells
from benchmarks.gpu_queue.grounds import ground_for, read_cell, say, share_file, share_profile
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.released import release
from benchmarks.gpu_queue.tables import shown, write_tables
from benchmarks.gpu_queue.validating import BURST, BURST_S
from calibration.calibrate import silent
from calibration.foresight import foresee
from calibration.plan import Plan
from calibration.sharing import Host, host_of, serve_together
from calibration.slices import serve_on_shares
from engine.variants.command import consolidate
from engine.variants.layout import Layout
from moesim.deployment import Consolidated
from moesim.errors import MoesimError
from moesim.evidence.compare import compare_replications
from moesim.files import write_text
from moesim.scenario import Scenario
from moesim.serving.records import write_records
from moesim.simulation.replications import MOST, Replications, replicate
from moesim.simulation.run import simulate

LONGEST = 3.0
"""Times its arrivals' duration that a cell may be predicted to take; beyond, nothing is settled."""

AGAIN = "again"
"""Marks the file of a cell that failed for a reason that may pass."""

FIGURES = ("ttft_s", "tpot_s", "turnaround_s", "throughput_rps")
SHOWN = {
    "ttft_s": "TTFT [ms]",
    "served_ttft_s": "from service [ms]",
    "turnaround_s": "turnaround [ms]",
    "throughput_rps": "req/s",
}
"""The figures of the printed table and their heads."""

CLAIM = 0.823
"""By how much the published system's mean turnaround, 8.78 s, is below that of two halves of a
divided GPU, 49.67 s (Imani et al., ICML 2025, arXiv:2505.06481)."""


def run(begun: Begun) -> bool:
    """Serve what is not on file yet, as far as the budget reaches, and print all that is."""
    began_s = time.monotonic()
    asked = begun.asked
    ground = ground_for(begun)
    bench = Bench(begun, ground)
    todo = list(cells(asked.size.variant_loads))
    for cell in todo:
        if settled(bench.file(cell)):
            continue
        if time.monotonic() - began_s + bench.expected_s(cell) > asked.budget("variants"):
            say(f"no time left for {cell.name}: the same command goes on from there")
            break
        bench.serve(cell)
    bench.close()
    rows = [row for cell in todo for row in rows_of(cell, bench.file(cell))]
    missing = [cell.name for cell in todo if not settled(bench.file(cell))]
    write_tables(
        begun,
        {"cells": rows},
        room=ground.room.told(),
        layers=f"{asked.size.variant.num_hidden_layers} layers in place of 32",
        missing=missing,
    )
    print(f"{asked.size.variant.num_hidden_layers} layers a variant; {ground.room.told()}")
    print(shown(short(rows)))
    for line in (*claim(rows), *(f"not made yet: {name}" for name in missing)):
        print(line)
    return not missing


def settled(file: Path) -> bool:
    """Whether a cell is on file, and not to be tried again."""
    content = read_cell(file)
    return content is not None and not content.get(AGAIN)


class Bench:
    """Serves cells one after the other, and keeps the family of the last for the next."""

    def __init__(self, begun: Begun, ground: Ground) -> None:
        self.longest_s = 0.0
        self._begun, self._ground = begun, ground
        self._loaded: tuple[tuple[int, str], Host] | None = None
        self._layouts: dict[int, Layout] = {}

    def file(self, cell: Cell) -> Path:
        """Return where a cell's figures are."""
        return self._begun.asked.out / "variants" / f"{cell.name}.json"

    def expected_s(self, cell: Cell) -> float:
        """Return how long a cell may take [s]: as the longest did, and its share's profile."""
        alone = cell.deployment != SLICES or share_file(self._begun.asked, cell.variants).exists()
        return self.longest_s + (0.0 if alone else self._ground.size.variant_profile_s)

    def close(self) -> None:
        """Let go of what is loaded."""
        self._loaded = None
        release()

    def serve(self, cell: Cell) -> None:
        """Predict and serve a cell, and keep its records and figures; or why it was not."""
        say(f"{cell.name}")
        began_s = time.monotonic()
        rate = self._rate(cell)
        content: dict[str, Any] = {"cell": asdict(cell), "rate_per_s": rate}
        try:
            content |= self._served(cell, rate)
        except MoesimError as wrong:
            content["not_served"] = str(wrong)
            self.close()
        except Exception as wrong:  # of torch, Triton or the driver: another try may do better
            reason = next(iter(str(wrong).splitlines()), type(wrong).__name__)
            content |= {"not_served": f"failed: {reason}", AGAIN: True}
            self.close()
        content["provenance"] = self._begun.provenance()
        write_text(self.file(cell), json.dumps(content, indent=1) + "\n")
        self.longest_s = max(self.longest_s, time.monotonic() - began_s)

    def _rate(self, cell: Cell) -> float:
        """Return the arrivals of each variant, a share of what packed ones work off [1/s]."""
        packed = replace(cell, deployment="packed")
        many = BURST * self._ground.traffic(cell).max_num_seqs / BURST_S
        at_once = {"kind": "constant", "rate_per_s": many}
        records = simulate(self._ground.scenario(packed, at_once, BURST_S), seed=0).records
        capacity = len(records) / float(records["finish_s"].max())
        return cell.load * capacity / cell.variants

    def _served(self, cell: Cell, rate: float) -> dict[str, Any]:
        arrivals = {"kind": "poisson", "rate_per_s": rate}
        duration_s = self._ground.duration_s(cell)
        scenario = self._ground.scenario(cell, arrivals, duration_s)
        predicted = self._predicted(cell, scenario)
        records = predicted.first.records
        lasts_s = float(records["finish_s"].max())
        if lasts_s > LONGEST * duration_s:
            reason = f"saturated: predicted to take {lasts_s:.0f} s for {duration_s:.0f} s"
            return {"not_served": reason, "predicted": _means(records)}
        found, around = self._for_real(cell, scenario)
        write_records(found, self.file(cell).with_suffix(".parquet"))
        figures = compare_replications([found], predicted.metrics())
        return {
            "figures": json.loads(figures.to_json(orient="records")),
            "measured": _means(found),
            "predicted": _means(records),
            "around": around,
            "requests": len(found),
        }

    def _predicted(self, cell: Cell, scenario: Scenario) -> Replications:
        profiles = self._ground.profiles(cell)
        if cell.deployment == SLICES:
            foreseen = foresee(self._plan(cell, scenario))
            scenario, profiles = foreseen.scenario, dict(foreseen.profiles)
        return replicate(scenario, profiles, 0, replications=MOST, same_requests=True)

    def _plan(self, cell: Cell, scenario: Scenario) -> Plan:
        asked, ground = self._begun.asked, self._ground
        self.close()
        own = share_profile(self._begun, ground, cell.variants)
        routers = {name: each.router for name, each in ground.profiles(cell).items()}
        return Plan(
            scenario=scenario,
            profile=ground.profile,
            model="",
            runs=1,
            seed=0,
            device=asked.device,
            variants=ground.of(cell),
            share_profiles={
                name: own.model_copy(update={"router": router}) for name, router in routers.items()
            },
        )

    def _for_real(self, cell: Cell, scenario: Scenario) -> tuple[pd.DataFrame, dict[str, float]]:
        """Return the records of a real run, and what one small batch took around it."""
        device, profiles = self._begun.asked.device, self._ground.profiles(cell)
        if cell.deployment == SLICES:
            found, around = serve_on_shares(
                scenario, profiles, self._ground.of(cell), device, seed=0, run=0
            )
            release()
            return found, asdict(around)
        host = self._host(cell, scenario)
        found, probe_s = serve_together(
            host, scenario, profiles, silent, title=cell.name, seed=0, run=0
        )
        release()
        return found, {"probe_s": probe_s}

    def _host(self, cell: Cell, scenario: Scenario) -> Host:
        key = (cell.variants, cell.deployment)
        if self._loaded is None or self._loaded[0] != key:
            self.close()
            profiles, folders = self._ground.profiles(cell), self._ground.of(cell)
            device = self._begun.asked.device
            layout = self._layout(scenario, folders)
            self._loaded = key, host_of(scenario, profiles, folders, device, cell.swap, layout)
        return self._loaded[1]

    def _layout(self, scenario: Scenario, folders: Mapping[str, Path]) -> Layout | None:
        """Return which experts are shared, found once for all cells of as many variants."""
        deployment, count = scenario.deployment, len(folders)
        if not isinstance(deployment, Consolidated):
            return None
        if count not in self._layouts:
            self._layouts[count] = consolidate(folders, deployment.ratio, lambda done, what: None)
        return self._layouts[count]


def _means(records: pd.DataFrame) -> dict[str, float]:
    """Return mean TTFT from arrival and from the start of service, and mean turnaround [s]."""
    return {
        "ttft_s": float((records["first_token_s"] - records["arrival_s"]).mean()),
        "served_ttft_s": float((records["first_token_s"] - records["scheduled_s"]).mean()),
        "turnaround_s": float((records["finish_s"] - records["arrival_s"]).mean()),
    }


def rows_of(cell: Cell, file: Path) -> list[dict[str, Any]]:
    """Return a row for each mean figure of a cell, or one that says why there is none."""
    content = read_cell(file)
    if content is None:
        return []
    head = {**asdict(cell), "rate_per_s": content["rate_per_s"]}
    if "figures" not in content:
        none = {"metric": "", "probe_s": None, "not_served": content["not_served"]}
        return [{**head, **none}]
    told: Any = content
    head |= {"probe_s": told["around"]["probe_s"], "not_served": ""}
    rows = [
        {**head, **{key: row[key] for key in ("metric", "measured", "predicted", "low", "high")}}
        | {"error": row["error"], "hit": row["hit"]}
        for row in told["figures"]
        if row["statistic"] == "mean" and row["metric"] in FIGURES
    ]
    ends = {key: told[key]["served_ttft_s"] for key in ("measured", "predicted")}
    error = ends["predicted"] / ends["measured"] - 1 if ends["measured"] else None
    served = {"metric": "served_ttft_s", **ends, "error": error}
    return [*rows, {**head, **served}]


def short(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return a line a cell: measured / predicted, error, in milliseconds or requests a second."""
    lines: dict[str, dict[str, Any]] = {}
    for row in rows:
        head = {key: row[key] for key in ("variants", "traffic", "deployment", "load")}
        blank = dict.fromkeys(SHOWN.values(), None)
        probe = {"probe [ms]": row["probe_s"] and 1e3 * row["probe_s"]}
        line = lines.setdefault(
            str(head), {**head, **blank, **probe, "not served": row["not_served"]}
        )
        if row["metric"] in SHOWN:
            line[SHOWN[row["metric"]]] = told(row)
    return list(lines.values())


def told(row: dict[str, Any]) -> str:
    """Return a figure in a few words."""
    factor = 1.0 if row["metric"] == "throughput_rps" else 1e3
    error = "" if row["error"] is None else f", {row['error']:+.0%}"
    return f"{factor * row['measured']:.3g} / {factor * row['predicted']:.3g}{error}"


def claim(rows: list[dict[str, Any]]) -> list[str]:
    """Set consolidation beside its rivals under the published traffic, as the claim does."""
    found = {
        row["deployment"]: row
        for row in rows
        if row["traffic"] == "published" and row["metric"] == "turnaround_s"
    }
    lines = [f"published: turnaround {CLAIM:.1%} shorter than on halves of an A100 short of memory"]
    for way, rival in product(("per tensor", "packed"), (SLICES, "offloaded", "time-shared")):
        if way in found and rival in found:
            seen, foreseen = (
                1 - found[way][key] / found[rival][key] for key in ("measured", "predicted")
            )
            lines.append(
                f"here, the same traffic: {way} against {rival} {seen:+.0%} shorter, "
                f"predicted {foreseen:+.0%}"
            )
    return lines
