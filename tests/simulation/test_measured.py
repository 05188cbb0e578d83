"""Copies as fast as the scenario says, else as was measured, else as the datasheet has it."""

from collections.abc import Callable
from typing import Any

import pytest

from moesim.cost.profile import ExpertLoad, Profile, Router, Swap, Transfers, Variant
from moesim.errors import ScenarioError
from moesim.scenario import scenario_from
from moesim.simulation.measured import load_of, swap_of
from moesim.simulation.run import Result, simulate

CONTENT = dict[str, Any]
SWAP_S = 0.25
LOAD_S = 0.125


def swap(what: str, way: str, memory: str, median_s: float) -> Swap:
    return Swap.model_validate(
        {"what": what, "way": way, "memory": memory, "set_bytes": 1000, "tensors": 3}
        | {"median_s": median_s, "spread": 0.0, "repeats": 3}
    )


def load(how: str, size: int, in_flight: int, median_s: float, memory: str = "host") -> ExpertLoad:
    return ExpertLoad.model_validate(
        {"memory": memory, "how": how, "expert_bytes": size, "in_flight": in_flight}
        | {"median_s": median_s, "spread": 0.0, "repeats": 3}
    )


def measured(profile: Profile) -> Profile:
    """Return the profile with one swap of all non-expert bytes and one load of a whole expert."""
    spec = profile.spec
    plain = spec.non_expert_parameters * spec.dtype_bytes
    swaps = [
        swap("non_expert_set", "packed", "host", SWAP_S).model_copy(update={"set_bytes": plain}),
        swap("whole_model", "packed", "host", 2 * SWAP_S).model_copy(
            update={"set_bytes": spec.weight_bytes}
        ),
    ]
    size = spec.expert_parameters * spec.dtype_bytes
    loads = [load("in_iteration", size, 1, LOAD_S)]
    return profile.model_copy(update={"transfers": Transfers(swaps=swaps, expert_loads=loads)})


@pytest.fixture
def two(tiny_scenario: Callable[[], CONTENT]) -> CONTENT:
    """Return a scenario of two variants that are asked in turn, one request at a time."""
    content = tiny_scenario()
    model, tenant = content["models"]["m"], content["tenants"]["chat"]
    tenant["arrivals"] = {"kind": "constant", "rate_per_s": 0.1}
    content["duration_s"] = 40.0
    content["models"] = {"a": model, "b": model}
    content["tenants"] = {name: {**tenant, "model": name} for name in "ab"}
    return content


def run(content: CONTENT, profile: Profile | None, **deployment: Any) -> Result:
    content["deployment"] = {"kv_blocks": 8, "scheduler": {"max_batched_tokens": 16}, **deployment}
    scenario = scenario_from(content)
    return simulate(scenario, {"a": profile, "b": profile} if profile else {})


def swaps_s(result: Result) -> set[float]:
    return {round(took_s, 9) for loads in result.loads.values() for _, took_s in loads}


def test_swaps_take_what_was_measured(two: CONTENT, tiny_profile: Profile) -> None:
    """On a CPU, whose datasheet knows no link, the profile carries it; the scenario goes before."""
    profile = measured(tiny_profile)
    consolidated = {"kind": "consolidated", "ratio": 1.0}
    assert swaps_s(run(two, profile, **consolidated)) == {SWAP_S}
    assert swaps_s(run(two, profile, kind="time_shared")) == {2 * SWAP_S}
    plain = tiny_profile.spec.non_expert_parameters * tiny_profile.spec.dtype_bytes
    told = run(two, profile, **consolidated, swap_gb_per_s=plain / 1e9)
    assert swaps_s(told) == {1.0}
    with pytest.raises(ScenarioError, match="swap_gb_per_s: not given"):
        run(two, None, **consolidated)


def test_loads_take_what_was_measured(two: CONTENT, tiny_profile: Profile) -> None:
    """Each miss is longer by one load, and the basis says that it was measured."""
    profile = measured(tiny_profile)
    some = {"kind": "offloaded", "experts": {"resident": 0.5}}
    result = run(two, profile, **some)
    assert result.basis["expert loads"] == "measured"
    told = {"kind": "offloaded", "experts": {"resident": 0.5, "load_gb_per_s": 1e4}}
    fast = run(two, profile, **told)
    assert fast.basis["expert loads"] == "scaled"
    spans = [r.records["finish_s"] - r.records["scheduled_s"] for r in (result, fast)]
    # Nothing but loads differs, and misses are rounded to whole ones.
    waits_s = LOAD_S * result.records["expert_misses"]
    assert (spans[0] - spans[1]).tolist() == pytest.approx(waits_s.tolist(), abs=0.51 * LOAD_S)
    assert (result.records["expert_misses"] > 0).all()


def test_the_engine_s_own_way_is_taken(tiny_profile: Profile) -> None:
    """Packed before per tensor, pinned before pageable; a load in an iteration before one alone."""
    rows = [
        swap("non_expert_set", "per_tensor", "pageable", 9.0),
        swap("non_expert_set", "packed", "pageable", 3.0),
        swap("non_expert_set", "packed", "pinned", 1.0),
        swap("whole_model", "packed", "pinned", 5.0),
    ]
    transfers = Transfers(
        swaps=rows,
        expert_loads=[
            load("alone", 10, 1, 1.0, "pageable"),
            load("alone", 10, 4, 2.0, "pinned"),
            load("alone", 10, 1, 3.0, "pinned"),
        ],
    )
    profile = tiny_profile.model_copy(update={"transfers": transfers})
    assert swap_of(profile, "non_expert_set") is rows[2]
    assert swap_of(profile, "whole_model") is rows[3]
    assert load_of(profile) is transfers.expert_loads[2]
    within = load("in_iteration", 99, 1, 4.0)
    more = transfers.model_copy(update={"expert_loads": [*transfers.expert_loads, within]})
    assert load_of(tiny_profile.model_copy(update={"transfers": more})) is within


def test_a_variant_has_its_own_router(tiny_profile: Profile) -> None:
    """By its name; others have the profiled model's."""
    other = Router(
        popularity=[list(reversed(row)) for row in tiny_profile.router.popularity],
        tokens=7,
        distinct=[],
    )
    transfers = Transfers(variants={"b": Variant(model_digest="x", router=other)})
    profile = tiny_profile.model_copy(update={"transfers": transfers})
    assert profile.of_variant("b").router == other
    assert profile.of_variant("a") is profile
    assert tiny_profile.of_variant("b") is tiny_profile
