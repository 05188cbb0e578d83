"""Tables of results: written whole with their provenance, and printed in aligned columns."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from benchmarks.gpu_queue.provenance import Begun
from moesim.files import write_text

LONGEST = 60
"""Characters of a text that a table shows; files have all of it."""

Row = Mapping[str, Any]
Tables = Mapping[str, Sequence[Row]]


def write_tables(begun: Begun, tables: Tables, **conditions: Any) -> None:
    """Write `STEP.json` with provenance, conditions and all tables, and `STEP-TABLE.csv` of each.

    A step is called by its name and, of a narrower model, by the format too.

    The JSON file comes last: where it is there, all tables that it names are.
    """
    out, step = begun.asked.out / "tables", begun.name
    for name, rows in tables.items():
        write_text(out / f"{step}-{name}.csv", pd.DataFrame(list(rows)).to_csv(index=False))
    content = {
        "provenance": begun.provenance(),
        "conditions": conditions,
        "tables": {name: [dict(row) for row in rows] for name, rows in tables.items()},
    }
    write_text(out / f"{step}.json", json.dumps(_plain(content), indent=1) + "\n")


def shown(rows: Sequence[Row]) -> str:
    """Return rows as aligned text; their keys are the heads, of the first row.

    >>> print(shown([{"way": "packed", "ms": 1.5}, {"way": "loose", "ms": None}]))
       way   ms
    packed  1.5
     loose    -
    """
    if not rows:
        return "(nothing)"
    heads = list(rows[0])
    lines = [heads, *([_cell(row.get(head)) for head in heads] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    return "\n".join(
        "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
        for line in lines
    )


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "-"
    return f"{value:.4g}" if isinstance(value, float) else str(value)[:LONGEST]


def _plain(value: Any) -> Any:
    """Return a value as JSON knows it, which has no NaN."""
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(each) for each in value]
    if hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and value != value else value
