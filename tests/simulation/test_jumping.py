"""Jumping equals stepping: closed forms for iterations change nothing but the time a run takes."""

from collections.abc import Callable
from contextlib import suppress
from math import pi
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.cost.profile import Profile, load_profile
from moesim.errors import ScenarioError
from moesim.scenario import Scenario, load_scenario, scenario_from
from moesim.serving.iterations import Iterations
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS
from moesim.serving.records import COMPLETED
from moesim.simulation.course import iterations_until
from moesim.simulation.dispatch import DISPATCHERS
from moesim.simulation.run import Result, simulate

Content = Callable[[], dict[str, Any]]

# Durations are whole tenths of milliseconds, so that with pi no arrival falls on the end of an
# iteration, where rounding would decide whether it makes the next one.
arrivals = st.integers(0, 60).map(lambda number: number * pi / 100)


def _same(
    scenario: Scenario, seed: int = 0, profiles: dict[str, Profile] | None = None
) -> pd.DataFrame:
    """Demand the same records, use of replicas and basis both ways; return the records."""
    jumped, stepped = (
        simulate(scenario, profiles, seed, stepwise=stepwise) for stepwise in (False, True)
    )
    # An absolute bound: times of a long run must not be allowed more.
    pd.testing.assert_frame_equal(jumped.records, stepped.records, rtol=0, atol=1e-9)
    for replica, log in jumped.logs.items():
        ours, theirs = _gaps(log), _gaps(stepped.logs[replica])
        assert ours.size == theirs.size
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-9)
        moved, copied = (np.array(way.copies[replica]) for way in (jumped, stepped))
        np.testing.assert_allclose(moved, copied, rtol=0, atol=1e-9)
    _accounted(jumped)
    pd.testing.assert_frame_equal(jumped.replicas, stepped.replicas, rtol=1e-9, check_dtype=False)
    assert (jumped.basis, jumped.warnings) == (stepped.basis, stepped.warnings)
    return jumped.records


def _gaps(log: Iterations) -> NDArray[np.float64]:
    """Expand a log into the gaps between tokens, in order of size."""
    durations = [
        np.repeat(first + growth * np.arange(steps), count)
        for first, growth, steps, count in zip(
            log.first_s, log.growth_s, log.iterations, log.sequences, strict=True
        )
    ]
    late = log.late.until_s - log.late.since_s
    return np.sort(np.concatenate([*durations, late]))


def _accounted(result: Result) -> None:
    """Every token after a request's first ends a gap, and a request's gaps are its decode time."""
    records = result.records[result.records["outcome"] == COMPLETED]
    gaps = [_gaps(log) for log in result.logs.values()]
    assert sum(map(len, gaps)) == (records["output_tokens"] - 1).sum()
    decoding_s = (records["finish_s"] - records["first_token_s"]).sum()
    assert sum(map(np.sum, gaps)) == pytest.approx(decoding_s, abs=1e-6)


@settings(max_examples=150)
@given(
    rows=st.lists(
        st.tuples(arrivals, st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=15
    ),
    seqs=st.integers(1, 6),
    budget=st.integers(1, 20),
    blocks=st.integers(1, 16),
)
def test_any_small_workload(
    replay: Callable[..., Scenario],
    rows: list[tuple[float, int, int]],
    seqs: int,
    budget: int,
    blocks: int,
) -> None:
    """Refusals, chunks, full batches and preemptions, in any combination."""
    scheduler = {"max_num_seqs": seqs, "max_batched_tokens": budget}
    _same(replay(sorted(rows), kv_blocks=blocks, scheduler=scheduler))


@pytest.mark.parametrize("blocks", [16, 40, 400])
@pytest.mark.parametrize("rate_per_s", [1.0, 10.0, 100.0])
def test_long_runs(tiny_scenario: Content, rate_per_s: float, blocks: int) -> None:
    """Idle, busy and overloaded, with a cache that is always, sometimes or never too small."""
    content = tiny_scenario()
    content["tenants"]["chat"]["arrivals"]["rate_per_s"] = rate_per_s
    content["tenants"]["chat"]["output_tokens"] = {"kind": "lognormal", "mean": 15, "cv": 1}
    content["deployment"]["kv_blocks"] = blocks
    records = _same(scenario_from(content), seed=1)
    assert len(records) > 5


@pytest.mark.parametrize("replicas", [2, 3])
def test_several_replicas(tiny_scenario: Content, replicas: int) -> None:
    """Each runs ahead on its own."""
    content = tiny_scenario()
    content["hardware"]["count"] = content["deployment"]["replicas"] = replicas
    assert _same(scenario_from(content))["replica"].nunique() == replicas


@pytest.mark.parametrize("name", ["quickstart", "demo"])
def test_a_shipped_scenario(name: str) -> None:
    """With the measured profile, whose cells lie on no straight line."""
    _same(load_scenario(name))


def lengths(mean: float, cv: float, longest: int) -> dict[str, Any]:
    return {"kind": "lognormal", "mean": mean, "cv": cv, "max": longest}


def tenants_of(
    rate_per_s: float, cv: float, prompt: dict[str, Any], output: dict[str, Any]
) -> dict[str, Any]:
    """Return a bursty tenant and a steady one, of different rank."""
    kinds = (
        {"kind": "gamma", "rate_per_s": rate_per_s, "cv": cv},
        {"kind": "weibull", "rate_per_s": rate_per_s, "cv": cv},
        {"kind": "on-off", "on_rate_per_s": 2 * rate_per_s, "on_s": 0.5, "off_s": 0.5},
        {"kind": "diurnal", "rates_per_s": [rate_per_s, 0, rate_per_s], "period_s": 2, "cv": cv},
    )
    arrivals = kinds[int(1000 * rate_per_s) % len(kinds)]
    return {
        "batch": {
            "model": "demo",
            "arrivals": arrivals,
            "prompt_tokens": prompt,
            "output_tokens": output,
            "priority": 2,
            "shared_prefix_tokens": 40,
        },
        "chat": {
            "model": "demo",
            "arrivals": {"kind": "constant", "rate_per_s": max(1.0, rate_per_s / 3)},
            "prompt_tokens": prompt,
            "output_tokens": output,
            "weight": 3,
            "shared_prefix_tokens": 100,
        },
    }


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
            "tenants": tenants_of(rate_per_s, cv, prompt, output),
            "hardware": {"device": "cpu-2core", "count": 3},
            "deployment": {"kind": "dedicated", **deployment},
        }
    )


def any_lengths(mean: float, longest: int) -> st.SearchStrategy[dict[str, Any]]:
    return st.builds(lengths, st.floats(1, mean), st.floats(0.2, 2), st.integers(1, longest))


def deployments(*policies: str) -> st.SearchStrategy[dict[str, Any]]:
    """Any deployment whose scheduler is one of some policies, and what goes with it."""
    how = st.sampled_from([{}, {"prefix_caching": True}])
    if all(POLICIES[policy].preempts for policy in policies):
        swap = st.sampled_from([{"swap_gib": 0.004}, {"swap_gib": 1.0}])
        how |= swap.map(lambda room: {"preemption": "swap", "swap_gb_per_s": 1.0, **room})
    scheduler = st.fixed_dictionaries(
        {
            "policy": st.sampled_from(policies),
            "order": st.sampled_from(ORDERS),
            "max_num_seqs": st.sampled_from([1, 2, 8, 64]),
            "max_batched_tokens": st.sampled_from([1, 3, 32, 100, 512]),
        }
    )
    return st.fixed_dictionaries(
        {
            "replicas": st.integers(1, 3),
            "dispatcher": st.sampled_from(sorted(DISPATCHERS)),
            "kv_blocks": st.sampled_from([3, 10, 20, 60, 4000]),
            "scheduler": st.builds(lambda a, b: a | b, scheduler, how),
        }
    )


PRESSED = {"kv_blocks": 12, "scheduler": {"max_num_seqs": 8, "max_batched_tokens": 4}}


PREEMPTING = [name for name, policy in POLICIES.items() if policy.preempts]
PROMISING = [name for name, policy in POLICIES.items() if not policy.preempts]


@settings(max_examples=120)
@given(
    st.floats(0.5, 20),
    st.floats(0.3, 3),
    any_lengths(200, 900),
    any_lengths(60, 200),
    deployments(*PREEMPTING) | deployments(*PROMISING),
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
    """Any policy, load, lengths, cache, budget and replicas: the same records either way."""
    scenario = scenario_of(rate_per_s, cv, prompt, output, deployment)
    _same(scenario, seed)


def test_pressure_is_among_the_examples() -> None:
    """The example above does preempt, so that the test above covers it."""
    scenario = scenario_of(12.0, 2.0, lengths(40, 0.6, 150), lengths(30, 0.6, 90), PRESSED)
    assert simulate(scenario).records["preemptions"].sum() > 0


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("extra", [{}, {"prefix_caching": True}], ids=["plain", "prefixes"])
def test_every_policy_under_load(policy: str, order: str, extra: dict[str, Any]) -> None:
    """A busy minute with little memory, so that each policy's own rules matter."""
    scheduler = {"policy": policy, "order": order, "max_num_seqs": 12, **extra}
    deployment = {"kv_blocks": 60, "scheduler": scheduler}
    scenario = scenario_of(15.0, 2.0, lengths(80, 1.0, 300), lengths(40, 0.8, 150), deployment)
    records = _same(scenario)
    assert bool(records["preemptions"].sum()) == POLICIES[policy].preempts
    assert bool(records["cached_tokens"].sum()) == bool(extra)


@pytest.mark.parametrize("blocks", [60, 4000])
def test_captured_graphs(blocks: int) -> None:
    """Decodes padded to the next captured size, in sums and under pressure."""
    profile = load_profile("demo-cpu").model_copy(update={"decode_graphs": (1, 2, 4, 8)})
    scenario = scenario_of(
        15.0, 2.0, lengths(80, 1.0, 300), lengths(40, 0.8, 150), {"kv_blocks": blocks}
    )
    padded = _same(scenario, profiles={"demo": profile})
    assert padded["finish_s"].max() > _same(scenario)["finish_s"].max()


@pytest.mark.parametrize("policy", PREEMPTING)
@pytest.mark.parametrize("swap_gib", [0.0005, 1.0])
def test_swapping(policy: str, swap_gib: float) -> None:
    """Preempted blocks go to host memory and back; where that is full, they are computed again."""
    swap = {"preemption": "swap", "swap_gib": swap_gib, "swap_gb_per_s": 2.0}
    deployment = {"kv_blocks": 60, "scheduler": {"policy": policy, "max_num_seqs": 12, **swap}}
    scenario = scenario_of(15.0, 2.0, lengths(80, 1.0, 300), lengths(40, 0.8, 150), deployment)
    assert _same(scenario)["preemptions"].sum() > 0


@settings(max_examples=40)
@given(
    st.integers(1, 30),
    st.floats(0.01, 1),  # at 0 replicas fall into step, and rounding decides who is first
    st.sampled_from([0.5, 1.0]),
    st.booleans(),
    deployments(*PREEMPTING) | deployments(*PROMISING),
    st.integers(0, 99),
)
def test_users_who_wait_for_their_answers(
    users: int,
    think_s: float,
    think_cv: float,
    beside: bool,
    deployment: dict[str, Any],
    seed: int,
) -> None:
    """In a closed loop, alone or beside open traffic, through every policy."""
    scenario = scenario_of(4.0, 1.0, lengths(40, 0.6, 150), lengths(30, 0.6, 90), deployment)
    content = scenario.to_content()
    arrivals = {"kind": "users", "count": users, "think_s": think_s, "think_cv": think_cv}
    content["tenants"]["chat"]["arrivals"] = arrivals
    if not beside:
        del content["tenants"]["batch"]
    content["duration_s"] = 3
    with suppress(ScenarioError):  # where everybody thinks for longer than the scenario lasts
        _same(scenario_from(content), seed)


@pytest.mark.parametrize("policy", POLICIES)
def test_users_who_do_not_think(policy: str) -> None:
    """Whose next request arrives at the very end of an iteration, and is in time for the next."""
    deployment = {"kv_blocks": 60, "scheduler": {"policy": policy, "max_num_seqs": 4}}
    scenario = scenario_of(4.0, 1.0, lengths(40, 0.6, 150), lengths(30, 0.6, 90), deployment)
    content = scenario.to_content()
    content["tenants"]["chat"]["arrivals"] = {"kind": "users", "count": 7, "think_s": 0}
    assert (_same(scenario_from(content))["tenant"] == "chat").sum() > 7


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
