"""Caches of last used experts in whole runs: misses of requests, and every way the same ones."""

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import Result, simulate

LAYERS, EXPERTS, EACH = 32, 8, 2
POSITIONS = LAYERS * EXPERTS
PROMPT, OUTPUT = 20, 25

ONE_AT_A_TIME = {"max_num_seqs": 1, "max_batched_tokens": 64}
TURNS = ("fcfs", "longest_queue", "quantum", "drain")


def fixed(tokens: int) -> dict[str, Any]:
    return {"kind": "fixed", "tokens": tokens}


def scenario(
    deployment: dict[str, Any],
    rate_per_s: float,
    models: str = "ab",
    *,
    arrivals: str = "poisson",
    requests: int = 40,
    lengths: tuple[dict[str, Any], dict[str, Any]] = (fixed(PROMPT), fixed(OUTPUT)),
) -> Scenario:
    """Build one of Mixtral variants in 8 bit on an H200, about so many requests to each."""
    model = {"architecture": "mixtral-8x7b", "profile": "roofline", "precision": "int8"}
    return scenario_from(
        {
            "name": "shelf",
            "duration_s": requests / rate_per_s,
            "models": dict.fromkeys(models, model),
            "tenants": {
                name: {
                    "model": name,
                    "arrivals": {"kind": arrivals, "rate_per_s": rate_per_s},
                    "prompt_tokens": lengths[0],
                    "output_tokens": lengths[1],
                }
                for name in models
            },
            "hardware": {"device": "h200-sxm-141gb"},
            "deployment": {"kv_blocks": 400, **deployment},
        }
    )


def consolidated(resident: float, cache: str = "lru", **more: Any) -> dict[str, Any]:
    return {
        "kind": "consolidated",
        "ratio": 0.0,
        "swap_gb_per_s": 25,
        "experts": {"load_gb_per_s": 25, "cache": cache, "resident": resident},
        "scheduler": ONE_AT_A_TIME,
        **more,
    }


def replayed(order: Sequence[str], room: int) -> np.ndarray:
    """Return the misses of requests served one after another, of one cache for all variants."""
    rng, cache = np.random.default_rng(0), OrderedDict[tuple[str, int, int], None]()
    missed = []
    for model in order:
        count = 0
        for tokens in [PROMPT] + [1] * (OUTPUT - 1):
            for layer in range(LAYERS):
                routed = {
                    e for _ in range(tokens) for e in rng.choice(EXPERTS, EACH, replace=False)
                }
                for key in sorted(
                    ((model, layer, e) for e in routed), key=lambda k: k not in cache
                ):
                    if key in cache:
                        cache.move_to_end(key)
                        continue
                    count += 1
                    cache[key] = None
                    if len(cache) > room:
                        cache.popitem(last=False)
        missed.append(count)
    return np.array(missed)


@pytest.mark.parametrize("resident", [0.4, 0.5, 0.75])
def test_variants_miss_what_one_cache_for_all_does(resident: float) -> None:
    """Requests in the order that they were served in, after a few that warm it up."""
    result = simulate(scenario(consolidated(resident), 0.02))
    served = result.records.sort_values("scheduled_s")
    room = round(resident * 2 * POSITIONS)
    misses = replayed(served["model"].tolist(), room)
    found = served["expert_misses"].to_numpy()
    assert found[8:].mean() == pytest.approx(misses[8:].mean(), rel=0.15)


def test_a_cache_that_holds_one_variant_beats_pinned_copies() -> None:
    """With places for half of two variants' copies the last used are those of the one at work."""
    last_used, pinned = (
        simulate(scenario(consolidated(0.5, cache), 0.02)).records for cache in ("lru", "pinned")
    )
    assert 2 * last_used["expert_misses"].mean() < pinned["expert_misses"].mean()
    assert turnaround_s(last_used) < turnaround_s(pinned)


def turnaround_s(records: pd.DataFrame) -> float:
    """Return the mean [s]."""
    return float((records["finish_s"] - records["arrival_s"]).mean())


def test_a_lone_prompt_among_decodes() -> None:
    """One model with places for most of its copies: more places, fewer misses, sooner answers."""
    found = []
    for room in (128, 209, 240):
        own = {
            "kind": "offloaded",
            "experts": {"resident": room / POSITIONS, "cache": "lru", "load_gb_per_s": 25},
            "scheduler": ONE_AT_A_TIME,
        }
        records = simulate(scenario(own, 0.01, "a", requests=30)).records
        misses = replayed(["a"] * len(records), room)
        assert records["expert_misses"][5:].mean() == pytest.approx(misses[5:].mean(), rel=0.15)
        found.append(float((records["first_token_s"] - records["scheduled_s"]).mean()))
    assert found[0] > found[1] > found[2]


@pytest.mark.parametrize("turns", TURNS)
@pytest.mark.parametrize("cache", ["lru", "lru-by-layer"])
def test_jumping_misses_what_stepping_does(cache: str, turns: str) -> None:
    """Batches of several lengths, shared copies, KV blocks that run out."""
    lengths = (
        {"kind": "lognormal", "mean": 40.0, "cv": 1.0, "max": 200},
        {"kind": "lognormal", "mean": 30.0, "cv": 1.0, "max": 200},
    )
    shared = consolidated(
        0.6,
        cache,
        ratio=0.3,
        turns=turns,
        quantum_s=0.5,
        kv_blocks=24,
        scheduler={"max_num_seqs": 4, "max_batched_tokens": 64},
    )
    jumped, stepped = (
        simulate(scenario(shared, 0.5, requests=12, lengths=lengths), stepwise=way)
        for way in (False, True)
    )
    same(jumped, stepped)
    assert (jumped.records["expert_misses"] > 0).any()


def test_neighbours_jump_as_they_step() -> None:
    """Two instances that share the link, two variants in turns on each."""
    shared = consolidated(0.5, layout=["3g.71gb", "3g.71gb"], kv_blocks=60)
    jumped, stepped = (simulate(scenario(shared, 0.2), stepwise=way) for way in (False, True))
    same(jumped, stepped)


def same(jumped: Result, stepped: Result) -> None:
    """Demand the same records, misses among them."""
    pd.testing.assert_frame_equal(jumped.records, stepped.records, rtol=0, atol=1e-8)


def test_swapped_models_find_their_own_copies() -> None:
    """Time-shared models have no cache in common: nobody evicts another's copies."""
    alone = {
        "kind": "time_shared",
        "load_gb_per_s": 25,
        "experts": {"resident": 0.8, "cache": "lru", "load_gb_per_s": 25},
        "scheduler": ONE_AT_A_TIME,
    }
    both = simulate(scenario(alone, 0.01, arrivals="constant", requests=12)).records
    del alone["load_gb_per_s"]
    one = scenario({**alone, "kind": "offloaded"}, 0.01, "a", arrivals="constant", requests=12)
    own = simulate(one).records
    assert both[both["model"] == "a"]["expert_misses"].tolist() == own["expert_misses"].tolist()
