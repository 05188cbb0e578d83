"""`moesim workload`: look at traffic before simulating it."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from moesim.files import check_outputs
from moesim.traffic.formats import LAYOUTS, SERVEGEN

app = typer.Typer(help="Look at workload files.", no_args_is_help=True)


@app.callback()
def workload() -> None:
    """Look at workload files."""


def _layouts() -> str:
    known = {
        name: f"{', '.join(layout.columns)} ({layout.about})" for name, layout in LAYOUTS.items()
    }
    known |= {name: ", ".join(columns) for name, columns in SERVEGEN.items()}
    return "\n\n".join(f"  {name}: {text}" for name, text in known.items())


HELP = f"""Show what a trace is like: rate, burstiness, lengths, tenants, shared prefixes.

Reads CSV, JSONL and Parquet, gzipped or not. A file is known by its columns, not by its name:

{_layouts()}

Examples:

  moesim workload inspect AzureLLMInferenceTrace_conv.csv

  moesim workload inspect conversation_trace.jsonl.gz --plot trace.html

  moesim workload inspect requests.csv --skip-bad-rows --json | jq .prompt_tokens.p99
"""


@app.command(help=HELP)
def inspect(
    file: Annotated[Path, typer.Argument(help="A trace, or one of ServeGen's client files.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the facts as JSON.")] = False,
    plot: Annotated[
        Path | None, typer.Option(help="Draw rate and lengths into this HTML file.")
    ] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option("--skip-bad-rows", help="Leave out rows that are no requests.")
    ] = False,
) -> None:
    """Show what a trace is like."""
    check_outputs({"--plot": plot}, [file])
    facts, table = _read(file, skip_bad_rows)
    if plot is not None:
        from moesim.views.workload import write_page

        write_page(plot, file.name, facts, table)
    if as_json:
        print(json.dumps({"file": str(file), **facts}, indent=1))
        return
    from moesim.views.workload_terminal import show_workload

    show_workload(facts, file.name)
    if plot is not None:
        print(f"drawn in {plot}")


def _read(file: Path, skip_bad_rows: bool) -> tuple[Mapping[str, Any], Any]:
    """Return the facts of a file and its rows as a frame."""
    from moesim.traffic import servegen, statistics
    from moesim.traffic.tables import read_table
    from moesim.traffic.traces import layout_of, trace_from

    table = read_table(file)
    name = layout_of(table)
    if name not in SERVEGEN:
        trace = trace_from(table, skip_bad_rows=skip_bad_rows)
        return statistics.describe(trace), trace.frame
    read, describe = {
        "servegen-trace": (servegen.clients_from, statistics.describe_clients),
        "servegen-lengths": (servegen.lengths_from, statistics.describe_lengths),
        "servegen-rates": (servegen.rates_from, statistics.describe_rates),
    }[name]
    frame = read(table, skip_bad_rows=skip_bad_rows)
    return describe(frame), frame
