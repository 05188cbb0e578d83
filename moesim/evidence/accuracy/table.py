"""A table of measured results: a CSV file with a row for each figure that somebody published.

| column | holds |
|---|---|
| source | who measured, and where it is published |
| model, gpu | as the source calls them |
| n_gpus (optional) | GPUs of the whole system; those of one replica if empty |
| tp, ep | ranks over which each tensor, and the experts of a layer, are divided |
| precision | FP16, BF16, FP8, ... |
| isl, osl | tokens of a prompt and of an answer; means where they differ |
| load | `inf`, `batch 64`, `concurrency 8`, `rate 2.5`, `20 req/s target` |
| scenario | how requests came: `static_batch`, `offline_max_load`, `online_serving`, ... |
| metric, value | what was measured |
| software, note | what served, and what else there is to know |

The column load may be called concurrency_or_rate. Columns come in any order and case. Empty fields
are not known. A field that should be a number and is none is an error. docs/results-tables.md has
all the words that fields may hold.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from moesim.errors import ScenarioError

COLUMNS = (
    "source", "model", "gpu", "tp", "ep", "precision", "isl", "osl", "load", "scenario", "metric",
    "value", "software", "note",
)  # fmt: skip
"""What every table has."""

OTHER_NAMES = {"concurrency_or_rate": "load"}
"""What some tables call a column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One published figure; None or an empty text where the table does not say."""

    line: int
    source: str
    model: str
    gpu: str
    n_gpus: int | None
    tp: int | None
    ep: int | None
    precision: str
    isl: float | None
    osl: float | None
    load: str
    scenario: str
    metric: str
    value: float
    software: str
    note: str


def read_table(path: Path) -> list[Row]:
    """Read all rows; ScenarioError names file, line, column and value where one is broken."""
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            return list(_rows(file, path))
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file; give a CSV file of results") from None
    except (OSError, UnicodeDecodeError) as wrong:
        raise ScenarioError(f"{path}: not readable as text in UTF-8 ({wrong})") from None
    except csv.Error as wrong:
        raise ScenarioError(f"{path}: not readable as CSV ({wrong}); quote its fields") from None


def _rows(file: Iterator[str], path: Path) -> Iterator[Row]:
    reader = csv.reader(file, strict=True)
    header = [_column(name) for name in next(reader, [])]
    if len(header) == 1 and (parted := next((mark for mark in ";\t" if mark in header[0]), "")):
        raise ScenarioError(f"{path}: fields are parted by {parted!r}; part them by commas")
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        raise ScenarioError(
            f"{path}: line 1: no column {', '.join(missing)}; a results table has the columns "
            f"{', '.join(COLUMNS)}"
        )
    for fields in reader:
        if not fields:
            continue
        if len(fields) != len(header):
            raise ScenarioError(
                f"{path}: line {reader.line_num}: {len(fields)} fields, the header has "
                f"{len(header)}; quote fields with commas"
            )
        named = {name: field.strip() for name, field in zip(header, fields, strict=True)}
        yield _row(named, reader.line_num, f"{path}: line {reader.line_num}")


def _column(written: str) -> str:
    """Return a column's name, in whatever case it is written."""
    name = written.strip().lower()
    return OTHER_NAMES.get(name, name)


def _row(named: Mapping[str, str], line: int, where: str) -> Row:
    value = _number(named, "value", where)
    if value is None:
        raise ScenarioError(f"{where}, column value: empty; give the measured figure")
    return Row(
        line=line,
        source=named["source"],
        model=named["model"],
        gpu=named["gpu"],
        n_gpus=_count(named, "n_gpus", where),
        tp=_count(named, "tp", where),
        ep=_count(named, "ep", where),
        precision=named["precision"],
        isl=_number(named, "isl", where),
        osl=_number(named, "osl", where),
        load=named["load"],
        scenario=named["scenario"],
        metric=named["metric"],
        value=value,
        software=named["software"],
        note=named["note"],
    )


def _number(named: Mapping[str, str], column: str, where: str) -> float | None:
    """Return a number above zero, None where there is nothing."""
    text = named.get(column, "")
    if not text:
        return None
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not isfinite(number) or number <= 0:
        raise ScenarioError(
            f"{where}, column {column}: {text!r} is not a number above zero; correct it, or leave "
            "the row out"
        )
    return number


def _count(named: Mapping[str, str], column: str, where: str) -> int | None:
    if named.get(column) == "0":
        return None  # as some sources write that nothing is divided
    number = _number(named, column, where)
    if number is not None and number != int(number):
        raise ScenarioError(
            f"{where}, column {column}: {named[column]!r} is not a whole number; correct it, or "
            "leave it empty"
        )
    return None if number is None else int(number)
