"""Deployments side by side on the terminal: a table of figures, and their ratios to the first."""

from collections.abc import Callable
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.views.tables import estimate
from moesim.views.wording import LABELS, MISSING, RATE_UNITS

SHOWN = (
    ("ttft_s", "p50"),
    ("ttft_s", "p99"),
    ("tpot_s", "p50"),
    ("turnaround_s", "mean"),
    ("goodput_rps", ""),
    ("slo_attainment", ""),
)
"""The figures that fit a terminal; `--json` has all."""

SCALES = {"ttft_s": (1e3, "ms"), "tpot_s": (1e3, "ms"), "slo_attainment": (100, "%")}
TITLES = {**LABELS, "slo_attainment": "In SLO"}
WIDTH = 112


def show_deployments(table: pd.DataFrame) -> None:
    """Print the rows of `moesim.planning.side_by_side`, a table a load and one of ratios."""
    console = Console(highlight=False)
    console.width = max(WIDTH, console.width)
    for load, part in table.groupby("load"):
        title = "" if table["load"].nunique() == 1 else f"load x {load:g}"
        console.print(_figures(part, title))
        if part["deployment"].nunique() > 1:
            console.print(_ratios(part))
    meaning = "median over runs, [low, high]: nine in ten single runs fall inside"
    console.print(meaning, markup=False)


def _figures(part: pd.DataFrame, title: str) -> Table:
    return _laid_out(part, title, _figure, units=True)


def _ratios(part: pd.DataFrame) -> Table:
    first = part["deployment"].iloc[0]
    rest = part[part["deployment"] != first]
    return _laid_out(rest, f"times {first}, run by run", _ratio, units=False)


def _laid_out(part: pd.DataFrame, title: str, cell: Callable[[Any], str], *, units: bool) -> Table:
    laid = Table(box=box.SIMPLE_HEAD, title=title or None, title_justify="left")
    laid.add_column("deployment", no_wrap=True)
    for metric, statistic in SHOWN:
        laid.add_column(
            Text(_heading(metric, statistic, units=units)), justify="right", no_wrap=True
        )
    for name, rows in part.groupby("deployment", sort=False):
        by_figure = rows.set_index(["metric", "statistic"])
        laid.add_row(Text(str(name)), *(Text(cell(by_figure.loc[figure])) for figure in SHOWN))
    return laid


def _heading(metric: str, statistic: str, *, units: bool) -> str:
    unit = SCALES.get(metric, (1, RATE_UNITS.get(metric, "s")))[1]
    title = f"{TITLES[metric]} {statistic}".strip()
    return f"{title}\n{unit}" if units else title


def _figure(row: Any) -> str:
    scale = SCALES.get(row.name[0], (1, ""))[0]
    value, interval = estimate(row["median"], _ends(row, "low", "high"), scale)
    return f"{value}\n{interval}"


def _ratio(row: Any) -> str:
    if row["ratio"] != row["ratio"]:
        return MISSING
    value, interval = estimate(row["ratio"], _ends(row, "ratio_low", "ratio_high"))
    return f"{value}\n{interval}"


def _ends(row: Any, low: str, high: str) -> list[float] | None:
    return None if row[low] != row[low] else [row[low], row[high]]
