"""`moesim workload`: look at traffic before simulating it."""

import typer

app = typer.Typer(help="Look at workload files.", no_args_is_help=True)


@app.callback()
def workload() -> None:
    """Look at workload files."""
