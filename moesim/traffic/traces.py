"""Traces: recorded requests read from a file, cut to a window and replayed.

`moesim.traffic.formats` lists the files that are understood.
"""

import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.errors import MoesimWarning, ScenarioError
from moesim.traffic.formats import LAYOUTS, Layout, recognise, unknown
from moesim.traffic.rows import Rows
from moesim.traffic.tables import Table, read_table


@dataclass(frozen=True, slots=True, kw_only=True)
class Trace:
    """Recorded requests in order of arrival, in seconds from the first.

    The frame has `arrival_s`, `prompt_tokens` and `output_tokens`; `tenant` where the file tells
    several apart; and, where `prefix_block` is given, `prefix`: each prompt's block hashes as a
    tuple, a block of `prefix_block` tokens each and the last perhaps of fewer. Prompts that begin
    with the same hashes begin with the same tokens.
    """

    frame: pd.DataFrame
    format: str
    prefix_block: int | None = None
    skipped: int = 0
    """Rows of the file that were no requests and were left out."""

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """The part of a trace that is replayed, and how fast.

    `start_s` and `duration_s` are in the trace's own time; a `speedup` of 2 halves every gap. Of a
    trace of several tenants one can be picked; of what remains, the first `max_requests` are kept.
    """

    start_s: float = 0.0
    duration_s: float | None = None
    speedup: float = 1.0
    tenant: str | None = None
    max_requests: int | None = None


def read_trace(path: Path, *, skip_bad_rows: bool = False) -> Trace:
    """Read a trace of any known layout.

    Requests at the same instant keep the order of the file. Rows out of order are sorted, with a
    MoesimWarning. Raises ScenarioError, naming the line, for a row that is not a request, unless
    such rows are to be skipped: then a MoesimWarning counts them.
    """
    return trace_from(read_table(path), skip_bad_rows=skip_bad_rows)


def trace_from(table: Table, *, skip_bad_rows: bool = False) -> Trace:
    """Return the trace that a table holds; see `read_trace`."""
    name = layout_of(table)
    if name not in LAYOUTS:
        raise ScenarioError(
            f"{table.path}: {name} describes clients, it lists no requests; "
            "generate requests from it with kind: servegen in place of kind: trace"
        )
    layout = LAYOUTS[name]
    rows = Rows(table)
    frame = _requests(rows, layout)[rows.settle(skip=skip_bad_rows)]
    if frame.empty:
        raise ScenarioError(f"{table.path}: no request in it, only a header or bad rows")
    return Trace(
        frame=_from_zero(_in_order(frame, table)),
        format=name,
        prefix_block=layout.prefix_block,
        skipped=rows.skipped,
    )


def layout_of(table: Table) -> str:
    """Return the name of a table's layout, ServeGen's too; ScenarioError where it has none."""
    columns = [str(column) for column in table.frame.columns]
    name = recognise(columns)
    if name is None:
        raise ScenarioError(f"{table.path}: {unknown(columns)}")
    return name


def cut(trace: pd.DataFrame, window: Window, path: Path) -> pd.DataFrame:
    """Return the window of a trace, its times counted from the window's start and sped up."""
    trace = _of_tenant(trace, window.tenant, path)
    arrivals = trace["arrival_s"] - window.start_s
    inside = arrivals >= 0
    if window.duration_s is not None:
        inside &= arrivals < window.duration_s
    if not inside.any():
        end = f"and {window.start_s + window.duration_s:g} s" if window.duration_s else "on"
        whose = "" if window.tenant is None else f" of tenant {window.tenant!r}"
        raise ScenarioError(
            f"{path}: no request{whose} from {window.start_s:g} s {end}; "
            f"the trace is {trace['arrival_s'].iloc[-1]:g} s long"
        )
    part = trace[inside].reset_index(drop=True)
    sped_up = part.assign(arrival_s=arrivals[inside].to_numpy() / window.speedup)
    return sped_up.iloc[: window.max_requests]


def _of_tenant(trace: pd.DataFrame, tenant: str | None, path: Path) -> pd.DataFrame:
    if tenant is None:
        return trace
    if "tenant" not in trace:
        raise ScenarioError(f"{path}: tenant {tenant!r}: the trace does not tell tenants apart")
    mine = trace[trace["tenant"] == tenant]
    if mine.empty:
        there = trace["tenant"].value_counts().index[:10]
        raise ScenarioError(
            f"{path}: no request of tenant {tenant!r}; the trace has {', '.join(map(repr, there))}"
        )
    return mine


def _requests(rows: Rows, layout: Layout) -> pd.DataFrame:
    """Return a table's requests, wrong ones among them; the index still counts the file's lines."""
    columns = {
        "arrival_s": _arrivals(rows, layout),
        "prompt_tokens": rows.counts(layout.prompt),
        "output_tokens": rows.counts(layout.output),
    }
    frame = pd.DataFrame(columns, index=rows.table.frame.index)
    if layout.tenant in rows.table.frame:
        frame["tenant"] = rows.texts(layout.tenant)
    if layout.prefix is not None:
        hashes = rows.lists(layout.prefix, "a list of block hashes")
        frame["prefix"] = pd.Series(hashes, index=frame.index, dtype=object)
    return frame


def _arrivals(rows: Rows, layout: Layout) -> np.ndarray[tuple[int], np.dtype[np.float64]]:
    if layout.per_second is None:
        return rows.dates(layout.arrival)
    return rows.numbers(layout.arrival) / layout.per_second


def _in_order(frame: pd.DataFrame, table: Table) -> pd.DataFrame:
    falls = np.flatnonzero(np.diff(frame["arrival_s"]) < 0)
    if falls.size:
        warnings.warn(
            f"{table.path}: {falls.size} rows out of order, the first at {table.place} "
            f"{frame.index[falls[0] + 1]}; sorted by time",
            MoesimWarning,
            stacklevel=2,
        )
        return frame.sort_values("arrival_s", kind="stable", ignore_index=True)
    return frame.reset_index(drop=True)


def _from_zero(frame: pd.DataFrame) -> pd.DataFrame:
    return frame.assign(arrival_s=frame["arrival_s"] - frame["arrival_s"].iloc[0])
