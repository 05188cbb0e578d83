"""A timeline of two requests, event by event, and what must hold of every event.

| run | iterations | lasts | batch |
|---|---|---|---|
| 1 s | 1 | 1 s | prefill of request 0, 4 tokens |
| 2 s | 3 | 1, 1.5 and 2 s | decodes of request 0 |
| 8 s | 1 | 2 s | decode of 0 and prefill of 1, 2 tokens |
| 10 s | 1 | 1 s | decode of 1, after an interruption of 0 |
"""

import json
from collections import defaultdict
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.serving.iterations import Iterations, iterations_of
from moesim.serving.records import COMPLETED, REFUSED, Record, records_frame
from moesim.views.timeline import (
    Event,
    Span,
    reconfigurations_of,
    timeline,
    write_timeline,
)


def _record(number: int, *times: float, **fields: Any) -> Record:
    arrival, scheduled, first, finish = times
    return Record(
        request_id=number,
        tenant="chat",
        replica="m/0",
        arrival_s=arrival,
        scheduled_s=scheduled,
        first_token_s=first,
        finish_s=finish,
        outcome=COMPLETED,
        **fields,
    )


@pytest.fixture
def served() -> pd.DataFrame:
    """Return the two requests of the module's table, and a refused one."""
    refused = Record(request_id=2, tenant="chat", replica="m/0", arrival_s=3, outcome=REFUSED)
    refused.detail = "empty prompt"
    first = _record(0, 0.5, 1, 2, 11, prompt_tokens=4, output_tokens=6, preemptions=1)
    second = _record(1, 7, 8, 10, 11, prompt_tokens=2, output_tokens=2)
    return records_frame([first, second, refused])


@pytest.fixture
def log() -> Iterations:
    """Return the runs of the module's table; request 0 had no token between 6.5 and 10 s."""
    runs = [
        (1.0, 1.0, 0, 1, 0, 4, 0),
        (2.0, 1.0, 0.5, 3, 1, 1, 4),
        (8.0, 2.0, 0, 1, 0, 3, 7),
        (10.0, 1.0, 0, 1, 2, 2, 10),
    ]
    return iterations_of(runs, [(0, 6.5, 10.0)])


def _of_kind(events: Iterable[Event], kind: str) -> list[Event]:
    return [event for event in events if event["ph"] == kind]


def _slices(events: Iterable[Event]) -> list[tuple[str, float, float]]:
    return [
        (event["name"], event["ts"] / 1e6, event["dur"] / 1e6) for event in _of_kind(events, "X")
    ]


def test_every_iteration_is_a_slice(served: pd.DataFrame, log: Iterations) -> None:
    """Named by its batch; those of a run one after another."""
    assert _slices(timeline(served, {"m/0": log})) == [
        ("prefill 4", 1, 1),
        ("decode 1", 2, 1),
        ("decode 1", 3, 1.5),
        ("decode 1", 4.5, 2),
        ("prefill 2 + decode 1", 8, 2),
        ("decode 2", 10, 1),
    ]


def test_a_mixed_batch_is_named_by_both_parts(served: pd.DataFrame) -> None:
    """Twelve decodes beside a prompt of 512 tokens."""
    log = iterations_of([(0.0, 1.0, 0, 1, 12, 524, 900)], [])
    assert _slices(timeline(served, {"m/0": log}))[0][0] == "prefill 512 + decode 12"


def test_slices_say_what_ran(served: pd.DataFrame, log: Iterations) -> None:
    """The context grows by a token an iteration."""
    found = [event["args"] for event in _of_kind(timeline(served, {"m/0": log}), "X")]
    assert [args["context"] for args in found] == [0, 4, 5, 6, 7, 10]
    assert found[2] == {"tokens": 1, "sequences": 1, "context": 5, "duration_ms": 1500}


def test_in_a_long_run_runs_are_slices(served: pd.DataFrame, log: Iterations) -> None:
    """Six iterations are more than five, and the timeline says what it does; not so of six."""
    events = list(timeline(served, {"m/0": log}, most_slices=5))
    assert ("decode 1 x 3", 2, 4.5) in _slices(events)
    assert len(_slices(events)) == 4
    (note,) = _of_kind(events, "i")
    assert note["name"] == "more than 5 iterations: runs of one batch are one slice each"
    assert _of_kind(timeline(served, {"m/0": log}, most_slices=6), "i") == []


@pytest.mark.parametrize("most_slices", [1, 100])
def test_slices_last_as_long_as_the_replica_was_busy(
    served: pd.DataFrame, most_slices: int
) -> None:
    """And never reach into each other, with durations that no microsecond divides."""
    runs = [(i / 3, 0.1 / 7, 0.001 / 7, 7, 1, 1, i) for i in range(10)]
    follows = iterations_of(runs, [])
    follows.start_s[1:] = follows.duration_s.cumsum()[:-1]
    events = timeline(served, {"m/0": follows}, most_slices=most_slices)
    slices = sorted((event["ts"], event["ts"] + event["dur"]) for event in _of_kind(events, "X"))
    assert all(before[1] == after[0] for before, after in pairwise(slices))
    busy_s = sum(end - start for start, end in slices) / 1e6
    assert busy_s == pytest.approx(follows.duration_s.sum(), abs=1e-6)


def test_counters(served: pd.DataFrame, log: Iterations) -> None:
    """At each change; the cache empties while the replica is idle, from 6.5 to 8 s and at last."""
    levels: dict[str, list[tuple[float, ...]]] = defaultdict(list)
    for event in _of_kind(timeline(served, {"m/0": log}), "C"):
        levels[event["name"]].append((event["ts"] / 1e6, *event["args"].values()))
    assert levels["KV tokens"] == [(1, 0), (2, 4), (6.5, 0), (8, 7), (10, 10), (11, 0)]
    # (time, running, waiting); first tokens change neither
    assert levels["requests"] == [(0.5, 0, 1), (1, 1, 0), (7, 1, 1), (8, 2, 0), (11, 0, 0)]


def test_phases_of_a_request(served: pd.DataFrame, log: Iterations) -> None:
    """Request 0 waits half a second, and is preempted while it decodes."""
    events = [event for event in timeline(served, {"m/0": log}) if event.get("id") == 0]
    assert [(event["ph"], event["name"], event["ts"] / 1e6) for event in events] == [
        ("b", "chat", 0.5),
        ("b", "queued", 0.5),
        ("e", "queued", 1),
        ("b", "prefill", 1),
        ("e", "prefill", 2),
        ("b", "decode", 2),
        ("b", "preempted", 6.5),
        ("e", "preempted", 10),
        ("e", "decode", 11),
        ("e", "chat", 11),
    ]
    assert events[0]["args"] == {
        "request": 0,
        "tenant": "chat",
        "prompt": 4,
        "output": 6,
        "preemptions": 1,
        "outcome": "completed",
    }


def test_a_late_token_without_preemption_was_passed_over(
    served: pd.DataFrame, log: Iterations
) -> None:
    """There was no room for it in the batch."""
    events = timeline(served.assign(preemptions=0), {"m/0": log})
    assert [event["ts"] for event in events if event["name"] == "passed over"] == [6.5e6, 10e6]


def test_a_refused_request_is_an_instant(served: pd.DataFrame, log: Iterations) -> None:
    """It says why."""
    (event,) = _of_kind(timeline(served, {"m/0": log}), "n")
    assert (event["id"], event["name"], event["ts"]) == (2, "refused", 3e6)
    assert event["args"] == {"detail": "empty prompt"}


@pytest.mark.parametrize(
    ("known", "phases"),
    [
        ({}, ["queued"]),
        ({"scheduled_s": 2.0}, ["queued", "prefill"]),
        ({"scheduled_s": 2.0, "first_token_s": 4.0}, ["queued", "prefill", "decode"]),
    ],
)
def test_an_unfinished_request_ends_with_the_run(
    log: Iterations, known: dict[str, float], phases: list[str]
) -> None:
    """Whatever phase it is in; the run's last iteration ends at 11 s."""
    records = records_frame([Record(request_id=9, replica="m/0", arrival_s=1.0, **known)])
    events = list(timeline(records, {"m/0": log}))
    begun = [event["name"] for event in _of_kind(events, "b")]
    assert begun == ["request", *phases]
    assert [(e["name"], e["ts"]) for e in _of_kind(events, "e")[-2:]] == [
        (phases[-1], 11e6),
        ("request", 11e6),
    ]


def test_events_are_well_formed(served: pd.DataFrame, log: Iterations) -> None:
    """Every slice that begins ends, innermost first; every process and thread has a name."""
    other = Record(request_id=7, replica="m/1", arrival_s=20.0, scheduled_s=21.0)
    records = pd.concat([served, records_frame([other])], ignore_index=True)
    spans = [Span(replica="m/1", track="swaps", name="out", start_s=1, duration_s=2)]
    logs = {"m/0": log, "m/1": iterations_of([(21.0, 1.0, 0, 2, 0, 8, 0)], [])}
    events = list(timeline(records, logs, spans=spans))
    open_slices: dict[int, list[str]] = defaultdict(list)
    clock: dict[tuple[Any, ...], float] = defaultdict(float)
    for event in events:
        if event["ph"] == "M":
            continue
        track = (event["ph"] in "bne", event["pid"], event.get("tid"), event.get("id"))
        track = (*track, event["name"]) if event["ph"] == "C" else track
        assert event["ts"] >= clock[track]
        clock[track] = event["ts"]
        if event["ph"] == "b":
            open_slices[event["id"]].append(event["name"])
        elif event["ph"] == "e":
            assert open_slices[event["id"]].pop() == event["name"]
    assert not any(open_slices.values())
    named = {(e["pid"], e["tid"]) for e in _of_kind(events, "M") if e["name"] == "thread_name"}
    assert {(event["pid"], event["tid"]) for event in _of_kind(events, "X")} == named
    processes = [e["args"]["name"] for e in _of_kind(events, "M") if e["name"] == "process_name"]
    assert processes == ["m/0", "m/1"]


def test_spans_have_tracks_of_their_own(served: pd.DataFrame, log: Iterations) -> None:
    """In order of time, whatever order they come in."""
    spans = [
        Span(replica="m/0", track="swaps", name="in", start_s=5, duration_s=1, args={"blocks": 3}),
        Span(replica="m/0", track="swaps", name="out", start_s=2, duration_s=0.5),
        Span(replica="m/0", track="transfers", name="kv", start_s=1, duration_s=9),
    ]
    events = list(timeline(served, {"m/0": log}, spans=spans))
    threads = {
        event["tid"]: event["args"]["name"]
        for event in _of_kind(events, "M")
        if event["name"] == "thread_name"
    }
    extra = [
        (threads[event["tid"]], event["name"], event["ts"], event["dur"], event["args"])
        for event in _of_kind(events, "X")
        if threads[event["tid"]] != "iterations"
    ]
    assert extra == [
        ("transfers", "kv", 1e6, 9e6, {}),
        ("swaps", "out", 2e6, 0.5e6, {}),
        ("swaps", "in", 5e6, 1e6, {"blocks": 3}),
    ]


def test_reconfigurations_are_slices_of_their_replica(
    served: pd.DataFrame, log: Iterations
) -> None:
    """On a track of their own; a replica that loads nothing has none."""
    spans = reconfigurations_of({"m/0": ((0.5, 0.25), (7.0, 1.0)), "m/1": ()})
    events = list(timeline(served, {"m/0": log}, spans=spans))
    found = [event for event in _of_kind(events, "X") if event["name"] == "reconfigure"]
    assert [(event["cat"], event["ts"], event["dur"]) for event in found] == [
        ("reconfigurations", 0.5e6, 0.25e6),
        ("reconfigurations", 7e6, 1e6),
    ]
    assert {event["pid"] for event in found} == {1}


def test_the_file_is_json_that_holds_all_events(
    served: pd.DataFrame, log: Iterations, tmp_path: Path
) -> None:
    """Numbers are finite: NaN is no JSON, and no time is NaN."""
    path = tmp_path / "run.json"
    write_timeline(path, served, {"m/0": log})

    def refuse(constant: str) -> None:
        pytest.fail(f"{constant} in the file")

    content = json.loads(path.read_text(), parse_constant=refuse)
    assert content["traceEvents"] == list(timeline(served, {"m/0": log}))
    assert content["displayTimeUnit"] == "ms"
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_to_show(tmp_path: Path) -> None:
    """No requests and an empty log are a file all the same."""
    write_timeline(tmp_path / "a.json", records_frame([]), {"m/0": iterations_of([], [])})
    kinds = {event["ph"] for event in json.loads((tmp_path / "a.json").read_text())["traceEvents"]}
    assert kinds == {"M"}
