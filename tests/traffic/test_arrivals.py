"""Arrival processes: their rate, their burstiness, their window."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.traffic.arrivals import Constant, Gamma, Poisson, Weibull, weibull_shape

PROCESSES = [
    Poisson(kind="poisson", rate_per_s=20),
    Gamma(kind="gamma", rate_per_s=20, cv=2.5),
    Gamma(kind="gamma", rate_per_s=20, cv=0.4),
    Weibull(kind="weibull", rate_per_s=20, cv=2.5),
    Weibull(kind="weibull", rate_per_s=20, cv=0.4),
]

Renewal = Poisson | Gamma | Weibull


def _cv(process: Renewal) -> float:
    return 1.0 if isinstance(process, Poisson) else process.cv


@pytest.mark.parametrize("process", PROCESSES)
def test_the_mean_rate_is_the_one_asked_for(process: Renewal) -> None:
    """A renewal process makes rate x time arrivals, with a variance of cv^2 times as many."""
    duration_s = 1000.0
    expected = process.rate_per_s * duration_s
    counts = [len(process.times_s(duration_s, np.random.default_rng(seed))) for seed in range(20)]
    standard_error = _cv(process) * np.sqrt(expected / len(counts))
    # A renewal process started by an ordinary gap is (cv^2 - 1) / 2 arrivals ahead of its rate.
    ahead = (_cv(process) ** 2 - 1) / 2
    assert abs(np.mean(counts) - expected - ahead) < 4 * standard_error


@pytest.mark.parametrize("process", PROCESSES)
def test_the_gaps_vary_as_asked(process: Renewal) -> None:
    """The gaps' standard deviation over their mean is cv, to four standard errors of 20 draws."""
    draws = [process.times_s(2000.0, np.random.default_rng(seed)) for seed in range(20)]
    found = [np.std(gaps) / np.mean(gaps) for gaps in map(np.diff, draws)]
    standard_error = np.std(found, ddof=1) / np.sqrt(len(found))
    assert abs(np.mean(found) - _cv(process)) < 4 * standard_error + 0.002 * _cv(process)


def test_a_gamma_of_cv_one_is_poisson() -> None:
    """Shape 1/cv^2 = 1 is the exponential: a third of the mean is passed by e^(-1/3) of gaps."""
    gaps = np.diff(
        Gamma(kind="gamma", rate_per_s=10, cv=1).times_s(4000.0, np.random.default_rng(1))
    )
    share = np.mean(gaps > 0.1 / 3)
    assert abs(share - np.exp(-1 / 3)) < 4 * np.sqrt(0.25 / len(gaps))


def test_a_weibull_of_cv_one_is_poisson() -> None:
    """Shape 1 is the exponential: half of the gaps are longer than their median, ln 2 of a mean."""
    gaps = np.diff(
        Weibull(kind="weibull", rate_per_s=10, cv=1).times_s(4000.0, np.random.default_rng(1))
    )
    share = np.mean(gaps > 0.1 * np.log(2))
    assert abs(share - 0.5) < 4 * np.sqrt(0.25 / len(gaps))


@pytest.mark.parametrize(("cv", "shape"), [(1, 1), (5**0.5, 1 / 2), (19**0.5, 1 / 3)])
def test_weibull_shapes_known_in_closed_form(cv: float, shape: float) -> None:
    """At shape 1/n the moments are factorials: (2n)! / n!^2 - 1 is 1, 5 and 19."""
    assert weibull_shape(cv) == pytest.approx(shape, rel=1e-9)


@given(cv=st.floats(0.01, 1000))
def test_a_weibull_shape_gives_back_its_cv(cv: float) -> None:
    """Var / mean^2 = Gamma(1 + 2/k) / Gamma(1 + 1/k)^2 - 1, in logarithms against overflow."""
    shape = weibull_shape(cv)
    ratio = math.lgamma(1 + 2 / shape) - 2 * math.lgamma(1 + 1 / shape)
    assert math.sqrt(math.expm1(ratio)) == pytest.approx(cv, rel=1e-6)


@pytest.mark.parametrize(
    ("process", "count", "last_s"),
    [
        (Poisson(kind="poisson", rate_per_s=2), 208, 99.11677681729813),
        (Gamma(kind="gamma", rate_per_s=2, cv=2), 161, 98.29233149062362),
    ],
)
def test_draws_are_those_of_every_release(process: Renewal, count: int, last_s: float) -> None:
    """Old reports can be made again from their seeds; compilers may differ in the last bits."""
    times = process.times_s(100.0, np.random.default_rng(5))
    assert len(times) == count
    assert times[-1] == pytest.approx(last_s, rel=1e-12)


def test_constant_arrivals_are_half_a_gap_in() -> None:
    """Four a second for a second: 1/8, 3/8, 5/8, 7/8."""
    times = Constant(kind="constant", rate_per_s=4).times_s(1.0, np.random.default_rng(0))
    assert times.tolist() == [0.125, 0.375, 0.625, 0.875]


@pytest.mark.parametrize(("duration_s", "count"), [(0.125, 0), (0.126, 1), (0.375, 1), (10, 40)])
def test_constant_arrivals_end_before_the_window_does(duration_s: float, count: int) -> None:
    """The window is half open: an arrival at its very end is outside."""
    times = Constant(kind="constant", rate_per_s=4).times_s(duration_s, np.random.default_rng(0))
    assert len(times) == count


@given(
    kind=st.sampled_from(["poisson", "gamma", "weibull", "constant"]),
    rate=st.floats(1e-3, 200),
    cv=st.floats(0.05, 10),
    duration_s=st.floats(1e-3, 20),
    seed=st.integers(0, 2**32),
)
def test_times_rise_inside_the_window(
    kind: str, rate: float, cv: float, duration_s: float, seed: int
) -> None:
    """Whatever the process, its times are sorted and in `[0, duration_s)`."""
    process = {
        "poisson": lambda: Poisson(kind="poisson", rate_per_s=rate),
        "gamma": lambda: Gamma(kind="gamma", rate_per_s=rate, cv=cv),
        "weibull": lambda: Weibull(kind="weibull", rate_per_s=rate, cv=cv),
        "constant": lambda: Constant(kind="constant", rate_per_s=rate),
    }[kind]()
    times = process.times_s(duration_s, np.random.default_rng(seed))
    assert np.all(np.diff(times) >= 0)
    assert np.all((times >= 0) & (times < duration_s))


@pytest.mark.parametrize("process", PROCESSES)
def test_a_longer_window_only_adds(process: Poisson | Gamma) -> None:
    """The same stream over a longer window begins with the same arrivals."""
    short = process.times_s(2.0, np.random.default_rng(3))
    long = process.times_s(50.0, np.random.default_rng(3))
    assert len(short) > 3
    assert long[: len(short)].tolist() == short.tolist()
    assert long[len(short)] >= 2.0


@pytest.mark.parametrize("kind", ["gamma", "weibull"])
@pytest.mark.parametrize("cv", [0.3, 2.0, 10.0])
def test_bursts_keep_the_rate_from_the_first_second(kind: str, cv: float) -> None:
    """Three a second for a minute are 180, though gaps as bursty would begin with one too many."""
    process = {"gamma": Gamma, "weibull": Weibull}[kind](kind=kind, rate_per_s=3.0, cv=cv)
    counts = [len(process.times_s(60.0, np.random.default_rng(seed))) for seed in range(3000)]
    error = np.std(counts) / np.sqrt(len(counts))
    assert abs(np.mean(counts) - 180) < 4 * error
    assert error < 0.03 * 180
