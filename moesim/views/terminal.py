"""Tables on the terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.serving.metrics import STATISTICS
from moesim.views.tables import (
    PREDICTED,
    Group,
    comparison_rows,
    estimate,
    groups_of,
    headline,
    interval_meaning,
    verdict,
)
from moesim.views.wording import LABELS, Interval
from moesim.views.workload_terminal import in_time, printable

NARROW = ("p50", "p90", "p99")
"""The statistics that fit `NARROW_COLUMNS` with their intervals."""

NARROW_COLUMNS = 80
"""Narrower than this tables are not made; the terminal wraps them."""

WIDE = ("mean", *NARROW)
"""The statistics that fit `WIDE_COLUMNS`; `--json` has all."""

WIDE_COLUMNS = 100

GAP = 2
"""Columns of nothing between two columns of a table."""

RATES = {
    "offered/s": ("offered_rps", 1),
    "requests/s": ("throughput_rps", 1),
    "tokens/s": ("output_tokens_per_s", 1),
    "goodput/s": ("goodput_rps", 1),
    "in SLO [%]": ("slo_attainment", 100),
}
"""Column, its metric and the scale at which it is shown."""

TROUBLES = {"refused": "refused", "preempted": "preemptions"}
"""Counts that are shown only where they are not zero."""

MOST_REPLICAS = 6
"""Replicas that are listed; of more there is a range."""

STYLES = {"above capacity": "bold red", "not settled": "yellow"}
"""How verdicts are shown that a reader must not miss."""

Cell = tuple[str, str]
"""A figure and its interval, as text."""


def show_metrics(metrics: Mapping[str, Any], elapsed_s: float) -> None:
    """Print the metrics of a run or of replications: latencies, rates, verdict, basis, warnings.

    Of a run in which every request was refused there are no figures, only the reason.
    """
    console = Console(highlight=False)
    groups = groups_of(metrics, "all")
    width = max(NARROW_COLUMNS, console.width)
    console.width = width
    title = f"{printable(metrics['scenario'])}{_unmeasured(metrics['basis'])}"
    console.print(title, style="bold", markup=False, soft_wrap=True)
    if metrics["overall"]["completed"]:
        _show_served(console, groups, metrics)
    else:
        line = _nothing_served(metrics)
        console.print(line, style="bold red", markup=False, soft_wrap=True)
    for warning in metrics["warnings"]:
        console.print(f"warning: {warning}", style="yellow", markup=False, soft_wrap=True)
    console.print(_size(metrics, elapsed_s), markup=False, soft_wrap=True)


def _unmeasured(basis: Mapping[str, str]) -> str:
    """Say at once that nothing was measured, where that is so."""
    if basis and set(basis.values()) == {"roofline"}:
        return ": from datasheets alone (rooflines), nothing was measured"
    return ""


def _show_served(console: Console, groups: list[Group], metrics: Mapping[str, Any]) -> None:
    width, intervals = console.width, bool(metrics.get("intervals"))
    console.print(_latencies(groups, _statistics(width, intervals=intervals), width), "")
    console.print(_rates(groups, _rates_shown(width, intervals=intervals), width), "")
    for line in _lines(groups, metrics):
        console.print(line, markup=False, soft_wrap=True)
    console.print(verdict(metrics), style=STYLES.get(metrics["steady"]["kind"]), soft_wrap=True)


def _nothing_served(metrics: Mapping[str, Any]) -> str:
    reason = metrics.get("refusal") or "no reason was given"
    return f"nothing was served, every request was refused: {printable(reason)}"


def show_comparison(comparison: pd.DataFrame) -> None:
    """Print measured beside predicted and its interval, the error and the run-to-run spread."""
    console = Console(highlight=False)
    # Most comparisons fit 80 columns; where one does not, the terminal wraps it and nothing is cut.
    console.width = max(WIDE_COLUMNS, console.width)
    if not comparison.empty:
        console.print(_compared(comparison_rows(comparison)), "")
    console.print(headline(comparison), soft_wrap=True)


def _compared(rows: Sequence[Sequence[str]]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, collapse_padding=True, pad_edge=False)
    table.add_column("figure", no_wrap=True)
    for title in ("measured", "predicted", "error", "spread", "close", "hit"):
        table.add_column(title, justify="right", no_wrap=True)
    columns = list(zip(*rows, strict=True))
    columns[PREDICTED] = tuple(_aligned([_cell(text) for text in columns[PREDICTED]]))
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def _cell(text: str) -> Cell:
    """Part a figure from its interval."""
    number, _, ends = text.partition(" ")
    return number, ends


def _statistics(width: int, *, intervals: bool) -> tuple[str, ...]:
    """Return as many statistics as fit."""
    if not intervals:
        return STATISTICS
    return WIDE if width >= WIDE_COLUMNS else NARROW


def _rates_shown(width: int, *, intervals: bool) -> list[str]:
    """Return as many rates as fit; requests/s is the one that is known best beforehand."""
    narrow = intervals and width < WIDE_COLUMNS
    return [column for column in RATES if column != "requests/s" or not narrow]


def _latencies(groups: list[Group], statistics: Sequence[str], width: int) -> Table:
    """Lay out the latencies, those of a tenant under its name."""
    labels: list[Text] = []
    rows: list[list[Cell]] = []
    for group in groups:
        labels.append(Text(printable(group.name)))
        rows.append([("", "")] * len(statistics))
        for metric in group.latencies:
            unit, cells = group.row(metric, statistics)
            labels.append(Text(f" {_label(metric)} [{unit}]"))
            rows.append(cells)
    return _table(statistics, labels, rows, width)


def _label(metric: str) -> str:
    """Return a latency's name as within a sentence: `TTFT`, `turnaround`."""
    label = LABELS[metric]
    return label if label.isupper() else label.lower()


def _rates(groups: list[Group], columns: list[str], width: int) -> Table:
    shown = [RATES[column] for column in columns]
    rows = [
        [estimate(group.value(name), _ends_shown(group, name), by) for name, by in shown]
        for group in groups
    ]
    return _table(columns, [Text(printable(group.name)) for group in groups], rows, width)


def _ends_shown(group: Group, name: str) -> Interval | None:
    """Return a rate's interval; what was offered is there to compare with, and has none."""
    return None if name == "offered_rps" else group.interval(name)


def _table(columns: Sequence[str], labels: list[Text], rows: list[list[Cell]], width: int) -> Table:
    table = Table(
        box=box.SIMPLE_HEAD,
        show_edge=False,
        collapse_padding=True,
        pad_edge=False,
    )
    aligned = [_aligned(cells) for cells in zip(*rows, strict=True)]
    room = width - sum(
        GAP + max(len(c), len(cells[0])) for c, cells in zip(columns, aligned, strict=True)
    )
    # Where it is narrow names are cut, never numbers.
    table.add_column("", no_wrap=True, max_width=room, overflow="ellipsis")
    for column in columns:
        table.add_column(column, justify="right", no_wrap=True)
    for label, *row in zip(labels, *aligned, strict=True):
        table.add_row(label, *row)
    return table


def _aligned(cells: Sequence[Cell]) -> list[str]:
    """Write figures right-aligned and their intervals left-aligned."""
    widths = [max(map(len, parts)) for parts in zip(*cells, strict=True)]
    between = " " if widths[1] else ""
    return [f"{number:>{widths[0]}}{between}{ends:<{widths[1]}}" for number, ends in cells]


def _lines(groups: list[Group], metrics: Mapping[str, Any]) -> list[str]:
    lines = [f"{name}: {text}" for name, key in TROUBLES.items() if (text := _trouble(groups, key))]
    if metrics.get("refusal"):
        lines.append(f"refused most often: {printable(metrics['refusal'])}")
    if metrics.get("fairness") is not None:
        ends = (metrics.get("intervals") or {}).get("fairness")
        index = _one(metrics["fairness"], ends)
        lines.append(f"fairness between tenants (Jain's index, 1 is even): {index}")
    lines.append(f"utilisation: {_utilisation(metrics)}")
    if reconfigured := _reconfigured(metrics):
        lines.append(f"reconfigurations: {reconfigured}")
    if metrics.get("absent_experts"):
        lines.append(printable(metrics["absent_experts"]))
    if metrics.get("quality"):
        lines.append(printable(metrics["quality"]["sentence"]))
    lines.append(f"basis: {_basis(metrics['basis'])}")
    return lines


def _trouble(groups: list[Group], name: str) -> str:
    """Return the tenants that have any of it, and how much."""
    return ", ".join(
        f"{printable(group.name)} {_one(group.value(name), group.interval(name))}"
        for group in groups
        if group.value(name) or any(group.interval(name) or ())
    )


def _one(value: float | None, interval: Interval | None, scale: float = 1) -> str:
    return " ".join(estimate(value, interval, scale)).rstrip()


def _utilisation(metrics: Mapping[str, Any]) -> str:
    used = metrics["utilisation"]
    if len(used) > MOST_REPLICAS:
        least, most = 100 * min(used.values()), 100 * max(used.values())
        return f"{len(used)} replicas, {least:.0f} to {most:.0f} %"
    ends = (metrics.get("intervals") or {}).get("utilisation", {})
    return ", ".join(
        f"{printable(name)} {_one(share, ends.get(name), 100)} %" for name, share in used.items()
    )


def _reconfigured(metrics: Mapping[str, Any]) -> str:
    """Say how often models were loaded, and for what share of the time; nothing where none was."""
    found = {
        name: load for name, load in metrics.get("reconfigurations", {}).items() if load["count"]
    }
    shares = [100 * load["share_of_time"] for load in found.values()]
    if len(found) > MOST_REPLICAS:
        total = sum(load["count"] for load in found.values())
        least, most = min(shares), max(shares)
        return f"{total:,} on {len(found)} replicas, {least:.1f} to {most:.1f} % of the time"
    return ", ".join(
        f"{printable(name)} {load['count']:,} ({share:.1f} % of the time)"
        for (name, load), share in zip(found.items(), shares, strict=True)
    )


def _size(metrics: Mapping[str, Any], elapsed_s: float) -> str:
    overall, count = metrics["overall"], metrics.get("replications", 1)
    runs = f"{count} runs" if count > 1 else "1 run"
    said = f"{overall['requests']} requests over {in_time(overall['span_s'] or 0.0)}"
    meaning = interval_meaning(metrics) if overall["completed"] else ""
    return f"{said}, {runs} simulated in {elapsed_s:.2f} s" + (f"\n{meaning}" if meaning else "")


def _basis(basis: Mapping[str, str]) -> str:
    """Group the operations by what their durations rest on."""
    groups: dict[str, list[str]] = {}
    for operation, value in basis.items():
        groups.setdefault(value, []).append(operation)
    if len(groups) == 1:
        return f"every operation {next(iter(groups))}"
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in groups.items())
