"""Tables on the terminal."""

from collections.abc import Mapping
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.table import Table

from moesim.serving.metrics import STATISTICS
from moesim.views.tables import comparison_rows, headline

LATENCY_LABELS = {"ttft_s": "TTFT", "tpot_s": "TPOT", "turnaround_s": "turnaround"}


def show_metrics(metrics: Mapping[str, Any], elapsed_s: float) -> None:
    """Print a simulation's metrics: latencies per tenant, rates, utilisation, basis, warnings."""
    console = Console(highlight=False)
    console.print(_latencies(metrics))
    console.print(_rates(metrics))
    used = ", ".join(f"{name} {100 * x:.0f} %" for name, x in metrics["utilisation"].items())
    console.print(f"utilisation: {used}")
    console.print(f"basis: {_basis(metrics['basis'])}")
    for warning in metrics["warnings"]:
        console.print(f"warning: {warning}", style="yellow")
    requests, span_s = metrics["overall"]["requests"], metrics["overall"]["span_s"] or 0.0
    console.print(f"{requests} requests over {span_s:.0f} s, simulated in {elapsed_s:.2f} s")


def show_comparison(comparison: pd.DataFrame) -> None:
    """Print measured beside predicted, with the error and the run-to-run spread."""
    console = Console(highlight=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("figure", no_wrap=True)
    for title in ("measured", "predicted", "error", "spread", "close"):
        table.add_column(title, justify="right")
    for row in comparison_rows(comparison):
        table.add_row(*row)
    console.print(table)
    console.print(headline(comparison))


def _groups(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    tenants: dict[str, Mapping[str, Any]] = dict(metrics["tenants"])
    return tenants if len(tenants) == 1 else {**tenants, "all": metrics["overall"]}


def _latencies(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, title=metrics["scenario"], title_justify="left")
    table.add_column("tenant")
    table.add_column("latency [ms]")
    for statistic in STATISTICS:
        table.add_column(statistic, justify="right")
    for name, group in _groups(metrics).items():
        for metric, label in LATENCY_LABELS.items():
            values = (group[metric][statistic] for statistic in STATISTICS)
            table.add_row(name, label, *(_number(x, 1e3, 1) for x in values))
    return table


def _rates(metrics: Mapping[str, Any]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("tenant")
    for title in ("requests/s", "tokens/s", "goodput/s", "in SLO %", "refused", "preempted"):
        table.add_column(title, justify="right")
    for name, group in _groups(metrics).items():
        table.add_row(
            name,
            _number(group["throughput_rps"], 1, 3),
            _number(group["output_tokens_per_s"], 1, 1),
            _number(group["goodput_rps"], 1, 3),
            _number(group["slo_attainment"], 100, 1),
            str(group["refused"]),
            str(group["preemptions"]),
        )
    return table


def _number(value: float | None, scale: float, digits: int) -> str:
    return "-" if value is None else f"{value * scale:.{digits}f}"


def _basis(basis: Mapping[str, str]) -> str:
    """Group the operations by what their durations rest on."""
    groups: dict[str, list[str]] = {}
    for operation, value in basis.items():
        groups.setdefault(value, []).append(operation)
    if len(groups) == 1:
        return f"every operation {next(iter(groups))}"
    return "; ".join(f"{value}: {', '.join(names)}" for value, names in groups.items())
