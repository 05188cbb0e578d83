"""Deployments side by side on the terminal: a table of figures, and their ratios to the first."""

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.views.tables import estimate
from moesim.views.wording import LABELS, MISSING, RATE_UNITS
from moesim.views.workload_terminal import printable

SHOWN = (
    ("ttft_s", "p50"),
    ("ttft_s", "p99"),
    ("tpot_s", "p50"),
    ("turnaround_s", "mean"),
    ("goodput_rps", ""),
    ("slo_attainment", ""),
)
"""The figures that fit a terminal; `--json` has all."""

COUNTS = {("devices", ""): "GPUs", ("refused", ""): "refused"}
"""Counts that are shown where there are any, and what they are called there."""

Scale = tuple[float, str]
"""By what figures are multiplied to be shown, and the unit that they then have."""

SCALES: dict[str, Scale] = {
    "ttft_s": (1e3, "ms"),
    "tpot_s": (1e3, "ms"),
    "slo_attainment": (100, "%"),
}
TITLES = {**LABELS, "slo_attainment": "In SLO"}
LONG_S = 10.0
"""Durations from here on are shown in seconds."""
WIDTH = 140
"""Columns that the tables need; a narrower terminal wraps them."""


def show_deployments(table: pd.DataFrame) -> None:
    """Print the rows of `moesim.planning.side_by_side`, a table a load and one of ratios."""
    console = Console(highlight=False)
    console.width = max(WIDTH, console.width)
    for load, part in table[table["metric"] != "note"].groupby("load"):
        title = "" if table["load"].nunique() == 1 else f"load x {load:g}"
        console.print(_figures(part, title))
        if part["deployment"].nunique() > 1:
            console.print(_ratios(part))
    meaning = "median over runs, [low, high]: nine in ten single runs fall inside"
    console.print(meaning, markup=False)
    known = table[table["metric"] == "quality"].drop_duplicates("deployment")
    for name, note in zip(known["deployment"], known["note"], strict=True):
        console.print(printable(f"{name}: {note}"), markup=False, soft_wrap=True)
    for line in _notes(table):
        console.print(printable(line), style="yellow", markup=False, soft_wrap=True)


def _notes(table: pd.DataFrame) -> Iterator[str]:
    """Yield a line for what is to be known of each deployment, and one for what all share.

    A warning is said once; what changes with the load is said of the highest it is true of, with
    all of them named.
    """
    notes = table[table["metric"] == "note"]
    changing = notes[notes["statistic"] != "warning"]
    several = table["load"].nunique() > 1
    for (name, _), rows in changing.groupby(["deployment", "statistic"], sort=False):
        loads = ", ".join(f"{load:g}" for load in rows["load"])
        at = f" (load x {loads})" if several else ""
        yield f"{name}{at}: {rows['note'].iloc[-1]}"
    warnings = notes[notes["statistic"] == "warning"]
    for warning, rows in warnings.groupby("note", sort=False):
        named = rows["deployment"].unique()
        everywhere = len(named) == table["deployment"].nunique()
        yield str(warning) if everywhere else f"{', '.join(named)}: {warning}"


def _figures(part: pd.DataFrame, title: str) -> Table:
    scales = {metric: _scale(part, metric) for metric, _ in SHOWN}
    return _laid_out(part, title, lambda row: _figure(row, scales), scales)


def _ratios(part: pd.DataFrame) -> Table:
    first = part["deployment"].iloc[0]
    rest = part[part["deployment"] != first]
    return _laid_out(rest, f"times {first}, run by run", _ratio)


def _scale(part: pd.DataFrame, metric: str) -> Scale:
    """Return the scale of a metric's column: seconds where milliseconds would be many."""
    scale = SCALES.get(metric, (1.0, RATE_UNITS.get(metric, "s")))
    longest = part.loc[part["metric"] == metric, "median"].max()
    return (1.0, "s") if scale[1] == "ms" and longest >= LONG_S else scale


def _laid_out(
    part: pd.DataFrame,
    title: str,
    cell: Callable[[Any], str],
    scales: Mapping[str, Scale] | None = None,
) -> Table:
    there = set(zip(part["metric"], part["statistic"], strict=True))
    counts = [figure for figure in COUNTS if scales and figure in there]
    laid = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    laid.add_column("deployment", no_wrap=True)
    for figure in counts:
        laid.add_column(COUNTS[figure], justify="right", no_wrap=True)
    for metric, statistic in SHOWN:
        laid.add_column(Text(_heading(metric, statistic, scales)), justify="right", no_wrap=True)
    for name, rows in part.groupby("deployment", sort=False):
        by_figure = rows.set_index(["metric", "statistic"])
        told = [Text(_count(by_figure.loc[figure])) for figure in counts]
        laid.add_row(
            Text(str(name)), *told, *(Text(cell(by_figure.loc[figure])) for figure in SHOWN)
        )
    return laid


def _heading(metric: str, statistic: str, scales: Mapping[str, Scale] | None) -> str:
    title = f"{TITLES[metric]} {statistic}".strip()
    return f"{title}\n{scales[metric][1]}" if scales else title


def _figure(row: Any, scales: Mapping[str, Scale]) -> str:
    scale, _ = scales[row.name[0]]
    value, interval = estimate(row["median"], _ends(row, "low", "high"), scale)
    return f"{value}\n{interval}"


def _count(row: Any) -> str:
    """Write a whole number, and its interval on a line of its own."""
    ends = _ends(row, "low", "high")
    interval = None if ends is None else [int(end) for end in ends]
    return "\n".join(part for part in estimate(int(row["median"]), interval) if part)


def _ratio(row: Any) -> str:
    if row["ratio"] != row["ratio"]:
        return MISSING
    value, interval = estimate(row["ratio"], _ends(row, "ratio_low", "ratio_high"))
    return f"{value}\n{interval}"


def _ends(row: Any, low: str, high: str) -> list[float] | None:
    return None if row[low] != row[low] else [row[low], row[high]]
