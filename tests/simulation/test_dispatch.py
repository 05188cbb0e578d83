"""Dispatchers: whom they choose, and what that does to waiting."""

from typing import Any

import numpy as np
import pytest

from moesim.requests import Request
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.dispatch import (
    DISPATCHERS,
    TOO_BUSY,
    LeastLoaded,
    PowerOfTwo,
    PrefixAffinity,
    RoundRobin,
)
from moesim.simulation.run import simulate


def request(*prefix: int) -> Request:
    """Return a request whose prompt begins with some blocks."""
    return Request(
        request_id=0,
        tenant="t",
        model="m",
        arrival_s=0.0,
        prompt_tokens=1,
        output_tokens=1,
        prefix=prefix,
    )


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_round_robin_looks_at_nothing(rng: np.random.Generator) -> None:
    """Three replicas in turn, however loaded."""
    turns = RoundRobin(rng)
    assert [turns.choose(request(), [9, 0, 5]) for _ in range(4)] == [0, 1, 2, 0]


def test_least_loaded_takes_the_first_of_equals(rng: np.random.Generator) -> None:
    """The fewest, and of two with as many the first."""
    chooser = LeastLoaded(rng)
    assert chooser.choose(request(), [3, 1, 2]) == 1
    assert chooser.choose(request(), [2, 1, 1]) == 1


def test_power_of_two_never_takes_the_most_loaded(rng: np.random.Generator) -> None:
    """Whichever two are drawn, the busiest of three loses; either other one is chosen at times."""
    chooser = PowerOfTwo(rng)
    chosen = {chooser.choose(request(), [1, 5, 2]) for _ in range(50)}
    assert chosen == {0, 2}
    assert chooser.choose(request(), [7]) == 0


def test_a_prompt_returns_to_where_its_beginning_is(rng: np.random.Generator) -> None:
    """The first goes to the least loaded; the next like it follows until that is too busy."""
    chooser = PrefixAffinity(rng)
    assert chooser.choose(request(7, 8), [1, 0]) == 1
    assert chooser.choose(request(7, 8), [0, TOO_BUSY - 1]) == 1
    assert chooser.choose(request(), [0, 3]) == 0
    assert chooser.choose(request(7, 8), [0, TOO_BUSY]) == 0
    assert chooser.choose(request(7, 8), [1, 0]) == 0, "it has moved"


def scenario(dispatcher: str, kv_blocks: int = 400, **scheduler: Any) -> Scenario:
    """Return four busy replicas and requests of very different lengths."""
    return scenario_from(
        {
            "name": "four",
            "duration_s": 120,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                name: {
                    "model": "demo",
                    "arrivals": {"kind": "poisson", "rate_per_s": 8 / 12},
                    "prompt_tokens": {"kind": "fixed", "tokens": 200},
                    "output_tokens": {"kind": "lognormal", "mean": 60, "cv": 1.5, "max": 400},
                    "shared_prefix_tokens": 160,
                }
                for name in "abcdefghijkl"
            },
            "hardware": {"device": "cpu-2core", "count": 4},
            "deployment": {
                "kind": "dedicated",
                "replicas": 4,
                "dispatcher": dispatcher,
                "kv_blocks": kv_blocks,
                "scheduler": {"max_num_seqs": 2, **scheduler},
            },
        }
    )


def test_knowing_the_loads_shortens_the_wait() -> None:
    """Join the shortest queue beats the better of two, which beats taking turns (same requests)."""
    waits = {}
    for name in ("least_loaded", "power_of_two", "round_robin"):
        results = [simulate(scenario(name), seed=seed).records for seed in range(6)]
        waits[name] = np.mean([(r["scheduled_s"] - r["arrival_s"]).mean() for r in results])
    assert waits["least_loaded"] < 0.9 * waits["power_of_two"]
    assert waits["power_of_two"] < 0.9 * waits["round_robin"]


def test_affinity_finds_more_prefixes() -> None:
    """Twelve system prompts over four replicas whose caches hold a few of them."""
    found = {
        name: simulate(scenario(name, 70, prefix_caching=True)).records["cached_tokens"].sum()
        for name in DISPATCHERS
    }
    assert found["prefix_affinity"] == max(found.values())
    assert found["prefix_affinity"] > 1.1 * found["round_robin"]


@pytest.mark.parametrize("name", DISPATCHERS)
def test_every_replica_has_work(name: str) -> None:
    """And every request is served by exactly one."""
    records = simulate(scenario(name)).records
    assert records["replica"].nunique() == 4
    assert records["request_id"].is_unique
    assert records["finish_s"].notna().all()
