"""Rates that change: their means, their burstiness in closed form, and their quiet times."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moesim.traffic.modulated import Diurnal, OnOff

BURSTS = OnOff(kind="on-off", on_rate_per_s=40, on_s=0.5, off_s=1.5)
DAY = Diurnal(kind="diurnal", rates_per_s=(0, 20, 60, 20), period_s=40)


def _within(values: list[float], expected: float) -> bool:
    """Tell whether draws have a mean within four standard errors of what is expected."""
    return abs(np.mean(values) - expected) < 4 * np.std(values, ddof=1) / np.sqrt(len(values))


def test_on_off_comes_at_its_mean_rate_from_the_first_second_on() -> None:
    """On for a quarter of the time at 40 a second: ten a second, in one second as in a hundred."""
    assert BURSTS.rate_per_s == 10
    for duration_s in (1.0, 100.0):
        draws = (BURSTS.times_s(duration_s, np.random.default_rng(seed)) for seed in range(400))
        assert _within([len(times) / duration_s for times in draws], 10)


def test_on_off_gaps_vary_as_an_interrupted_poisson_process() -> None:
    """Its gaps are hyperexponential: cv^2 = 1 + 2 r a / (a + b)^2 (Kuczura, 1973).

    r is the rate while on, 40; a and b the rates of switching off and on, 2 and 2/3: cv^2 = 23.5.
    """
    draws = [BURSTS.times_s(4000.0, np.random.default_rng(seed)) for seed in range(40)]
    off, on = 1 / 0.5, 1 / 1.5
    expected = 1 + 2 * 40 * off / (off + on) ** 2
    assert expected == pytest.approx(23.5)
    assert _within([np.var(gaps) / np.mean(gaps) ** 2 for gaps in map(np.diff, draws)], expected)


def test_on_off_is_on_for_its_share_of_the_time() -> None:
    """At 2000 a second, a tenth of a second without an arrival is off: here half of them."""
    process = OnOff(kind="on-off", on_rate_per_s=2000, on_s=20, off_s=20)
    shares = []
    for seed in range(40):
        times = process.times_s(400.0, np.random.default_rng(seed))
        shares.append(float(np.mean(np.histogram(times, bins=4000, range=(0, 400))[0] > 0)))
    # A period's two ends fall within a tenth: 0.05 s of 20 s more seems on.
    assert abs(np.mean(shares) - 0.5) < 4 * np.std(shares, ddof=1) / np.sqrt(40) + 0.0025


def test_a_day_has_the_rate_of_each_of_its_hours() -> None:
    """Poisson counts of each step over 250 days, each within four standard errors."""
    times = DAY.times_s(250 * 40.0, np.random.default_rng(3))
    counts = np.histogram(times % 40, bins=4, range=(0, 40))[0]
    expected = np.array([0, 20, 60, 20]) * 10 * 250
    assert counts[0] == 0
    assert np.all(np.abs(counts - expected) <= 4 * np.sqrt(expected))
    assert DAY.rate_per_s == 25


def test_a_day_may_begin_at_any_hour() -> None:
    """Begun in the third step, arrivals come at once; the silent step is then the third here."""
    later = DAY.model_copy(update={"start_s": 20.0})
    times = later.times_s(40.0, np.random.default_rng(0))
    assert times[0] < 0.5
    assert not np.any((times >= 20) & (times < 30))


@pytest.mark.parametrize("cv", [0.5, 1.0, 3.0])
def test_within_a_steady_day_the_gaps_vary_as_asked(cv: float) -> None:
    """One rate all day is a gamma renewal process."""
    steady = Diurnal(kind="diurnal", rates_per_s=(20, 20), period_s=10, cv=cv)
    draws = [np.diff(steady.times_s(2000.0, np.random.default_rng(seed))) for seed in range(20)]
    found = [np.std(gaps) / np.mean(gaps) for gaps in draws]
    assert abs(np.mean(found) - cv) < 4 * np.std(found, ddof=1) / np.sqrt(20) + 0.002 * cv


def test_a_silent_window_has_no_arrivals() -> None:
    """Ten seconds of the step without requests."""
    assert DAY.times_s(10.0, np.random.default_rng(0)).size == 0


@pytest.mark.parametrize("rates", [(), (0, 0), (-1, 2), (float("nan"), 1), (float("inf"),)])
def test_rates_that_are_none_are_refused(rates: tuple[float, ...]) -> None:
    """At least one, none negative, not all zero, all finite."""
    with pytest.raises(ValidationError, match="rates_per_s"):
        Diurnal(kind="diurnal", rates_per_s=rates)


@given(
    rates=st.lists(st.sampled_from([0.0, 0.3, 5.0, 80.0]), min_size=1, max_size=6),
    start_s=st.floats(0, 100),
    period_s=st.floats(1, 50),
    duration_s=st.floats(1e-3, 60),
    cv=st.floats(0.1, 10),
    seed=st.integers(0, 2**32),
)
def test_times_of_a_day_rise_inside_the_window_and_its_busy_steps(
    rates: list[float], start_s: float, period_s: float, duration_s: float, cv: float, seed: int
) -> None:
    """Sorted, in `[0, duration_s)`, and never in a step whose rate is zero."""
    if not any(rates):
        rates = [*rates, 1.0]
    day = Diurnal(kind="diurnal", rates_per_s=tuple(rates), start_s=start_s, period_s=period_s, cv=cv)  # fmt: skip  # noqa: E501
    times = day.times_s(duration_s, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))
    step = (times + start_s) * len(rates) / period_s
    inside = np.abs(step - np.rint(step)) > 1e-6  # rounding may shift an arrival at an edge
    assert all(rates[int(place) % len(rates)] > 0 for place in step[inside])


@given(
    on_s=st.floats(1e-2, 100),
    off_s=st.floats(1e-2, 100),
    duration_s=st.floats(1e-3, 60),
    seed=st.integers(0, 2**32),
)
def test_on_off_times_rise_inside_the_window(
    on_s: float, off_s: float, duration_s: float, seed: int
) -> None:
    """Sorted and in `[0, duration_s)`."""
    process = OnOff(kind="on-off", on_rate_per_s=30, on_s=on_s, off_s=off_s)
    times = process.times_s(duration_s, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))
