"""Tables as rows of text, for a terminal, the report and the dashboard alike."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from moesim.evidence.compare import TOLERANCE
from moesim.serving.metrics import STATISTICS
from moesim.simulation.replications import COVERAGE
from moesim.views.wording import (
    LABELS,
    MISSING,
    Interval,
    bracketed,
    figure_name,
    percent,
    rounded,
    time_unit,
    unit_of,
    written,
)

COMPARISON_HEADINGS = (
    "Figure",
    "Measured",
    "Predicted [low, high]",
    "Error",
    "Spread",
    "Verdict",
    "Hit",
)
PREDICTED = COMPARISON_HEADINGS.index("Predicted [low, high]")
VERDICT = COMPARISON_HEADINGS.index("Verdict")
PERCENTILE_HEADINGS = ("Tenant", "Figure", *STATISTICS)

SHOWN_LATENCIES = ("ttft_s", "tpot_s", "itl_s", "turnaround_s")
"""From the first token to the last; gaps between tokens are known of runs with a log only."""

CLOSE = "close"
OFF = "off"

HIT = "yes"
MISSED = "no"


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """One tenant's figures, or all tenants' together; intervals are empty for a single run."""

    name: str
    figures: Mapping[str, Any]
    intervals: Mapping[str, Any]

    @property
    def latencies(self) -> list[str]:
        """The latencies it has."""
        return [metric for metric in SHOWN_LATENCIES if metric in self.figures]

    def value(self, metric: str, statistic: str | None = None) -> float | None:
        """Return a figure; a latency has statistics, other figures have none."""
        found: float | None = _at(self.figures, metric, statistic)
        return found

    def interval(self, metric: str, statistic: str | None = None) -> Interval | None:
        """Return between which values a figure lies; None of a single run."""
        found: Interval | None = _at(self.intervals, metric, statistic)
        return found

    def row(self, metric: str, statistics: Sequence[str]) -> tuple[str, list[tuple[str, str]]]:
        """Return a latency's unit, and each statistic and its interval in that unit."""
        values = [self.value(metric, statistic) for statistic in statistics]
        unit, per_second = time_unit(max((x for x in values if x is not None), default=0.0))
        intervals = [self.interval(metric, statistic) for statistic in statistics]
        return unit, [estimate(*pair, per_second) for pair in zip(values, intervals, strict=True)]


def _at(tree: Mapping[str, Any], metric: str, statistic: str | None) -> Any:
    found = tree.get(metric)
    return found.get(statistic) if statistic and found else found


def groups_of(metrics: Mapping[str, Any], everyone: str = "all tenants") -> list[Group]:
    """Return each tenant's figures and then everyone's, unless there is a single tenant.

    `metrics` is what `Replications.metrics()` or `Result.metrics()` returns, or
    `moesim.serving.metrics.summarise`.
    """
    intervals = metrics.get("intervals") or {"tenants": {}, "overall": {}}
    tenants = [
        Group(name=name, figures=figures, intervals=intervals["tenants"].get(name, {}))
        for name, figures in metrics["tenants"].items()
    ]
    if len(tenants) == 1:
        return tenants
    return [
        *tenants,
        Group(name=everyone, figures=metrics["overall"], intervals=intervals["overall"]),
    ]


def estimate(value: float | None, interval: Interval | None, scale: float = 1) -> tuple[str, str]:
    """Write a figure and its interval in some unit: `46.4` and `[38.4, 49.2]`."""
    if value is None or value != value:
        return MISSING, ""
    return written(value * scale), bracketed(interval, scale)


def comparison_rows(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one row of text per compared figure, under `COMPARISON_HEADINGS`.

    Measured and predicted are in one unit, which stands behind the first: `48.1 ms` and
    `46.4 [38.4, 49.2]`.
    """
    return [
        (
            figure_name(row["metric"], row["statistic"]),
            *_side_by_side(row),
            percent(row["error"], signed=True),
            percent(row["spread"]),
            CLOSE if row["close"] else OFF,
            HIT if row["hit"] else MISSED,
        )
        for row in comparison.to_dict("records")
    ]


def _side_by_side(row: Mapping[Any, Any]) -> tuple[str, str]:
    measured, predicted = row["measured"], row["predicted"]
    unit, scale = unit_of(row["metric"], [measured, predicted])
    cell = estimate(predicted, [row["low"], row["high"]], scale)
    return f"{rounded(measured * scale)} {unit}", " ".join(cell)


def predicted_group(comparison: pd.DataFrame) -> Group:
    """Return the prediction's medians and intervals, as charts mark them on its curve."""
    figures: dict[str, dict[str, float]] = {}
    intervals: dict[str, dict[str, Interval]] = {}
    for row in comparison.to_dict("records"):
        metric, statistic = row["metric"], row["statistic"]
        figures.setdefault(metric, {})[statistic] = row["predicted"]
        intervals.setdefault(metric, {})[statistic] = [row["low"], row["high"]]
    return Group(name="predicted", figures=figures, intervals=intervals)


def headline(comparison: pd.DataFrame) -> str:
    """Say in a sentence how good a prediction was, to someone who reads nothing else."""
    if comparison.empty:
        return "Nothing to compare: no request completed."
    count, hit = len(comparison), comparison["hit"].sum()
    within = comparison["error"].abs() <= TOLERANCE
    looser = (comparison["close"] & ~within).sum()
    spread = comparison["spread"].median()
    return (
        f"{within.sum()} of {count} predicted figures are within {TOLERANCE:.0%} of the real runs"
        + (f", {looser} more within twice their spread (median {spread:.0%})" if looser else "")
        + f"; {hit} of {count} real ones lie in the predicted {COVERAGE:.0%} interval."
    ).replace("%", " %")


def percentile_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each tenant's latencies, then everyone's, under `PERCENTILE_HEADINGS`.

    `metrics` is as in `groups_of`; with intervals a cell reads `46.4 [38.4, 49.2] ms`.
    """
    return [
        (group.name, LABELS[metric], *_with_unit(*group.row(metric, STATISTICS)))
        for group in groups_of(metrics)
        for metric in group.latencies
    ]


def _with_unit(unit: str, cells: list[tuple[str, str]]) -> list[str]:
    return [
        MISSING if number == MISSING else " ".join(part for part in (number, ends, unit) if part)
        for number, ends in cells
    ]


def interval_meaning(metrics: Mapping[str, Any]) -> str:
    """Say in a sentence what the intervals are; nothing of a single run."""
    if not metrics.get("intervals"):
        return ""
    return (
        f"median [low, high] over {metrics['replications'] - 1} runs, {metrics['varied']} redrawn: "
        f"{100 * metrics['coverage']:.0f} % of single runs fall inside"
    )


def verdict(metrics: Mapping[str, Any]) -> str:
    """Say whether the run was steady, and how many of the replications agree if not all."""
    steady = metrics["steady"]
    agreed = steady.get("agreed")
    if agreed is None or agreed == 1:
        return str(steady["sentence"])
    return f"{steady['sentence']} (so in {100 * agreed:.0f} % of the runs)"
