"""Traces: recorded requests read from a file, cut to a window and replayed.

Reads the Azure LLM inference traces (`TIMESTAMP, ContextTokens, GeneratedTokens`) and plain CSV
files with columns `arrival_s, prompt_tokens, output_tokens`.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.errors import MoesimWarning, ScenarioError

AZURE = {
    "TIMESTAMP": "arrival_s",
    "ContextTokens": "prompt_tokens",
    "GeneratedTokens": "output_tokens",
}
COLUMNS = ("arrival_s", "prompt_tokens", "output_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of a trace that is replayed, and how fast.

    `start_s` and `duration_s` are in the trace's own time; a `speedup` of 2 halves every gap.
    """

    start_s: float = 0.0
    duration_s: float | None = None
    speedup: float = 1.0


def read_trace(path: Path) -> pd.DataFrame:
    """Read a trace as a frame of `arrival_s` (from 0), `prompt_tokens`, `output_tokens`.

    Requests at the same instant keep the order of the file. Rows out of order are sorted, with a
    MoesimWarning. Raises ScenarioError, naming the line, for a row that is not a request.
    """
    raw = _read_csv(path)
    azure = set(AZURE) <= set(raw.columns)
    raw = raw.rename(columns=AZURE) if azure else raw
    missing = [name for name in COLUMNS if name not in raw]
    if missing:
        raise ScenarioError(
            f"{path}: column {missing[0]!r} is missing; expected {', '.join(COLUMNS)} or the Azure "
            f"columns {', '.join(AZURE)}"
        )
    if raw.empty:
        raise ScenarioError(f"{path}: the trace has a header but no request")
    arrivals = _timestamps(raw["arrival_s"], path) if azure else _numbers(raw, "arrival_s", path)
    frame = pd.DataFrame(
        {
            "arrival_s": arrivals,
            "prompt_tokens": _counts(raw, "prompt_tokens", path),
            "output_tokens": _counts(raw, "output_tokens", path),
        }
    )
    return _from_zero(_in_order(frame, path))


def _read_csv(path: Path) -> pd.DataFrame:
    """Read a CSV as text; the index counts the file's lines after its header, blank ones too."""
    try:
        with warnings.catch_warnings():
            # A row longer than the header is only warned of, and its last fields dropped.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            raw = pd.read_csv(
                path, dtype=str, keep_default_na=False, index_col=False, skip_blank_lines=False
            )
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such trace file; give its path") from None
    except pd.errors.EmptyDataError:
        raise ScenarioError(f"{path}: the trace is empty; expected a header and rows") from None
    except pd.errors.ParserWarning:
        raise ScenarioError(f"{path}: a row has more fields than the header") from None
    except (OSError, ValueError) as wrong:
        raise ScenarioError(f"{path}: not readable as CSV ({str(wrong).strip()})") from None
    blank = raw.isna() | (raw == "")
    return raw[~blank.all(axis=1)]


def cut(trace: pd.DataFrame, window: Window, path: Path) -> pd.DataFrame:
    """Return the window of a trace, its times counted from the window's start and sped up."""
    arrivals = trace["arrival_s"] - window.start_s
    inside = arrivals >= 0
    if window.duration_s is not None:
        inside &= arrivals < window.duration_s
    if not inside.any():
        end = f"and {window.start_s + window.duration_s:g} s" if window.duration_s else "on"
        raise ScenarioError(
            f"{path}: no request from {window.start_s:g} s {end}; "
            f"the trace is {trace['arrival_s'].iloc[-1]:g} s long"
        )
    part = trace[inside].reset_index(drop=True)
    return part.assign(arrival_s=arrivals[inside].to_numpy() / window.speedup)


def _timestamps(text: pd.Series, path: Path) -> pd.Series:
    times = pd.to_datetime(text, errors="coerce", format="ISO8601", utc=True)
    _refuse(times.isna(), text, "TIMESTAMP", "a date and time", path)
    return (times - times.min()).dt.total_seconds()


def _numbers(raw: pd.DataFrame, column: str, path: Path) -> pd.Series:
    values = pd.to_numeric(raw[column], errors="coerce").astype(float)
    _refuse(values.isna() | np.isinf(values), raw[column], column, "a number", path)
    return values


def _counts(raw: pd.DataFrame, column: str, path: Path) -> pd.Series:
    values = _numbers(raw, column, path)
    wrong = (values < 0) | (values != np.floor(values)) | (values > 2**31)
    _refuse(wrong, raw[column], column, "a whole number of tokens", path)
    return values.astype(np.int64)


def _refuse(wrong: pd.Series, text: pd.Series, column: str, expected: str, path: Path) -> None:
    if wrong.any():
        row = int(np.argmax(wrong.to_numpy()))
        raise ScenarioError(
            f"{path}: line {text.index[row] + 2}: {column}: {text.iloc[row]!r} is not {expected}"
            f" ({int(wrong.sum())} such rows); correct or remove them"
        )


def _in_order(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    falls = np.flatnonzero(np.diff(frame["arrival_s"]) < 0)
    if falls.size:
        warnings.warn(
            f"{path}: {falls.size} rows out of order, the first at line "
            f"{frame.index[falls[0] + 1] + 2}; sorted by time",
            MoesimWarning,
            stacklevel=2,
        )
        return frame.sort_values("arrival_s", kind="stable", ignore_index=True)
    return frame.reset_index(drop=True)


def _from_zero(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(arrival_s=frame["arrival_s"] - frame["arrival_s"].iloc[0])
