"""Tables: CSV, JSONL, JSON and Parquet files as rows of raw values, each with its line number.

What a file is, is seen in its first bytes, not in its name; gzip is unpacked on the way. Nothing is
converted here: a CSV's values are text, a JSON file's are what they are in JSON.
"""

import csv
import gzip
import io
import json
import warnings
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from moesim.errors import ScenarioError
from moesim.traffic.benchmarks import is_benchmark, requests_of_runs

GZIP, PARQUET, BOM = b"\x1f\x8b", b"PAR1", b"\xef\xbb\xbf"

SNIFFED = 20
"""Lines among which one that begins with `{` makes a file JSONL."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A file's rows as they were written."""

    path: Path
    frame: pd.DataFrame
    """Raw values; the index counts the file's lines from 1, a Parquet file's rows."""
    place: str = "line"
    """What the index counts."""
    broken: Mapping[int, str] = field(default_factory=dict)
    """Lines that are no row at all, and why."""


def read_table(path: Path) -> Table:
    """Read a file of rows; ScenarioError, one line, where it is none."""
    content = _content(path)
    if content.startswith(PARQUET):
        return _parquet(content, path)
    if not content or content.isspace():
        raise ScenarioError(f"{path}: the file is empty; expected rows")
    starts = _line_starts(content)
    if starts[0] == b"[":
        raise ScenarioError(f"{path}: a JSON list; write one object a line: jq -c '.[]' FILE")
    return _json(content, path) if b"{" in starts else _csv(content, path)


def _line_starts(content: bytes) -> list[bytes]:
    """Return the first character of each of the first lines."""
    head = content[:65536].removeprefix(BOM).split(b"\n", SNIFFED)[:SNIFFED]
    return [line.lstrip()[:1] for line in head]


def _content(path: Path) -> bytes:
    try:
        content = path.read_bytes()
        return gzip.decompress(content) if content.startswith(GZIP) else content
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such trace file; give its path") from None
    except IsADirectoryError:
        raise ScenarioError(f"{path}: is a folder; give a file") from None
    except (EOFError, gzip.BadGzipFile, zlib.error):
        raise ScenarioError(f"{path}: broken gzip; is it truncated?") from None
    except (OSError, ValueError) as wrong:
        raise ScenarioError(f"{path}: not readable ({wrong})") from None


def _parquet(content: bytes, path: Path) -> Table:
    try:
        frame = pq.read_table(io.BytesIO(content)).to_pandas(ignore_metadata=True)
    # pyarrow's exceptions are of these kinds.
    except (OSError, ValueError, NotImplementedError) as wrong:
        raise ScenarioError(f"{path}: not readable as Parquet ({_line(wrong)})") from None
    frame.index = pd.RangeIndex(1, len(frame) + 1)
    return Table(path=path, frame=frame, place="row")


def _text(content: bytes, path: Path) -> str:
    try:
        # Spreadsheets write a byte-order mark, which would become part of the first name.
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as wrong:
        line = content.count(b"\n", 0, wrong.start) + 1
        raise ScenarioError(f"{path}: line {line}: neither UTF-8 text nor Parquet") from None


def _csv(content: bytes, path: Path) -> Table:
    try:
        return _quick_csv(content, path)
    except (pd.errors.ParserError, pd.errors.ParserWarning, UnicodeDecodeError):
        return _careful_csv(_text(content, path), path)
    except ValueError as wrong:
        raise ScenarioError(f"{path}: not readable as CSV ({_line(wrong)})") from None


def _quick_csv(content: bytes, path: Path) -> Table:
    """Read a CSV whose rows are no longer than its header."""
    with warnings.catch_warnings():
        # A first row longer than the header is only warned of, and its last fields dropped.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        raw = pd.read_csv(
            io.BytesIO(content),
            encoding="utf-8-sig",
            dtype=str,
            keep_default_na=False,
            index_col=False,
            skip_blank_lines=False,
        ).fillna("")
    raw.index = pd.RangeIndex(2, len(raw) + 2)
    return Table(path=path, frame=raw[~(raw == "").all(axis=1)])


HALF = "a \\u escape is half of a character (a lone surrogate); correct it"


def _careful_csv(text: str, path: Path) -> Table:
    """Read a CSV row by row, to say which lines are too long."""
    reader = csv.reader(io.StringIO(text, newline=""))
    rows: dict[int, list[str]] = {}
    broken: dict[int, str] = {}
    try:
        header = next(row for row in reader if row)
        for row in reader:
            if len(row) > len(header):
                broken[reader.line_num] = "more fields than the header"
            elif row:
                rows[reader.line_num] = row + [""] * (len(header) - len(row))
    except (csv.Error, StopIteration) as wrong:
        raise ScenarioError(f"{path}: not readable as CSV ({_line(wrong)})") from None
    frame = pd.DataFrame(list(rows.values()), columns=header, index=list(rows), dtype=str)
    frame = frame.loc[:, ~frame.columns.duplicated()]
    return Table(path=path, frame=frame, broken=broken)


def _json(content: bytes, path: Path) -> Table:
    rows, broken = _objects(_text(content, path))
    if not rows:
        line, reason = next(iter(broken.items()))
        raise ScenarioError(f"{path}: line {line}: {reason}")
    if is_benchmark(rows.values()):
        frame = requests_of_runs(rows, path)
        return Table(path=path, frame=frame, place="request", broken=broken)
    return Table(path=path, frame=_framed(rows), broken=broken)


def _objects(text: str) -> tuple[dict[int, dict[str, Any]], dict[int, str]]:
    """Return a file's JSON objects by their lines, and what is wrong with the other lines."""
    if isinstance(whole := _parsed(text), dict):
        return ({1: whole}, {}) if _is_text(whole, text) else ({}, {1: HALF})
    rows: dict[int, dict[str, Any]] = {}
    broken: dict[int, str] = {}
    # Only "\n" ends a line: a JSON string may hold the other characters that str.splitlines takes.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            value = _parsed(line)
            if not isinstance(value, dict):
                broken[number] = "not a JSON object"
            elif not _is_text(value, line):
                broken[number] = HALF
            else:
                rows[number] = value
    return rows, broken


def _is_text(value: Any, text: str) -> bool:
    """Return whether JSON's strings can be written: escapes may spell half of a character."""
    if "\\u" not in text:
        return True
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        return False
    return True


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def _framed(rows: Mapping[int, Mapping[str, Any]]) -> pd.DataFrame:
    """Return objects as rows, with a column for every key that one of them has."""
    keys = dict.fromkeys(key for row in rows.values() for key in row)
    columns = {key: _column(row.get(key) for row in rows.values()) for key in keys}
    return pd.DataFrame(columns, index=list(rows))


def _column(values: Iterable[Any]) -> np.ndarray[Any, Any]:
    # Left to itself pandas takes True for 1 and fails on integers beyond 64 bits.
    listed = list(values)
    if all(type(value) in (int, float) and abs(value) < 2**62 for value in listed):
        return np.array(listed)
    return np.fromiter(listed, dtype=object, count=len(listed))


def _line(wrong: Exception) -> str:
    return " ".join(str(wrong).split())
