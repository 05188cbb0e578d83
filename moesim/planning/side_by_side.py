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


NOTES = ("refused", "above capacity", "warning")
"""What a note is about: requests not served, a queue that grows, or what is doubtful."""

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


def side_by_side(found: Mapping[str, Replications], notes: Sequence[str] = ()) -> pd.DataFrame:
    """Return a row per deployment and figure, `COLUMNS`; ratios are to the first deployment.

    A figure that does not exist is NaN, as are intervals of single runs. Where a scenario names a
    curve of quality there is a row `quality` with the curve's metric and what is known in words.
    What a reader must not miss are rows `note`, their statistic one of `NOTES`; `notes`
    are said of all.
    """
    base = next(iter(found.values()))
    rows = []
    for name, replications in found.items():
        metrics = replications.metrics()
        for metric, statistic in FIGURES:
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
        rows += [(name, "note", kind, *NOTHING, said) for kind, said in _notes(metrics, notes)]
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _quality(name: str, known: Mapping[str, Any] | None) -> list[tuple[Any, ...]]:
    """Return the row on quality, none where no curve is named; chance has no part in it."""
    if known is None:
        return []
    value = float("nan") if known["value"] is None else known["value"]
    return [(name, "quality", known["metric"], value, *NOTHING[1:], known["sentence"])]


def _notes(metrics: Mapping[str, Any], notes: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield what limits a deployment's figures: which of `NOTES`, and a line that says it."""
    overall = metrics["overall"]
    reason = metrics["refusal"]
    if overall["refused"] or reason:
        many = f"{overall['refused']:g} of {overall['requests']:g} requests refused"
        yield "refused", f"{many}: {reason}" if reason else many
    if metrics["steady"]["kind"] == "above capacity":
        yield "above capacity", metrics["steady"]["sentence"]
    for warning in (*metrics["warnings"], *notes):
        yield "warning", f"warning: {warning}"


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
