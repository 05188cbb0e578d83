"""More or less of the same traffic."""

from typing import Any

import pytest

from moesim.errors import ScenarioError
from moesim.planning.load import at_load, rounded
from moesim.requests import draw_requests
from moesim.scenario import Scenario, scenario_from

KINDS: dict[str, dict[str, Any]] = {
    "poisson": {"kind": "poisson", "rate_per_s": 40.0},
    "weibull": {"kind": "weibull", "rate_per_s": 40.0, "cv": 1.5},
    "on-off": {"kind": "on-off", "on_rate_per_s": 80.0, "on_s": 1.0, "off_s": 1.0},
    "diurnal": {"kind": "diurnal", "rates_per_s": [10.0, 70.0], "period_s": 10},
    "constant": {"kind": "constant", "rate_per_s": 40.0},
}


def scenario(arrivals: dict[str, Any]) -> Scenario:
    lengths = {"kind": "fixed", "tokens": 9}
    return scenario_from(
        {
            "name": "s",
            "duration_s": 100,
            "models": {"m": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "t": {
                    "model": "m",
                    "arrivals": arrivals,
                    "prompt_tokens": lengths,
                    "output_tokens": lengths,
                }
            },
            "hardware": {"device": "cpu-2core"},
            "deployment": {"kind": "dedicated"},
        }
    )


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("factor", [0.5, 2.0])
def test_so_many_times_the_requests(kind: str, factor: float) -> None:
    """About 4,000 in a hundred seconds, times the factor, whatever the process."""
    base = scenario(KINDS[kind])
    ours = [len(draw_requests(at_load(base, factor), seed)) for seed in range(4)]
    plain = [len(draw_requests(base, seed)) for seed in range(4)]
    assert sum(ours) == pytest.approx(factor * sum(plain), rel=0.15)


def test_users_become_more() -> None:
    """Three users at half the load are two, as 1.5 rounds, and never none."""
    users = scenario({"kind": "users", "count": 3, "think_s": 1})
    assert at_load(users, 0.5).tenants["t"].arrivals.count == 2
    assert at_load(users, 0.01).tenants["t"].arrivals.count == 1


def test_the_load_as_it_is_changes_nothing() -> None:
    """And the tenants stay what they were."""
    base = scenario(KINDS["poisson"])
    assert at_load(base, 1) is base


def test_users_that_round_are_said() -> None:
    """1.5 of three users are two, which is another load; a whole number is nothing to tell."""
    users = scenario({"kind": "users", "count": 3, "think_s": 1})
    (line,) = rounded(users, 0.5)
    assert line.startswith("tenants.t: 3 users x 0.5 is rounded to 2, which is load x 0.667")
    assert rounded(users, 2) == rounded(scenario(KINDS["poisson"]), 0.5) == []


def test_more_than_a_scenario_may_ask() -> None:
    """The tenant and the field are named."""
    with pytest.raises(ScenarioError, match=r"load 1000: tenants.t.arrivals: rate_per_s: 400000"):
        at_load(scenario({"kind": "poisson", "rate_per_s": 400.0}), 1000)


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf"), 1e-323, 1e308])
def test_no_such_load(factor: float) -> None:
    """One line."""
    with pytest.raises(ScenarioError, match=r"must be a number from 0\.001 to 1000"):
        at_load(scenario(KINDS["poisson"]), factor)
