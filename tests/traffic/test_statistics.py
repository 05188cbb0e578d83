"""What a workload is like, against cases counted by hand and processes known in closed form."""

import json

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.traffic.arrivals import Gamma, Poisson
from moesim.traffic.modulated import OnOff
from moesim.traffic.statistics import (
    BINS,
    arrival_facts,
    describe,
    describe_clients,
    describe_lengths,
    describe_rates,
    dispersion,
    length_facts,
    prefix_facts,
    rates_over_time,
)
from moesim.traffic.traces import Trace


def _frame(*arrivals: float, **columns: list[object]) -> pd.DataFrame:
    lengths = {"prompt_tokens": [8] * len(arrivals), "output_tokens": [2] * len(arrivals)}
    return pd.DataFrame({"arrival_s": [float(x) for x in arrivals], **lengths, **columns})


def test_gaps_of_one_and_three_seconds() -> None:
    """Mean 2 s, standard deviation 1 s: half a request a second, cv 1/2."""
    facts = arrival_facts(np.array([0.0, 1, 4, 5, 8]))
    assert facts["span_s"] == 8
    assert facts["rate_per_s"] == 0.5
    assert facts["cv"] == 0.5


@pytest.mark.parametrize("times", [[3.0], [3.0, 3.0], [1.0, 1.0, 1.0]])
def test_what_a_single_instant_does_not_have_is_none(times: list[float]) -> None:
    """No rate, no burstiness, no peak; nothing is divided by zero."""
    facts = arrival_facts(np.array(times))
    assert facts["span_s"] == 0
    assert (facts["rate_per_s"], facts["cv"], facts["peak"]["rate_per_s"]) == (None, None, None)


def test_the_busiest_part_of_the_span() -> None:
    """One a second, and seventy more in the second half second of the last."""
    times = np.sort(np.concatenate([np.arange(73.0), np.linspace(71.3, 71.9, 70)]))
    facts = arrival_facts(times)
    assert facts["peak"]["window_s"] == 1
    assert facts["peak"]["start_s"] == 71
    assert facts["peak"]["rate_per_s"] == 72


@given(st.lists(st.floats(0, 1e6), min_size=2, max_size=200))
def test_no_request_is_lost_from_the_course(times: list[float]) -> None:
    """The rates times the width of a step are all requests."""
    rates, width_s = rates_over_time(np.sort(times), BINS)
    if rates.size:
        assert rates.sum() * width_s == pytest.approx(len(times))


def test_poisson_arrivals_have_a_dispersion_of_one() -> None:
    """The index of dispersion of n windows has a standard error of sqrt(2 / n)."""
    times = Poisson(kind="poisson", rate_per_s=5).times_s(20_000.0, np.random.default_rng(0))
    for width_s, found in dispersion(times).items():
        assert abs(found - 1) < 4 * np.sqrt(2 * float(width_s) / 20_000)


def test_gamma_arrivals_have_a_dispersion_of_cv_squared() -> None:
    """A renewal process's counts over long windows vary as cv^2."""
    times = Gamma(kind="gamma", rate_per_s=20, cv=2).times_s(100_000.0, np.random.default_rng(0))
    assert abs(dispersion(times)["100"] - 4) < 4 * 4 * np.sqrt(2 / 1000)


def test_a_rate_that_changes_shows_in_wide_windows() -> None:
    """An on-off process is bursty over ten seconds, and more so over a hundred."""
    process = OnOff(kind="on-off", on_rate_per_s=10, on_s=60, off_s=60)
    found = dispersion(process.times_s(50_000.0, np.random.default_rng(0)))
    assert 1 < found["1"] < found["10"] < found["100"]


def test_dispersion_needs_twenty_windows() -> None:
    """A span of 25 s has twenty of 1 s and no more; one of 1e30 s has too many."""
    assert list(dispersion(np.linspace(0, 25, 100))) == ["1"]
    assert dispersion(np.array([0.0, 1e30])) == {}


def test_quantiles_are_lengths_that_occur() -> None:
    """Of 0 to 99 the median is 49 and p99 is 98; one of them is zero."""
    facts = length_facts(pd.Series(range(100)))
    assert (facts["min"], facts["p1"], facts["p50"], facts["p99"], facts["max"]) == (0, 0, 49, 98, 99)  # fmt: skip  # noqa: E501
    assert facts["mean"] == 49.5
    assert facts["zeros"] == 1


def test_blocks_come_again_only_behind_their_beginning() -> None:
    """Of 1 2 3, then 1 2 4, then 9 3: two of eight blocks were there, 3 behind 9 was not."""
    facts = prefix_facts([(1, 2, 3), (1, 2, 4), (9, 3), ()], block=16)
    assert facts == {
        "block_tokens": 16,
        "blocks": 8,
        "distinct_blocks": 5,
        "reused_share": 0.25,
        "requests_with_reuse": 1,
    }


def test_a_trace_in_numbers() -> None:
    """Tenants come busiest first; a frame without them has none; all of it is plain JSON."""
    frame = _frame(0, 1, 2, 5, tenant=["b", "a", "a", "a"], prefix=[(1,), (1,), (2,), ()])
    facts = describe(Trace(frame=frame, format="bailian", prefix_block=16, skipped=3))
    assert json.loads(json.dumps(facts)) == facts
    assert (facts["requests"], facts["skipped_rows"]) == (4, 3)
    assert list(facts["tenants"]) == ["a", "b"]
    assert facts["tenants"]["a"]["share"] == 0.75
    assert facts["tenants"]["a"]["rate_per_s"] == 0.6
    assert facts["tenants"]["b"]["cv"] is None
    assert facts["prefix"]["reused_share"] == pytest.approx(1 / 3)
    bare = describe(Trace(frame=_frame(0, 1), format="plain"))
    assert (bare["tenants"], bare["prefix"]) == ({}, None)


CLIENTS = pd.DataFrame(
    {
        "client": ["a", "a", "b"],
        "start_s": [0.0, 600.0, 600.0],
        "end_s": [600.0, 1200.0, 1200.0],
        "rate_per_s": [1.0, 3.0, 2.0],
        "cv": [1.0, 2.0, 5.0],
        "family": ["Gamma", "Weibull", "Gamma"],
    }
)


def test_clients_in_numbers() -> None:
    """Client b is silent in the first of two windows: one request a second on average."""
    facts = describe_clients(CLIENTS)
    assert json.loads(json.dumps(facts)) == facts
    assert facts["rate_per_s"] == 3
    assert facts["course"]["rates_per_s"] == [1, 5]
    assert facts["course"]["window_s"] == 600
    assert facts["clients"]["a"]["rate_per_s"] == 2
    assert facts["clients"]["a"]["median_cv"] == 1.5
    assert facts["clients"]["a"]["weibull_share"] == 0.5
    assert facts["clients"]["b"]["active_share"] == 0.5
    assert facts["clients"]["b"]["share"] == pytest.approx(1 / 3)


def test_client_lengths_and_rates_in_numbers() -> None:
    """Windows count alike; shares are of the sum."""
    lengths = pd.DataFrame(
        {
            "client": ["a", "a"],
            "start_s": [0.0, 1.0],
            "prompt_tokens": [(1, 3), (5, 7)],
            "output_tokens": [(1, 1), (1, 1)],
        }
    )
    facts = describe_lengths(lengths)["clients"]["a"]
    assert facts["prompt_tokens"]["mean"] == 4
    assert facts["prompt_tokens"]["p50"] == 3
    assert facts["windows"] == 2
    rates = describe_rates(pd.DataFrame({"client": ["a", "b"], "rate_per_s": [3.0, 1.0]}))
    assert rates["clients"]["b"] == {"rate_per_s": 1, "share": 0.25}
