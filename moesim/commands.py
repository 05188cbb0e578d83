"""How every command of the project ends: results, one-line errors, interruptions.

Exit codes: 0 done, 2 wrong input (one line on stderr), 130 interrupted. A traceback is a bug.
"""

import os
import sys
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from typing import Any

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from moesim.errors import MoesimError, MoesimWarning, ScenarioError

Reporter = Callable[[float, str], None]
"""Told the fraction done, and what is being done."""

DRAW_EVERY_S = 0.5


@contextmanager
def progress_bar(width: int = 30) -> Iterator[Reporter]:
    """Show a bar on stderr where somebody is watching; yields what to tell it.

    What is being done has `width` characters. It draws twice a second, in the caller's thread: a
    thread of its own would compete with what is being measured for the same cores.
    """
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    with Progress(
        TextColumn(f"{{task.description:<{width}}}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        auto_refresh=False,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        drawn_s = 0.0

        def tell(done: float, doing: str) -> None:
            nonlocal drawn_s
            now_s = time.monotonic()
            if now_s - drawn_s >= DRAW_EVERY_S:
                drawn_s = now_s
                bar.update(task, completed=done, description=doing, refresh=True)

        yield tell
        bar.update(task, completed=1.0, description="done", refresh=True)


class Commands(TyperGroup):
    """A group of commands whose failures are one line each."""

    interrupted = "interrupted"
    """What Ctrl-C prints."""

    def main(self, *words: Any, **settings: Any) -> Any:
        """Run the command line; what nobody can or wants to read any more ends it in order."""
        try:
            try:
                return super().main(*words, **settings)
            finally:
                sys.stdout.flush()  # what goes wrong there is told here, not after the end
        except SystemExit as end:
            if isinstance(end.__context__, BrokenPipeError):  # rich and typer say 1
                _let_go()
                raise SystemExit(0) from None
            raise
        except BrokenPipeError:
            # The reader of our output has left, as `head` does; Python's own flush would fail.
            _let_go()
            raise SystemExit(0) from None
        except OSError as wrong:
            place = f"{wrong.filename}: " if wrong.filename else ""
            _say(f"error: {place}{wrong.strerror or wrong}")
            _let_go()
            raise SystemExit(2) from None

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        with warnings.catch_warnings():
            warnings.simplefilter("always", MoesimWarning)
            warnings.showwarning = _one_line
            return self._invoke(ctx)

    def _invoke(self, ctx: Any) -> Any:
        try:
            _refuse_empty([*ctx._protected_args, *ctx.args])
            return super().invoke(ctx)
        except MoesimError as wrong:
            _say(f"error: {wrong}")
            raise SystemExit(2) from None
        except TyperException as wrong:
            _say(f"error: {wrong.format_message()}")
            raise SystemExit(2) from None
        except MemoryError:
            _say("error: out of memory; simulate fewer requests or a shorter time")
            raise SystemExit(2) from None
        except KeyboardInterrupt:
            _say(self.interrupted)
            raise SystemExit(130) from None


class ResumableCommands(Commands):
    """Commands that keep what they measured and go on from it."""

    interrupted = "interrupted; what was measured is kept, the same command goes on from there"


def application(help_text: str, group: type[Commands] = Commands) -> typer.Typer:
    """Return an empty command-line application of the project's manners."""
    return typer.Typer(
        cls=group,
        help=help_text,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
    )


def _let_go() -> None:
    """Have what is still to be printed go nowhere."""
    with suppress(OSError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _refuse_empty(words: Sequence[str]) -> None:
    """Raise ScenarioError where an option or argument is empty: it would count as not given."""
    for before, word in pairwise(["", *words]):
        if word == "" or (word.startswith("--") and word.endswith("=")):
            name = word.rstrip("=") or before
            if not name.startswith("-"):
                raise ScenarioError(f"{name}: its argument is empty; give a value")
            raise ScenarioError(f"{name}: is empty; give a value or leave it out")


def _say(text: str) -> None:
    print(" ".join(text.split()), file=sys.stderr)


def _one_line(message: Warning | str, *_: Any, **__: Any) -> None:
    _say(f"warning: {message}")
