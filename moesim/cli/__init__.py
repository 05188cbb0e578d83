"""The command `moesim`, one module a command."""

import signal
import sys
from typing import Any, NoReturn

try:
    from moesim import commands
    from moesim.cli import (
        accuracy,
        catalog,
        compare,
        memory,
        profile,
        reproduce,
        simulate,
        workload,
    )
except KeyboardInterrupt:  # before there is anything that could end it in order
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None

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
    signal.signal(signal.SIGTERM, _terminated)
    for stream in (sys.stdout, sys.stderr):
        # Where the locale knows fewer characters than we write, or a file's name is no text.
        getattr(stream, "reconfigure", lambda **_: None)(errors="backslashreplace")
    try:
        app()
    except KeyboardInterrupt:
        _interrupted()


def _interrupted() -> NoReturn:
    print("interrupted", file=sys.stderr)
    raise SystemExit(130) from None


def _terminated(number: int, _: Any) -> None:
    """End as after an error, so that nothing half-written is left behind."""
    raise SystemExit(128 + number)
