"""What a workload is like, on the terminal: tables, and its rate over time drawn in characters."""

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.views.wording import MISSING, percent, rounded

Facts = Mapping[str, Any]

BARS = " ▁▂▃▄▅▆▇█"
HEIGHT = 6

MOST_NAMED = 15
"""Tenants or clients that are listed; the others are counted."""

TIME_UNITS = ((259_200, 86_400, "d"), (7_200, 3_600, "h"), (120, 60, "min"))
"""From how many seconds on a time is told in a unit, and how many seconds that is."""

LENGTH_COLUMNS = ("mean", "min", "p1", "p25", "p50", "p75", "p90", "p95", "p99", "max")
"""As many statistics of a length as fit 80 columns."""

LENGTHS = {"prompt": "prompt_tokens", "output": "output_tokens"}


def show_workload(facts: Facts, name: str) -> None:
    """Print what is known of a workload file."""
    console = Console(highlight=False)
    shown = {
        "servegen-trace": _show_clients,
        "servegen-lengths": _show_client_lengths,
        "servegen-rates": _show_client_rates,
    }
    shown.get(facts["format"], _show_trace)(console, facts, printable(name))


def _show_trace(console: Console, facts: Facts, name: str) -> None:
    span = in_time(facts["span_s"])
    _headline(console, facts, name, f"{facts['requests']:,} requests in {span}")
    for label, text in _summary(facts).items():
        console.print(f"  {label:<14}{text}", markup=False, soft_wrap=True)
    console.print(_lengths_table(facts))
    if facts["tenants"]:
        console.print(_tenants_table(facts["tenants"]))
    _draw(console, facts["course"])


def _headline(console: Console, facts: Facts, name: str, text: str) -> None:
    console.print(f"{name}: {facts['format']}, {text}", markup=False, soft_wrap=True)


def _summary(facts: Facts) -> dict[str, str]:
    peak, prefix = facts["peak"], facts["prefix"]
    spread = ", ".join(f"{_number(x)} in {s} s" for s, x in facts["dispersion"].items())
    lines = {
        "mean rate": f"{_number(facts['rate_per_s'])} requests/s",
        "peak rate": f"{_number(peak['rate_per_s'])} requests/s over {in_time(peak['window_s'])}"
        f" from {in_time(peak['start_s'])} on",
        "burstiness": f"CV of gaps {_number(facts['cv'])} (Poisson 1)",
    }
    if spread:
        lines["dispersion"] = f"variance/mean of counts {spread}"
    zeros = {name: facts[field]["zeros"] for name, field in LENGTHS.items()}
    if any(zeros.values()):
        lines["zero lengths"] = (
            f"{zeros['prompt']:,} prompts, {zeros['output']:,} outputs; the simulator refuses these"
        )
    if prefix is not None:
        lines["prefix reuse"] = (
            f"{percent(prefix['reused_share'])} of {prefix['blocks']:,} prompt blocks "
            f"({prefix['block_tokens']} tokens) came before"
        )
    if facts["skipped_rows"]:
        lines["bad rows"] = f"{facts['skipped_rows']:,} skipped"
    return lines


def _lengths_table(facts: Facts) -> Table:
    table = _table("tokens", LENGTH_COLUMNS)
    for label, field in LENGTHS.items():
        values = (facts[field][name] for name in LENGTH_COLUMNS)
        table.add_row(label, *(f"{value:.0f}" for value in values))
    return table


def _tenants_table(tenants: Facts) -> Table:
    titles = ["requests", "share", "requests/s", "CV", "mean prompt", "mean output"]
    table = _table("tenant", titles, len(tenants))
    for name, tenant in islice(tenants.items(), MOST_NAMED):
        table.add_row(
            Text(printable(name) or "(no name)"),
            f"{tenant['requests']:,}",
            percent(tenant["share"]),
            _number(tenant["rate_per_s"]),
            _number(tenant["cv"]),
            f"{tenant['mean_prompt_tokens']:.0f}",
            f"{tenant['mean_output_tokens']:.0f}",
        )
    return table


def _show_clients(console: Console, facts: Facts, name: str) -> None:
    clients = facts["clients"]
    span = f"{len(clients)} clients over {in_time(facts['span_s'])}"
    rate = f"{_number(facts['rate_per_s'])} requests/s in windows of {in_time(facts['window_s'])}"
    _headline(console, facts, name, f"{span}, {rate}")
    titles = ["requests/s", "share", "peak/s", "active", "Weibull", "median CV"]
    table = _table("client", titles, len(clients))
    for client, its in islice(clients.items(), MOST_NAMED):
        table.add_row(
            Text(printable(client)),
            _number(its["rate_per_s"]),
            percent(its["share"]),
            _number(its["peak_rate_per_s"]),
            percent(its["active_share"]),
            percent(its["weibull_share"]),
            _number(its["median_cv"]),
        )
    console.print(table)
    _draw(console, facts["course"])


def _show_client_lengths(console: Console, facts: Facts, name: str) -> None:
    clients = facts["clients"]
    _headline(console, facts, name, f"lengths of {len(clients)} clients [tokens]")
    levels = ("mean", "p50", "p90", "p99")
    titles = [f"{label}\n{level}" for label in LENGTHS for level in levels]
    table = _table("client", titles, len(clients))
    for client, its in islice(clients.items(), MOST_NAMED):
        values = (its[field][level] for field in LENGTHS.values() for level in levels)
        table.add_row(Text(printable(client)), *(f"{value:.0f}" for value in values))
    console.print(table)


def _show_client_rates(console: Console, facts: Facts, name: str) -> None:
    clients = facts["clients"]
    rate = _number(facts["rate_per_s"])
    _headline(console, facts, name, f"{len(clients)} clients, {rate} requests/s in all")
    table = _table("client", ["requests/s", "share", "so far"], len(clients))
    so_far = 0.0
    for client, its in islice(clients.items(), MOST_NAMED):
        so_far += its["share"] or 0.0
        table.add_row(
            Text(printable(client)),
            _number(its["rate_per_s"]),
            percent(its["share"]),
            percent(so_far),
        )
    console.print(table)


def _table(first: str, titles: Sequence[str], rows: int = 0) -> Table:
    more = f"and {rows - MOST_NAMED:,} more: --json lists all" if rows > MOST_NAMED else None
    table = Table(box=box.SIMPLE_HEAD, caption=more, caption_justify="left", collapse_padding=True)
    table.add_column(first, overflow="ellipsis", min_width=len(first), max_width=24, no_wrap=True)
    for title in titles:
        table.add_column(title, justify="right")
    return table


def _draw(console: Console, course: Facts) -> None:
    for line in rate_plot(course["rates_per_s"], course["window_s"]):
        console.print(line, markup=False, soft_wrap=True)


def rate_plot(rates_per_s: Sequence[float], window_s: float) -> list[str]:
    """Draw a rate over time in characters, a column a window, axes with their units."""
    top = max(rates_per_s, default=0.0)
    if not top:
        return []
    labels = {HEIGHT - 1: rounded(top), HEIGHT // 2 - 1: rounded(top / 2)}
    width = max(len(label) for label in labels.values())
    lines = ["requests/s"]
    for row in reversed(range(HEIGHT)):
        bars = "".join(_bar(rate / top * HEIGHT - row) for rate in rates_per_s)
        lines.append(f"{labels.get(row, ''):>{width}} {'┤' if row in labels else '│'}{bars}")
    lines.append(f"{'0':>{width}} └{'─' * len(rates_per_s)}")
    return [*lines, " " * (width + 2) + _time_axis(len(rates_per_s), window_s)]


def _bar(filled: float) -> str:
    """Return the character of a cell of which so much is filled; any rate above zero shows."""
    return BARS[min(8, max(0, round(8 * filled)))]


def _time_axis(columns: int, window_s: float) -> str:
    """Label the time at the begin, in the middle and at the end of so many columns."""
    middle, end = in_time(columns * window_s / 2), in_time(columns * window_s)
    place = columns // 2 - len(middle) // 2
    line = f"{'0':<{max(place, 2)}}{middle}"
    return f"{line}{end:>{max(columns - len(line), len(end) + 1)}}"


def in_time(seconds: float) -> str:
    """Write a time in days, hours, minutes or seconds: `5400` becomes `90 min`."""
    for least, unit_s, unit in TIME_UNITS:
        if seconds >= least:
            return f"{seconds / unit_s:.3g} {unit}"
    return f"{seconds:.3g} s"


def printable(text: str) -> str:
    """Return a name from a file without characters that would move the cursor or colour it."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _number(value: float | None) -> str:
    return MISSING if value is None else rounded(value)
