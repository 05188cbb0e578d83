"""Tables as rows of text, for a terminal, the report and the dashboard alike."""

from collections.abc import Mapping
from typing import Any

import pandas as pd

from moesim.evidence.compare import TOLERANCE
from moesim.serving.metrics import LATENCIES, STATISTICS
from moesim.views.wording import LABELS, figure_name, in_units, percent

COMPARISON_HEADINGS = ("Figure", "Measured", "Predicted", "Error", "Spread", "Verdict")
PERCENTILE_HEADINGS = ("Tenant", "Figure", *STATISTICS)

CLOSE = "close"
OFF = "off"


def comparison_rows(comparison: pd.DataFrame) -> list[tuple[str, ...]]:
    """Return one row of text per compared figure, under `COMPARISON_HEADINGS`."""
    return [
        (
            figure_name(row["metric"], row["statistic"]),
            *in_units(row["metric"], [row["measured"], row["predicted"]]),
            percent(row["error"], signed=True),
            percent(row["spread"]),
            CLOSE if row["close"] else OFF,
        )
        for row in comparison.to_dict("records")
    ]


def headline(comparison: pd.DataFrame) -> str:
    """Say in a sentence how good a prediction was, to someone who reads nothing else."""
    if comparison.empty:
        return "Nothing to compare: no request completed."
    close = int(comparison["close"].sum())
    return (
        f"{close} of {len(comparison)} predicted figures are within {TOLERANCE:.0%} of the real "
        "runs or within twice the run-to-run spread."
    ).replace("%", " %")


def percentile_rows(metrics: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Return each tenant's latencies, then everyone's, under `PERCENTILE_HEADINGS`.

    `metrics` is what `Result.metrics()` or `moesim.serving.metrics.summarise` returns.
    """
    groups = dict(metrics["tenants"])
    if len(groups) != 1:
        groups["all tenants"] = metrics["overall"]
    return [
        (
            name,
            LABELS[metric],
            *in_units(metric, [group[metric][statistic] for statistic in STATISTICS]),
        )
        for name, group in groups.items()
        for metric in LATENCIES
    ]
