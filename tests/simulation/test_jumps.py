"""Jumping equals stepping: closed forms for iterations change nothing but the time a run takes."""

from collections.abc import Callable
from math import pi
from typing import Any

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.scenario import Scenario, load_scenario, scenario_from
from moesim.simulation.run import simulate

Content = Callable[[], dict[str, Any]]

# Durations are whole tenths of milliseconds, so that with pi no arrival falls on the end of an
# iteration, where rounding would decide whether it makes the next one.
arrivals = st.integers(0, 60).map(lambda number: number * pi / 100)


def _same(scenario: Scenario, seed: int = 0) -> pd.DataFrame:
    """Demand the same records, use of replicas and basis both ways; return the records."""
    jumped, stepped = (simulate(scenario, seed=seed, stepwise=way) for way in (False, True))
    pd.testing.assert_frame_equal(
        jumped.records, stepped.records, rtol=1e-9, atol=1e-9, check_dtype=False
    )
    pd.testing.assert_frame_equal(jumped.replicas, stepped.replicas, rtol=1e-9, check_dtype=False)
    assert (jumped.basis, jumped.warnings) == (stepped.basis, stepped.warnings)
    return jumped.records


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
