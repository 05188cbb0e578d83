"""What sits on a slice, on the terminal: a table of its parts and a bar in characters."""

from collections.abc import Mapping, Sequence
from math import floor

from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from moesim.facts.memory import MemoryPlan
from moesim.units import GIB, format_bytes
from moesim.views.memory_parts import Demand, made_of, plan_of
from moesim.views.workload_terminal import printable

LETTERS = {
    "non-expert sets": "N",
    "shared experts": "S",
    "private experts": "P",
    "KV cache": "K",
    "activations": "A",
    "runtime": "R",
}
"""What stands for each part in the bar."""

WIDTH = 64
"""Characters of a bar as long as what is asked for, or as the slice where that is longer."""

FREE = "·"
END = "|"


def show_memory(title: str, demand: Demand, sentence: str, plan: MemoryPlan | None = None) -> None:
    """Print the parts of what a slice is asked to hold, and whether they fit.

    `plan` is the demand's own unless given.
    """
    plan = plan or plan_of(demand)
    console = Console(highlight=False)
    console.print(title, markup=False, soft_wrap=True)
    console.print(_table(made_of(demand, plan), plan))
    console.print(bar(plan), markup=False, soft_wrap=True)
    if away := plan.host_expert_bytes + plan.host_non_expert_bytes:
        console.print(f"in host memory: {format_bytes(away)} of weights", markup=False)
    console.print(sentence, style=None if plan.fits else "bold red", markup=False, soft_wrap=True)


def bar(plan: MemoryPlan) -> str:
    """Draw the parts to scale, and where the slice ends.

    A part of any size has a letter; the lengths add up to the whole bar by largest remainders.
    """
    sizes = [*plan.parts.values(), plan.free_bytes]
    letters = [*LETTERS.values(), FREE]
    cells = _cells(sizes, WIDTH)
    drawn = "".join(letter * count for letter, count in zip(letters, cells, strict=True))
    end = round(WIDTH * plan.slice_bytes / max(1, sum(sizes)))
    return drawn[:end] + END + drawn[end:]


def _cells(sizes: Sequence[int], width: int) -> list[int]:
    """Share out `width` cells in proportion to sizes, at least one to whatever is not nothing."""
    there = [size > 0 for size in sizes]
    ideal = [size * (width - sum(there)) / max(1, sum(sizes)) for size in sizes]
    cells = [floor(cell) + one for cell, one in zip(ideal, there, strict=True)]
    by_remainder = sorted(
        (i for i, one in enumerate(there) if one), key=lambda i: floor(ideal[i]) - ideal[i]
    )
    for index in by_remainder[: width - sum(cells)]:
        cells[index] += 1
    return cells


def _table(made_of: Mapping[str, str], plan: MemoryPlan) -> Table:
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("", no_wrap=True)
    table.add_column("part", no_wrap=True)
    table.add_column("GiB", justify="right", no_wrap=True)
    table.add_column("share", justify="right", no_wrap=True)
    table.add_column("made of")
    rows = {**plan.parts, "free": plan.free_bytes}
    for name, size in rows.items():
        if size or name == "free":
            share = f"{100 * size / plan.slice_bytes:.1f} %"
            letter = LETTERS.get(name, FREE)
            made = Text(printable(made_of.get(name, "")))
            table.add_row(letter, name, f"{size / GIB:.2f}", share, made)
    return table
