"""A run as a timeline that ui.perfetto.dev opens: iterations, requests and levels over time.

The file is JSON of the Trace Event Format (Google, "Trace Event Format", the legacy format that
Perfetto reads). A replica is a process. In its thread "iterations" every iteration is a slice;
counters show requests running and waiting and tokens in the KV cache; requests are asynchronous
slices under their tenant's name, in phases: queued, prefill, decode, and within decode when the
request was preempted or passed over. Copies of KV blocks and reconfigurations have threads of their
own.

Times are whole microseconds, because readers cut fractions off and slices would come to overlap;
the exact duration of an iteration is among its arguments.
"""

import json
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from moesim.files import atomic_path
from moesim.serving.iterations import Floats, Integers, Iterations
from moesim.serving.records import REFUSED

Event = dict[str, Any]

MOST_SLICES = 300_000
"""Iterations that are drawn one by one; in longer runs a run of iterations is one slice."""

ITERATIONS = 1
"""The thread of a replica's iterations; other tracks are numbered from here on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Span:
    """A slice on a track of its own name: a swap, a transfer.

    Spans of one track lie side by side or one within another; `start_s` and `duration_s` in [s].
    """

    replica: str
    track: str
    name: str
    start_s: float
    duration_s: float
    args: Mapping[str, Any] = field(default_factory=dict)


def write_timeline(
    path: Path,
    records: pd.DataFrame,
    logs: Mapping[str, Iterations],
    *,
    spans: Iterable[Span] = (),
    most_slices: int = MOST_SLICES,
) -> None:
    """Write a timeline; the file appears whole or not at all."""
    encode = json.JSONEncoder(separators=(",", ":"), allow_nan=False).encode
    events = timeline(records, logs, spans=spans, most_slices=most_slices)
    with atomic_path(path) as draft, draft.open("w", encoding="utf-8") as file:
        file.write('{"displayTimeUnit":"ms","traceEvents":[')
        for index, event in enumerate(events):
            file.write((",\n" if index else "\n") + encode(event))
        file.write("\n]}\n")


def timeline(
    records: pd.DataFrame,
    logs: Mapping[str, Iterations],
    *,
    spans: Iterable[Span] = (),
    most_slices: int = MOST_SLICES,
) -> Iterator[Event]:
    """Yield the events of a run, track by track, each track in order of time.

    Where the iterations are more than `most_slices` their runs stay one slice each, and an event
    at the start says so.
    """
    spans = list(spans)
    names = sorted({*logs, *records["replica"], *(span.replica for span in spans)})
    processes = {name: number for number, name in enumerate(names, start=1)}
    for name, process in processes.items():
        yield _named("process_name", name or "no replica", process)
        yield _named("thread_name", "iterations", process, ITERATIONS)
    whole_runs = sum(int(log.iterations.sum()) for log in logs.values()) > most_slices
    if whole_runs:
        yield _note(f"more than {most_slices} iterations: runs of one batch are one slice each")
    for name, log in logs.items():
        yield from _slices(log if whole_runs else _one_by_one(log), processes[name])
        yield from _cached(log, processes[name])
    for name, mine in records.groupby("replica", sort=True):
        yield from _waiting_and_running(mine, processes[str(name)])
    yield from _requests(records, logs, processes)
    yield from _spans(spans, processes)


def _named(kind: str, name: str, process: int, thread: int = 0) -> Event:
    return {"ph": "M", "name": kind, "pid": process, "tid": thread, "args": {"name": name}}


def _note(text: str) -> Event:
    return {"ph": "i", "s": "g", "name": text, "ts": 0, "pid": 1, "tid": ITERATIONS}


def _microseconds(seconds: float) -> int:
    return round(seconds * 1e6)


def _one_by_one(log: Iterations) -> Iterations:
    """Return the same log with a row for every iteration."""
    row = np.repeat(np.arange(len(log)), log.iterations)
    before = np.arange(len(row)) - (np.cumsum(log.iterations) - log.iterations)[row]
    first_s, growth_s = log.first_s[row], log.growth_s[row]
    return Iterations(
        start_s=log.start_s[row] + before * (first_s + growth_s * (before - 1) / 2),
        first_s=first_s + growth_s * before,
        growth_s=np.zeros(len(row)),
        iterations=np.ones(len(row), dtype=np.int64),
        sequences=log.sequences[row],
        tokens=log.tokens[row],
        context=log.context[row] + log.tokens[row] * before,
        late=log.late,
    )


def _slices(log: Iterations, process: int) -> Iterator[Event]:
    """Yield a slice a row; rounding must not let one reach into the next, which would nest them."""
    start = np.round(1e6 * log.start_s).astype(np.int64)
    end = np.round(1e6 * (log.start_s + log.duration_s)).astype(np.int64)
    end[:-1] = np.minimum(end[:-1], start[1:])
    columns = (
        start,
        end - start,
        1e3 * log.duration_s,
        log.iterations,
        log.sequences + log.late_ended,
        log.tokens,
        log.context,
    )
    for row in zip(*(column.tolist() for column in columns), strict=True):
        start, duration, milliseconds, iterations, sequences, tokens, context = row
        yield {
            "ph": "X",
            "name": _batch_name(tokens, sequences, iterations),
            "cat": "iteration",
            "pid": process,
            "tid": ITERATIONS,
            "ts": start,
            "dur": duration,
            "args": {
                "tokens": tokens,
                "sequences": sequences,
                "context": context,
                "duration_ms": milliseconds,
                **({"iterations": iterations} if iterations > 1 else {}),
            },
        }


def copies_of(copies: Mapping[str, Iterable[tuple[float, float, int]]]) -> Iterator[Span]:
    """Yield a slice for each copy of KV blocks to or from host memory: start, duration, blocks."""
    for replica, moved in copies.items():
        for start_s, duration_s, blocks in moved:
            yield Span(
                replica=replica,
                track="swaps",
                name=f"swap {blocks} blocks",
                start_s=start_s,
                duration_s=duration_s,
                args={"blocks": blocks},
            )


def reconfigurations_of(
    loads: Mapping[str, Iterable[tuple[float, float]]],
) -> Iterator[Span]:
    """Yield a slice for each time that a replica's model was loaded: start and duration."""
    for replica, times in loads.items():
        for start_s, duration_s in times:
            yield Span(
                replica=replica,
                track="reconfigurations",
                name="reconfigure",
                start_s=start_s,
                duration_s=duration_s,
            )


def _batch_name(tokens: int, decodes: int, iterations: int) -> str:
    """Name a batch `prefill 512 + decode 12`, or a run of them `decode 12 x 87`.

    What does not follow a request's last token at once is computed anew, and so is prefill.
    """
    prefill = [f"prefill {tokens - decodes}"] if tokens > decodes else []
    decode = [f"decode {decodes}"] if decodes else []
    return " + ".join(prefill + decode) + (f" x {iterations}" if iterations > 1 else "")


def _cached(log: Iterations, process: int) -> Iterator[Event]:
    """Yield the tokens in the KV cache at each run's start, and none while the replica is idle."""
    end_s = log.start_s + log.duration_s
    # A microsecond is the resolution: what follows within it follows at once.
    idle = np.append(log.start_s[1:] - end_s[:-1] > 1e-6, True)[: len(log)]
    times_s = np.concatenate([log.start_s, end_s[idle]])
    tokens = np.concatenate([log.context, np.zeros(int(idle.sum()), dtype=np.int64)])
    order = np.argsort(times_s, kind="stable")
    for time_s, count in zip(times_s[order].tolist(), tokens[order].tolist(), strict=True):
        yield _counter("KV tokens", time_s, process, {"tokens": count})


def _waiting_and_running(records: pd.DataFrame, process: int) -> Iterator[Event]:
    """Yield how many requests wait and run, whenever that changes."""
    served = records[records["outcome"] != REFUSED]
    arrived, scheduled, finished = (
        np.sort(served[name].dropna().to_numpy(dtype=float))
        for name in ("arrival_s", "scheduled_s", "finish_s")
    )
    times_s = np.unique(np.concatenate([arrived, scheduled, finished]))
    begun = _upto(scheduled, times_s)
    waiting, running = _upto(arrived, times_s) - begun, begun - _upto(finished, times_s)
    for row in zip(times_s.tolist(), running.tolist(), waiting.tolist(), strict=True):
        yield _counter("requests", row[0], process, {"running": row[1], "waiting": row[2]})


def _upto(ordered_s: Floats, times_s: Floats) -> Integers:
    return np.searchsorted(ordered_s, times_s, side="right").astype(np.int64)


def _counter(name: str, time_s: float, process: int, values: Event) -> Event:
    return {"ph": "C", "name": name, "pid": process, "ts": _microseconds(time_s), "args": values}


def _requests(
    records: pd.DataFrame, logs: Mapping[str, Iterations], processes: Mapping[str, int]
) -> Iterator[Event]:
    """Yield each request's slices; what never ended ends with the run."""
    times = ["arrival_s", "scheduled_s", "first_token_s", "finish_s"]
    ends_s = [records[times].to_numpy(dtype=float).ravel()]
    ends_s += [log.start_s[-1:] + log.duration_s[-1:] for log in logs.values()]
    end_s = float(np.fmax.reduce(np.concatenate(ends_s), initial=0.0))
    late = _late_gaps(logs)
    for row in records.to_dict("records"):
        record = {str(name): value for name, value in row.items()}
        life = _Life(record=record, process=processes[record["replica"]])
        if record["outcome"] == REFUSED:
            yield life.event("n", "refused", record["arrival_s"], {"detail": record["detail"]})
        else:
            yield from life.events(end_s, late.get(record["request_id"], []))


def _late_gaps(logs: Mapping[str, Iterations]) -> dict[int, list[tuple[float, float]]]:
    found = defaultdict(list)
    for log in logs.values():
        columns = (log.late.request_id, log.late.since_s, log.late.until_s)
        for request, *gap in zip(*(column.tolist() for column in columns), strict=True):
            found[request].append((gap[0], gap[1]))
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class _Life:
    """A request as nested asynchronous slices, of which each begins (b) and ends (e)."""

    record: Mapping[str, Any]
    process: int

    def event(self, phase: str, name: str, time_s: float, args: Event | None = None) -> Event:
        return {
            "ph": phase,
            "cat": "request",
            "id": self.record["request_id"],
            "name": name,
            "pid": self.process,
            "tid": 0,
            "ts": _microseconds(time_s),
            **({"args": args} if args else {}),
        }

    def events(self, end_s: float, late: list[tuple[float, float]]) -> Iterator[Event]:
        """Yield all slices of a request, each within the one before it or after it."""
        record = self.record
        name = record["tenant"] or "request"
        times_s = [record["arrival_s"], record["scheduled_s"], record["first_token_s"]]
        times_s = [time_s for time_s in times_s if time_s == time_s]
        finish_s = record["finish_s"] if record["finish_s"] == record["finish_s"] else end_s
        yield self.event("b", name, times_s[0], self._args())
        for index, phase in enumerate(("queued", "prefill", "decode")[: len(times_s)]):
            yield self.event("b", phase, times_s[index])
            if phase == "decode":
                yield from self._interruptions(late)
            yield self.event("e", phase, [*times_s, finish_s][index + 1])
        yield self.event("e", name, finish_s)

    def _interruptions(self, late: list[tuple[float, float]]) -> Iterator[Event]:
        name = "preempted" if self.record["preemptions"] else "passed over"
        for since_s, until_s in sorted(late):
            yield self.event("b", name, since_s)
            yield self.event("e", name, until_s)

    def _args(self) -> Event:
        record = self.record
        return {
            "request": record["request_id"],
            "tenant": record["tenant"],
            "prompt": record["prompt_tokens"],
            "output": record["output_tokens"],
            "preemptions": record["preemptions"],
            "outcome": record["outcome"],
        }


def _spans(spans: list[Span], processes: Mapping[str, int]) -> Iterator[Event]:
    """Yield the extra slices, every track of a replica a thread of its own."""
    tracks: dict[tuple[str, str], int] = {}
    for key in sorted({(span.replica, span.track) for span in spans}):
        tracks[key] = ITERATIONS + 1 + len(tracks)
        yield _named("thread_name", key[1], processes[key[0]], tracks[key])
    for span in sorted(spans, key=lambda span: (span.start_s, -span.duration_s)):
        start, end = _microseconds(span.start_s), _microseconds(span.start_s + span.duration_s)
        yield {
            "ph": "X",
            "name": span.name,
            "cat": span.track,
            "pid": processes[span.replica],
            "tid": tracks[span.replica, span.track],
            "ts": start,
            "dur": end - start,
            "args": dict(span.args),
        }
