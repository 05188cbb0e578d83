"""The command `moesim`, one module a command."""

from moesim import commands
from moesim.cli import accuracy, catalog, compare, memory, profile, reproduce, simulate, workload

app = commands.application("Predict what serving mixture-of-experts models will do on your GPUs.")
app.command(help=simulate.HELP)(simulate.simulate)
app.command(help=compare.HELP)(compare.compare)
app.command(help=accuracy.HELP)(accuracy.accuracy)
app.command(help=memory.HELP)(memory.memory)
app.command(help=reproduce.help_text())(reproduce.reproduce)
app.add_typer(workload.app, name="workload")
app.add_typer(profile.app, name="profile")
app.command(name="list")(catalog.list_shipped)


def main() -> None:
    """Run the command."""
    app()
