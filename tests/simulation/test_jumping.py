"""Jumping and running ahead equal stepping through every iteration."""

from typing import Any

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st

from moesim.scenario import Scenario, scenario_from
from moesim.simulation.course import iterations_until
from moesim.simulation.run import Result, simulate

TIMES = ["scheduled_s", "first_token_s", "finish_s"]
COUNTS = ["iterations", "batched_tokens", "peak_running", "kv_blocks"]


def lengths(mean: float, cv: float, longest: int) -> dict[str, Any]:
    return {"kind": "lognormal", "mean": mean, "cv": cv, "max": longest}


def scenario_of(
    rate_per_s: float,
    cv: float,
    prompt: dict[str, Any],
    output: dict[str, Any],
    deployment: dict[str, Any],
) -> Scenario:
    return scenario_from(
        {
            "name": "random",
            "duration_s": 6,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "all": {
                    "model": "demo",
                    "arrivals": {"kind": "gamma", "rate_per_s": rate_per_s, "cv": cv},
                    "prompt_tokens": prompt,
                    "output_tokens": output,
                }
            },
            "hardware": {"device": "cpu-2core", "count": 3},
            "deployment": {"kind": "dedicated", **deployment},
        }
    )


def any_lengths(mean: float, longest: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lengths, st.floats(1, mean), st.floats(0.2, 2), st.integers(1, longest))


deployments = st.fixed_dictionaries(
    {
        "replicas": st.integers(1, 3),
        "kv_blocks": st.sampled_from([3, 10, 20, 60, 4000]),
        "scheduler": st.fixed_dictionaries(
            {
                "max_num_seqs": st.sampled_from([1, 2, 8, 64]),
                "max_batched_tokens": st.sampled_from([1, 3, 32, 100, 512]),
            }
        ),
    }
)


def assert_same(jumped: Result, stepped: Result) -> None:
    """Demand the same table: times to 1e-9 s, everything else exactly."""
    np.testing.assert_allclose(
        jumped.records[TIMES], stepped.records[TIMES], rtol=0, atol=1e-9, equal_nan=True
    )
    rest = [name for name in jumped.records if name not in TIMES]
    assert jumped.records[rest].equals(stepped.records[rest])
    assert jumped.replicas[COUNTS].equals(stepped.replicas[COUNTS])
    np.testing.assert_allclose(jumped.replicas["busy_s"], stepped.replicas["busy_s"], rtol=1e-9)
    assert jumped.basis == stepped.basis


PRESSED = {"kv_blocks": 20, "scheduler": {"max_num_seqs": 8, "max_batched_tokens": 4}}


@settings(max_examples=60)
@given(
    st.floats(0.5, 20),
    st.floats(0.3, 3),
    any_lengths(200, 900),
    any_lengths(60, 200),
    deployments,
    st.integers(0, 99),
)
@example(12.0, 2.0, lengths(40, 0.6, 150), lengths(30, 0.6, 90), PRESSED, 0)
def test_jumping_equals_stepping(
    rate_per_s: float,
    cv: float,
    prompt: dict[str, Any],
    output: dict[str, Any],
    deployment: dict[str, Any],
    seed: int,
) -> None:
    """Any load, lengths, cache, budget and replicas: the same records either way."""
    scenario = scenario_of(rate_per_s, cv, prompt, output, deployment)
    assert_same(simulate(scenario, seed=seed), simulate(scenario, seed=seed, stepwise=True))


def test_pressure_is_among_the_examples() -> None:
    """The example above does preempt, so that the test above covers it."""
    scenario = scenario_of(12.0, 2.0, lengths(40, 0.6, 150), lengths(30, 0.6, 90), PRESSED)
    assert simulate(scenario).records["preemptions"].sum() > 0


@given(st.floats(1e-4, 1), st.floats(0, 1e-3), st.integers(1, 500), st.floats(1e-5, 50))
def test_iterations_until_by_counting(
    base_s: float, growth_s: float, most: int, left_s: float
) -> None:
    """The closed form finds the iteration that counting up finds."""
    passed_s, counted = 0.0, 0
    while counted < most and (counted == 0 or passed_s < left_s * (1 - 1e-12)):
        passed_s += base_s + growth_s * counted
        counted += 1
    assert abs(iterations_until(left_s, base_s, growth_s, most) - counted) <= (
        1 if abs(passed_s - left_s) < 1e-9 * left_s else 0
    )
