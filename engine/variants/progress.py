"""A bar on stderr, for what takes minutes."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from engine.variants.distances import Tell


@contextmanager
def progress_bar() -> Iterator[Tell]:
    """Show a bar where a person looks on; yields what to tell it."""
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description:<40}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TimeElapsedColumn(),
        console=console,
        disable=not console.is_terminal,
    ) as bar:
        task = bar.add_task("starting", total=1.0)
        yield lambda fraction, doing: bar.update(task, completed=fraction, description=doing)
        bar.update(task, completed=1.0, description="done")
