"""Deployments side by side: the same requests and the same errors of the profile for each.

Runs of one number meet the same draws in every deployment (`moesim.simulation.replications`), so
the ratio of two deployments is taken run by run: what chance does to both falls out of it.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moesim.errors import ScenarioError
from moesim.scenario import Scenario
from moesim.simulation.replications import Replications

FIGURES = (
    ("ttft_s", "p50"),
    ("ttft_s", "p99"),
    ("tpot_s", "p50"),
    ("turnaround_s", "mean"),
    ("turnaround_s", "p99"),
    ("goodput_rps", ""),
    ("slo_attainment", ""),
)
"""What is compared, of all tenants together: metric and statistic; a rate has none."""

COLUMNS = (
    "deployment",
    "metric",
    "statistic",
    "median",
    "low",
    "high",
    "ratio",
    "ratio_low",
    "ratio_high",
    "note",
)


REFUSED = ("refused", "")
"""Compared too where any deployment refuses requests."""

DEVICES = ("devices", "")
"""How many a deployment takes, told where they differ."""

ABOVE = "above capacity"

NOTES = ("refused", ABOVE, "not settled", "too short", "absent experts", "warning")
"""What a note is about: requests not served, a queue that grows, a run that says little, experts in
host memory, or what is doubtful."""

NOTHING = (float("nan"),) * 6
"""The figures of a row that has none."""


def same_traffic(scenarios: Mapping[str, Scenario]) -> None:
    """Raise ScenarioError unless all scenarios have the same tenants and last as long."""
    (first, wanted), *others = scenarios.items()
    for name, scenario in others:
        if scenario.duration_s != wanted.duration_s:
            raise ScenarioError(
                f"{name}: duration_s: {scenario.duration_s:g}, in {first} it is "
                f"{wanted.duration_s:g}; compare deployments of one workload"
            )
        if scenario.tenants != wanted.tenants:
            differs = next(
                tenant
                for tenant in {**wanted.tenants, **scenario.tenants}
                if scenario.tenants.get(tenant) != wanted.tenants.get(tenant)
            )
            raise ScenarioError(
                f"{name}: tenants.{differs}: not as in {first}; compare deployments of one workload"
            )


def side_by_side(
    found: Mapping[str, Replications],
    notes: Sequence[str] = (),
    devices: Mapping[str, int] | None = None,
) -> pd.DataFrame:
    """Return a row per deployment and figure, `COLUMNS`; ratios are to the first deployment.

    A figure that does not exist is NaN, as are intervals of single runs. `devices` is how many each
    takes; where they differ there are rows `devices`, and where requests were refused, rows
    `refused`. Where a scenario names a
    curve of quality there is a row `quality` with the curve's metric and what is known in words.
    What a reader must not miss are rows `note`, their statistic one of `NOTES`; `notes`
    are said of all.
    """
    base = next(iter(found.values()))
    rows = []
    taken = devices if devices and len(set(devices.values())) > 1 else {}
    trees = {name: replications.metrics() for name, replications in found.items()}
    refused = any(metrics["overall"]["refused"] for metrics in trees.values())
    for name, replications in found.items():
        metrics = trees[name]
        if name in taken:
            rows.append((name, *DEVICES, float(taken[name]), *NOTHING[1:], ""))
        for metric, statistic in (*FIGURES, *([REFUSED] if refused else [])):
            rows.append(
                (
                    name,
                    metric,
                    statistic,
                    _figure(metrics["overall"], metric, statistic),
                    *_ends(metrics, metric, statistic),
                    *_ratio(replications, base, metric, statistic),
                    "",
                )
            )
        rows += _quality(name, metrics["quality"])
        said = [*_limits(metrics), *_settling(replications, metrics)]
        said += [("warning", f"warning: {each}") for each in (*metrics["warnings"], *notes)]
        rows += [(name, "note", kind, *NOTHING, words) for kind, words in said]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _quality(name: str, known: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """Return the row on quality, none where no curve is named; chance has no part in it."""
    if known is None:
        return []
    value = float("nan") if known["value"] is None else known["value"]
    return [(name, "quality", known["metric"], value, *NOTHING[1:], known["sentence"])]


def _limits(metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield what limits a deployment's figures: which of `NOTES`, and a line that says it."""
    overall = metrics["overall"]
    reason = metrics["refusal"]
    if overall["refused"] or reason:
        many = f"{overall['refused']:g} of {overall['requests']:g} requests refused"
        yield "refused", f"{many}: {reason}" if reason else many
    if metrics["absent_experts"]:
        yield "absent experts", metrics["absent_experts"]


def _settling(replications: Replications, metrics: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Yield the verdict on a run that was not steady, or on most runs if they are above capacity.

    Of a run that served nothing there is none.
    """
    verdicts = [run["steady"] for run in replications.runs]
    above = [verdict for verdict in verdicts if verdict["kind"] == ABOVE]
    steady = above[0] if 2 * len(above) > len(verdicts) else metrics["steady"]
    if steady["kind"] == "steady" or not metrics["overall"]["completed"]:
        return
    alike = sum(verdict["kind"] == steady["kind"] for verdict in verdicts)
    share = alike / len(verdicts) if verdicts else 1
    in_runs = "" if share == 1 else f" (so in {100 * share:.0f} % of the runs)"
    yield steady["kind"], f"{steady['sentence']}{in_runs}"


def _figure(overall: Mapping[str, Any], metric: str, statistic: str) -> float:
    value = overall[metric][statistic] if statistic else overall[metric]
    return float("nan") if value is None else float(value)


def _ends(metrics: Mapping[str, Any], metric: str, statistic: str) -> tuple[float, float]:
    if metrics["intervals"] is None:
        return float("nan"), float("nan")
    overall = metrics["intervals"]["overall"]
    ends = overall[metric][statistic] if statistic else overall[metric]
    return (float("nan"), float("nan")) if ends is None else (float(ends[0]), float(ends[1]))


def _ratio(
    ours: Replications, base: Replications, metric: str, statistic: str
) -> tuple[float, float, float]:
    """Return the median, 5th and 95th percentile of the ratio to the base, run by run."""
    pairs = list(zip(_runs(ours), _runs(base), strict=False))
    values = np.array([[_figure(run, metric, statistic) for run in pair] for pair in pairs])
    with np.errstate(divide="ignore", invalid="ignore"):
        ratios = values[:, 0] / values[:, 1]
    ratios = ratios[np.isfinite(ratios)]
    if not ratios.size:
        return (float("nan"),) * 3
    low, middle, high = np.percentile(ratios, [5, 50, 95], method="weibull")
    return float(middle), float(low), float(high)


def _runs(replications: Replications) -> Sequence[Mapping[str, Any]]:
    """Return each redrawn run's figures, those of the only run if there is one."""
    runs = replications.runs or (replications.first.metrics(),)
    return [run["overall"] for run in runs]
