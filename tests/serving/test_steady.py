"""The verdict on queues whose load is known (Lindley's recursion) and on shapes drawn by hand."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving.iterations import Floats
from moesim.serving.records import COMPLETED, REFUSED, UNFINISHED
from moesim.serving.steady import FEWEST, steady_state, warmup


def _records(arrival: Floats, scheduled: Floats, finish: Floats) -> pd.DataFrame:
    times = {"arrival_s": arrival, "scheduled_s": scheduled, "finish_s": finish}
    return pd.DataFrame(times).assign(outcome=COMPLETED)


def _single_server(load: float, requests: int, seed: int) -> pd.DataFrame:
    """M/D/1 by Lindley: a request starts when it has arrived and the one before is done.

    With k requests before it, that is the largest of `arrival_j + (k - j) load` over j up to k.
    """
    arrival = np.cumsum(np.random.default_rng(seed).exponential(1, requests))
    work = load * np.arange(requests)
    start = np.maximum.accumulate(arrival - work) + work
    return _records(arrival, start, start + load)


@pytest.mark.parametrize("load", [0.5, 0.8, 0.95])
@pytest.mark.parametrize("requests", [200, 1000, 4000])
def test_below_capacity_is_never_called_above(load: float, requests: int) -> None:
    """Fifty runs each."""
    kinds = [steady_state(_single_server(load, requests, seed)).kind for seed in range(50)]
    assert "above capacity" not in kinds
    assert kinds.count("steady") > 35


@pytest.mark.parametrize(("load", "requests"), [(1.1, 8000), (1.3, 2000)])
def test_above_capacity_is_seen(load: float, requests: int) -> None:
    """The queue grows by what the server falls behind: 1 - 1 / load of the arrivals."""
    for seed in range(50):
        verdict = steady_state(_single_server(load, requests, seed))
        assert verdict.kind == "above capacity"
        assert verdict.growth_per_s == pytest.approx(1 - 1 / load, abs=0.12)
        assert verdict.warmup_s is None


def test_the_sentence_of_a_run_above_capacity() -> None:
    """A request a second, of which every other is served: 0.5 req/s pile up over 200 s."""
    arrival = np.arange(201.0)
    start = 2 * arrival
    verdict = steady_state(_records(arrival, start, start + 2))
    assert verdict.sentence == (
        "above capacity: the queue grows by 0.5 req/s; figures are for the first 200 s only"
    )


def test_a_queue_that_empties_is_not_above_capacity() -> None:
    """As before, but all who wait are scheduled at 170 s: then nobody waits any more."""
    arrival = np.arange(201.0)
    start = np.where(arrival <= 170, np.minimum(2 * arrival, 170), arrival)
    verdict = steady_state(_records(arrival, start, start + 400))
    assert verdict.kind != "above capacity"


def test_refused_requests_do_not_count() -> None:
    """They neither wait nor are they in the system, however many come at the end."""
    served = _single_server(0.5, 400, 0)
    end = served["arrival_s"].max()
    times = np.linspace(end / 2, end, 300)
    never = np.full(300, np.nan)
    refused = _records(times, never, never).assign(outcome=REFUSED)
    verdict = steady_state(pd.concat([served, refused], ignore_index=True))
    assert verdict == steady_state(served)
    assert verdict.kind == "steady"


def test_requests_that_never_ran_do() -> None:
    """The same, but unfinished: they wait to the end."""
    served = _single_server(0.5, 400, 0)
    end = served["arrival_s"].max()
    times = np.linspace(end / 2, end, 300)
    never = np.full(300, np.nan)
    stuck = _records(times, never, never).assign(outcome=UNFINISHED)
    verdict = steady_state(pd.concat([served, stuck], ignore_index=True))
    assert verdict.kind == "above capacity"


@pytest.mark.parametrize("requests", [0, 1, FEWEST - 1])
def test_too_short_to_tell(requests: int) -> None:
    """Also nothing at all."""
    verdict = steady_state(_single_server(0.5, requests, 0))
    assert verdict.kind == "too short"
    assert verdict.growth_per_s is None
    assert verdict.sentence.startswith(f"too short to tell: {requests} requests")


def test_all_at_once_is_no_time() -> None:
    """A hundred requests at the same moment: there is no arrival window to judge."""
    start = np.arange(100.0)
    verdict = steady_state(_records(np.zeros(100), start, start + 1))
    assert verdict.growth_per_s == 0
    assert verdict.kind == "not settled"


@pytest.mark.parametrize("slow", [100, 200, 300])
def test_a_slow_start_is_cut_off(slow: int) -> None:
    """The first requests take 10 s to begin with, then 1 s, give or take a tenth."""
    rng = np.random.default_rng(slow)
    arrival = np.arange(1000) / 2
    turnaround = 1 + 0.1 * rng.standard_normal(1000) + 9 * np.maximum(0, 1 - arrival * 2 / slow)
    verdict = steady_state(_records(arrival, arrival, arrival + turnaround))
    assert verdict.kind == "steady"
    assert verdict.warmup_requests == pytest.approx(slow, abs=10)
    assert verdict.warmup_s == verdict.warmup_requests / 2
    assert verdict.sentence == f"steady after {verdict.warmup_s:.3g} s"


def test_without_a_slow_start_nothing_is_cut_off() -> None:
    """Turnaround alternates."""
    arrival = np.arange(100.0)
    verdict = steady_state(_records(arrival, arrival, arrival + 1 + arrival % 5))
    assert (verdict.warmup_requests, verdict.warmup_s) == (0, 0.0)
    assert verdict.sentence == "steady from the start"


def test_a_drift_does_not_settle() -> None:
    """Turnaround grows all the time."""
    arrival = np.arange(400.0)
    verdict = steady_state(_records(arrival, arrival, 1.1 * arrival + 1))
    assert verdict.kind == "not settled"
    assert verdict.warmup_requests is None


def test_warmup_by_hand() -> None:
    """Batch means 9 1 1 1: without the first the rest does not deviate at all."""
    assert warmup(np.repeat([9.0, 1, 1, 1, 1, 1, 1, 1], 5)) == 5


@given(st.lists(st.floats(0.1, 100), min_size=10, max_size=200))
def test_warmup_is_the_definition(turnaround: list[float]) -> None:
    """Where no other truncation is as good to rounding."""
    values = np.array(turnaround)
    means = values[: len(values) // 5 * 5].reshape(-1, 5).mean(axis=1)
    found, half = warmup(values), len(means) // 2
    errors = [means[d:].var() / (len(means) - d) for d in range(half + 1)]
    best = range(half + 1) if found is None else [found // 5]
    assert min(errors[d] for d in best) == pytest.approx(min(errors), rel=1e-6, abs=1e-9)
    if found is not None:
        assert found <= 0.9 * half * 5


def test_the_verdict_is_json() -> None:
    """Plain numbers and texts."""
    verdict = steady_state(_single_server(0.8, 500, 1)).as_dict()
    assert json.loads(json.dumps(verdict)) == verdict


@given(st.permutations(range(60)))
def test_the_order_of_rows_does_not_matter(order: list[int]) -> None:
    """Records are taken in order of arrival."""
    records = _single_server(0.9, 60, 3)
    assert steady_state(records.iloc[order]) == steady_state(records)
