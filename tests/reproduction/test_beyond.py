"""What is varied beyond qos-moe, beside what arithmetic says of it."""

import numpy as np
import pytest

from moesim.deployment import Mig
from moesim.errors import CapacityError
from moesim.facts.mig import COMPUTE_SLICES
from moesim.reproduction.beyond import SETTINGS, SWEEPS, compared
from moesim.reproduction.changes import (
    at_rate,
    equal_instances,
    of_variants,
    on_device,
    requests_per_s,
    with_prompts,
    with_ratio,
)
from moesim.reproduction.derived import holding, in_md1
from moesim.reproduction.publication import load_publication
from moesim.reproduction.trials import TRIALS, read
from moesim.scenario import Scenario
from moesim.simulation.run import simulate

ONE = TRIALS[2:3]


def way(name: str) -> Scenario:
    return load_publication("qos-moe").scenario_beyond(name)


def test_every_setting_and_sweep_has_the_scheme_and_an_alternative() -> None:
    """Scenarios are made, not run: all are valid for every way that the device has."""
    changes = [*SETTINGS.values(), *(sweep.to(place) for sweep in SWEEPS for place in sweep.places)]
    for change in changes:
        scenario = change(way("swapped"))
        assert Scenario.model_validate(scenario.model_dump()).models
        assert len(scenario.tenants) == len(scenario.models)


@pytest.mark.parametrize("count", [2, 3, 8])
def test_more_variants_share_the_same_requests(count: int) -> None:
    scenario = of_variants(way("swapped"), count)
    assert len(scenario.models) == count
    assert requests_per_s(scenario) == pytest.approx(requests_per_s(way("swapped")))
    assert {tenant.model for tenant in scenario.tenants.values()} == set(scenario.models)


def test_each_variant_has_an_instance_of_its_own_while_there_are_some() -> None:
    deployment = of_variants(way("mig"), 3).deployment
    assert isinstance(deployment, Mig)
    assert deployment.layout == ("2g.20gb",) * 3
    with pytest.raises(CapacityError, match="no 8 MIG instances"):
        equal_instances("h200-sxm-141gb", COMPUTE_SLICES + 1)


def test_a_way_that_a_device_does_not_have_is_left_out() -> None:
    ways = {name: way(name) for name in ("swapped", "mig")}
    found = compared(ways, lambda scenario: of_variants(scenario, 8), ONE)
    assert found["mig"] is None
    assert found["swapped"] is not None


def test_another_device_comes_with_its_own_kernels() -> None:
    for device in ("h100-sxm-80gb", "h200-sxm-141gb"):
        scenario = on_device(way("swapped"), device)
        made_on = {profile.provenance.device for profile in read(scenario).profiles.values()}
        assert made_on == {device}


def test_a_prompt_is_one_iteration() -> None:
    """At one request at a time there are as many iterations as tokens of answers."""
    scenario = with_prompts(at_rate(way("swapped"), 0.002), 3000)
    result = simulate(scenario, seed=1)
    iterations = sum(usage.iterations for usage in result.usages)
    assert iterations == result.records["output_tokens"].sum()


def test_nothing_shared_is_what_a_ratio_of_none_comes_to() -> None:
    """With every expert private, all sets resident and nothing swapped, the two are one."""
    ways = {"swapped": way("swapped"), "resident": way("resident"), "side": way("side_by_side")}
    found = compared(ways, lambda scenario: with_ratio(scenario, 0), ONE)
    assert found["resident"] == pytest.approx(found["side"], rel=1e-6)


def test_experts_all_fit_on_an_h200_and_nothing_is_copied() -> None:
    result = simulate(on_device(way("resident"), "h200-sxm-141gb"), seed=1)
    assert result.records["expert_misses"].fillna(0).sum() == 0


def test_tokens_miss_what_is_absent_in_proportion() -> None:
    """Two of eight experts in each of 32 layers, any alike: 64 visits, of 256 positions."""
    held = holding(load_publication("qos-moe").scenario("consolidated"))
    assert held.found + held.absent == 256
    assert held.token == pytest.approx(64 * held.absent / 256)
    assert held.prompt == pytest.approx(held.absent * (1 - 0.75**20))
    assert held.copy_s == pytest.approx(3 * 4096 * 14336 * 2 / 25e9)


def test_half_busy_services_wait_for_half_of_one() -> None:
    """Pollaczek and Khinchine: r S^2 / (2 (1 - r S)), and nobody waits for a server that idles."""
    assert in_md1(np.array([5.0]), 0.1).tolist() == [7.5]
    assert in_md1(np.array([5.0]), 0.0).tolist() == [5.0]
