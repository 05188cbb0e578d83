"""The means of the experiment as a table, in Markdown, which terminals show as well."""

from collections.abc import Mapping, Sequence
from typing import Any

HEAD = ("method", "variants", "ratio", "bits a byte", "above alone", "perplexity of a byte")


def table(means: Sequence[Mapping[str, Any]]) -> str:
    """Return a row for each mean; behind ± a standard deviation over seeds."""
    rows = [HEAD, *(_row(cell) for cell in means)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = [_line(row, widths) for row in rows]
    return "\n".join([lines[0], _line(["-" * width for width in widths], widths), *lines[1:]])


def _row(cell: Mapping[str, Any]) -> tuple[str, ...]:
    return (
        cell["method"],
        str(cell["variants"]),
        "" if cell["ratio"] is None else f"{cell['ratio']:g}",
        _with_spread(cell["bits"], cell["spread"], ""),
        _with_spread(cell["loss"], cell["loss_spread"], "+"),
        f"{2 ** cell['bits']:.2f}",
    )


def _with_spread(value: float, spread: float | None, sign: str) -> str:
    return f"{value:{sign}.3f}" + ("" if spread is None else f" ± {spread:.3f}")


def _line(cells: Sequence[str], widths: Sequence[int]) -> str:
    padded = (cell.ljust(width) for cell, width in zip(cells, widths, strict=True))
    return f"| {' | '.join(padded)} |"
