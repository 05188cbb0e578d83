"""A run over time, worked by hand, and what must add up whatever the run.

One replica; request 0 (arrives at 0, 4-token prompt, 3 tokens) and 1 (arrives at 2, 2-token
prompt, 1 token):

| run | iterations | ends | tokens in | context before | tokens out |
|---|---|---|---|---|---|
| 1 s | prefill of 0 | 2 | 4 | 0 | 1 |
| 2 s | decode of 0 and prefill of 1 | 4 | 3 | 4 | 2 |
| 4 s | decode of 0 | 5 | 1 | 5 | 1 |
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving.iterations import Iterations, iterations_of
from moesim.serving.records import COMPLETED, REFUSED, Record, records_frame
from moesim.serving.series import COLUMNS, time_series


def _record(number: int, *times: float, prompt: int, output: int) -> Record:
    arrival, scheduled, first, finish = times
    return Record(
        request_id=number,
        replica="m/0",
        arrival_s=arrival,
        scheduled_s=scheduled,
        first_token_s=first,
        finish_s=finish,
        prompt_tokens=prompt,
        output_tokens=output,
        outcome=COMPLETED,
    )


@pytest.fixture
def log() -> Iterations:
    """Return the runs of the module's table."""
    runs = [(1.0, 1.0, 0, 1, 0, 4, 0), (2.0, 2.0, 0, 1, 1, 3, 4), (4.0, 1.0, 0, 1, 1, 1, 5)]
    return iterations_of(runs, [])


@pytest.fixture
def two() -> pd.DataFrame:
    """Return the requests of the module's table, and a refused one."""
    refused = Record(request_id=2, arrival_s=3, outcome=REFUSED)
    return records_frame(
        [
            _record(0, 0, 1, 2, 5, prompt=4, output=3),
            _record(1, 1.5, 2, 4, 4, prompt=2, output=1),
            refused,
        ]
    )


def test_a_case_by_hand(two: pd.DataFrame, log: Iterations) -> None:
    """Five intervals of a second."""
    series = time_series(two, {"m/0": log}, {"m/0": 10}, points=5)
    assert series["time_s"].tolist() == [0, 1, 2, 3, 4]
    assert series["queued"].tolist() == [1, 0.5, 0, 0, 0]
    assert series["running"].tolist() == [0, 1, 2, 2, 1]
    assert series["tokens_per_s"].tolist() == [0, 1, 0, 2, 1]
    assert series["prompt_tokens_per_s"].tolist() == [0, 4, 1, 1, 0]
    assert series["kv_tokens"].tolist() == [0, 2, 4.75, 6.25, 5.5]
    assert series["kv_use"].tolist() == [0, 0.2, 0.475, 0.625, 0.55]
    assert series["arrivals_per_s"].tolist() == [1, 1, 0, 1, 0]


def test_tokens_within_a_run_appear_when_their_iteration_ends() -> None:
    """Iterations of 1, 2 and 3 s after a first token at 1 s: tokens at 2, 4 and 7 s."""
    records = records_frame([_record(0, 0, 0, 1, 7, prompt=1, output=4)])
    runs = [(0.0, 1.0, 0, 1, 0, 1, 0), (1.0, 1.0, 1.0, 3, 1, 1, 1)]
    series = time_series(records, {"m/0": iterations_of(runs, [])}, points=7)
    assert series["tokens_per_s"].tolist() == [1, 1, 0, 1, 0, 0, 1]
    assert series["kv_tokens"].tolist() == [0.5, 1.25, 1.75, 2.25, 2.75, 3.25, 3.75]
    assert "kv_use" not in series


def test_replicas_add_up(two: pd.DataFrame, log: Iterations) -> None:
    """Two of them with the same log hold twice the context; one without a log is just room."""
    one = time_series(two, {"m/0": log}, {"m/0": 10}, points=5)
    both = time_series(two, {"m/0": log, "m/1": log}, {"m/0": 10, "m/1": 10}, points=5)
    assert both["kv_tokens"].tolist() == (2 * one["kv_tokens"]).tolist()
    assert both["kv_use"].tolist() == one["kv_use"].tolist()
    idle = time_series(two, {"m/0": log, "m/1": iterations_of([], [])}, points=5)
    assert idle["kv_tokens"].tolist() == one["kv_tokens"].tolist()


@pytest.mark.parametrize("capacity", [None, {"m/0": 10}])
def test_where_nothing_finished_there_is_no_time(capacity: dict[str, int] | None) -> None:
    """The columns are there, and no row."""
    records = records_frame([Record(request_id=0, outcome=REFUSED)])
    series = time_series(records, {}, capacity)
    assert series.empty
    assert tuple(series) == (*COLUMNS, *(["kv_use"] if capacity else []))


def test_a_request_that_never_ran_is_queued_to_the_end(two: pd.DataFrame, log: Iterations) -> None:
    """And one that ran and never finished is running to the end."""
    stuck = Record(request_id=3, arrival_s=1.0)
    half = Record(request_id=4, arrival_s=1.0, scheduled_s=2.0)
    records = pd.concat([two, records_frame([stuck, half])], ignore_index=True)
    series, before = (time_series(table, {"m/0": log}, points=5) for table in (records, two))
    assert (series["queued"] - before["queued"]).tolist() == [0, 2, 1, 1, 1]
    assert (series["running"] - before["running"]).tolist() == [0, 0, 1, 1, 1]


arrivals = st.integers(0, 30).map(lambda tick: tick / 20)
requests = st.lists(st.tuples(arrivals, st.integers(1, 20), st.integers(1, 20)), min_size=1)


@given(requests, st.integers(1, 50))
def test_rows_add_up_to_the_run(
    serve: Callable[[Any], Any], requests: list[tuple[float, int, int]], points: int
) -> None:
    """Every token is counted once, and the mean number in the system is Little's."""
    world = serve(requests)
    records, log = world.records, world.log
    series = time_series(records, {"m/0": log}, points=points)
    span_s = records["finish_s"].max() - records["arrival_s"].min()
    assert len(series) == points
    assert (series >= 0).all(axis=None)
    totals = series.sum() * span_s / points
    assert totals["tokens_per_s"] == pytest.approx(records["output_tokens"].sum())
    assert totals["arrivals_per_s"] == pytest.approx(len(records))
    decoded = (log.iterations * log.sequences).sum() + len(log.late.until_s)
    computed = (log.iterations * log.tokens).sum()
    assert totals["prompt_tokens_per_s"] == pytest.approx(computed - decoded)
    turnaround_s = (records["finish_s"] - records["arrival_s"]).sum()
    in_system = series["queued"] + series["running"]
    assert in_system.mean() == pytest.approx(turnaround_s / span_s)


@given(requests, st.integers(1, 50))
def test_tokens_are_counted_where_they_came(
    serve: Callable[[Any], Any], requests: list[tuple[float, int, int]], points: int
) -> None:
    """Up to any time there are as many as the brute-force world has given out, late ones too."""
    world = serve(requests)
    series = time_series(world.records, {"m/0": world.log}, points=points)
    edges = np.append(series["time_s"], world.records["finish_s"].max())[1:]
    counted = np.cumsum(series["tokens_per_s"]) * (edges[-1] - series["time_s"][0]) / points
    times = np.concatenate(list(world.tokens_s.values()))
    least = [(times < edge - 1e-6).sum() for edge in edges]
    most = [(times < edge + 1e-6).sum() for edge in edges]
    assert ((counted > np.array(least) - 0.5) & (counted < np.array(most) + 0.5)).all()
