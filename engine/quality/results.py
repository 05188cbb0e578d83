"""What the experiment leaves behind: means of its rows, and curves as scenarios read them."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import yaml

from engine.quality.study import Row
from moesim.files import write_text

METRIC = "bits per byte of held-out text"
NOTES = """Small models, trained for minutes: what is here is how quality changes, not how large
language models answer. Means over seeds; docs/quality.md has their spread and the other methods."""

Cell = dict[str, Any]


def means(rows: Iterable[Row]) -> list[Cell]:
    """Average rows that differ in seed, variant and group alone, in their first order.

    `bits` is the mean over seeds of what all variants have on average, `spread` its standard
    deviation over seeds; `loss` is how far it lies above the same variants served alone, of the
    same seed, and `loss_spread` the deviation of that.
    """
    rows = list(rows)
    alone = {(row.seed, row.variant): row.bits for row in rows if row.method == "alone"}
    cells: dict[tuple[str, int, float | None], list[Row]] = defaultdict(list)
    for row in rows:
        cells[row.method, len(row.names), row.ratio].append(row)
    return [
        {
            "method": method,
            "variants": count,
            "ratio": ratio,
            **_over_seeds("bits", "spread", cell, lambda row: row.bits),
            **_over_seeds(
                "loss", "loss_spread", cell, lambda row: row.bits - alone[row.seed, row.variant]
            ),
            "by_variant": {
                name: fmean(row.bits for row in cell if row.variant == name)
                for name in dict.fromkeys(row.variant for row in cell)
            },
        }
        for (method, count, ratio), cell in cells.items()
    ]


def _over_seeds(mean: str, spread: str, rows: Sequence[Row], value: Callable[[Row], float]) -> Cell:
    """Return mean and standard deviation over seeds of the mean value of rows."""
    by_seed: dict[int, list[float]] = defaultdict(list)
    for row in rows:
        by_seed[row.seed].append(value(row))
    found = [fmean(values) for values in by_seed.values()]
    return {mean: fmean(found), spread: stdev(found) if len(found) > 1 else None}


def ratio_curve(name: str, found: Sequence[Cell], source: str) -> dict[str, Any]:
    """Return the curve of a layout's quality against the ratio, at all ratios measured."""
    cells = [cell for cell in found if cell["method"] == "layout"]
    return {
        **_opening(name),
        "axis": "ratio",
        "model": name,
        "variants": cells[0]["variants"],
        "joined": True,
        "points": [_point(cell["ratio"], cell) for cell in cells],
        **_ending(source, ""),
    }


def number_curve(name: str, found: Sequence[Cell], source: str) -> dict[str, Any]:
    """Return the curve of quality against the number of models, all positions being shared."""
    alone = next(cell for cell in found if cell["method"] == "alone")
    cells = [cell for cell in found if cell["method"] == "layout" and cell["ratio"] == 1]
    points = [_point(cell["variants"], cell) for cell in cells]
    return {
        **_opening(name),
        "axis": "models",
        "model": name,
        "points": [_point(1, alone), *points],
        **_ending(source, " All positions are shared (ratio 1): the most that it can cost."),
    }


def write_curve(path: Path, curve: Mapping[str, Any], command: str) -> None:
    """Write a curve as scenarios read it."""
    head = f"# Measured with the engine; made by: {command}\n"
    body = yaml.safe_dump(curve, sort_keys=False, width=96, default_flow_style=None)
    write_text(path, head + body)


def _point(at: float, cell: Cell) -> Cell:
    by_variant = {name: round(bits, 4) for name, bits in cell["by_variant"].items()}
    return {"at": at, "value": round(cell["bits"], 4), "variants": by_variant}


def _opening(name: str) -> dict[str, Any]:
    return {"name": name, "metric": METRIC, "better": "lower"}


def _ending(source: str, more: str) -> dict[str, Any]:
    notes = " ".join((NOTES + more).split())
    return {"basis": "measured", "source": source, "evidence": "V", "notes": notes}
