"""MPS shares: what few SMs can draw, and stores that cost what they cost without neighbours."""

from itertools import pairwise
from typing import Any

import pytest

from moesim.cost.profile import Profile, Stored, Transfers
from moesim.cost.roofline import passes_s, roofline_profile
from moesim.facts.catalog import load_device, load_model
from moesim.facts.sm_share import ASSUMED, SM_BYTES_PER_S
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.run import Result, simulate

H100 = load_device("h100-sxm-80gb")
A100 = load_device("a100-sxm-80gb")
LAUNCHES_S = 32 * passes_s(load_model("llama-3-8b"))


def scenario(deployment: dict[str, Any], device: str, architecture: str, models: str) -> Scenario:
    """Build one with a short request to each model every hundred seconds."""
    tenant = {
        "arrivals": {"kind": "constant", "rate_per_s": 0.01},
        "prompt_tokens": {"kind": "fixed", "tokens": 20},
        "output_tokens": {"kind": "fixed", "tokens": 25},
    }
    return scenario_from(
        {
            "name": "mps",
            "duration_s": 300,
            "models": {
                model: {"architecture": architecture, "profile": "roofline", "precision": "int8"}
                for model in models
            },
            "tenants": {model: {"model": model, **tenant} for model in models},
            "hardware": {"device": device, "count": 1},
            "deployment": {
                "kv_blocks": 64,
                "scheduler": {"max_num_seqs": 8, "max_batched_tokens": 512},
                **deployment,
            },
        }
    )


def shared(**percent: float) -> Result:
    """Simulate small dense models on shares of an H100."""
    deployment = {"kind": "mps", "sm_percent": percent}
    return simulate(scenario(deployment, H100.name, "llama-3-8b", "".join(percent)))


def tpot_s(result: Result, tenant: str = "a") -> float:
    return float(result.metrics()["tenants"][tenant]["tpot_s"]["mean"])


def test_few_sms_draw_less_of_the_bandwidth() -> None:
    """A decode is all reading: in proportion to the SMs where these are few, never faster."""
    found = [tpot_s(shared(a=percent)) for percent in (1, 2, 10, 30, 40, 70, 100)]
    assert found[0] == pytest.approx(2 * found[1], rel=0.01)
    assert all(more <= fewer * (1 + 1e-12) for fewer, more in pairwise(found))
    whole = H100.memory_bandwidth_bytes_per_s or 0.0
    few = 0.1 * (H100.sms or 0) * SM_BYTES_PER_S / whole
    assert (found[-1] - LAUNCHES_S) / (found[2] - LAUNCHES_S) == pytest.approx(few, rel=0.01)


def test_all_sms_are_the_device() -> None:
    """Alone with 100 %, a model is what it is on a device of its own."""
    dedicated = simulate(scenario({"kind": "dedicated"}, H100.name, "llama-3-8b", "a"))
    assert shared(a=100).records["finish_s"].tolist() == pytest.approx(
        dedicated.records["finish_s"].tolist(), abs=1e-12
    )


def test_who_can_draw_little_leaves_the_rest() -> None:
    """Beside two percent of the SMs the others have nearly all the bandwidth, beside half half."""
    alone = tpot_s(shared(a=50))
    assert tpot_s(shared(a=50, b=2)) == pytest.approx(alone / (1 - 0.02 * 2.637), rel=0.01)
    twice_s = 2 * (alone - LAUNCHES_S) + LAUNCHES_S
    assert tpot_s(shared(a=50, b=50)) == pytest.approx(twice_s, rel=0.01)


def test_a_result_says_what_it_assumes() -> None:
    """Where the limit matters, and only there."""
    assert ASSUMED in shared(a=10).warnings
    assert ASSUMED not in shared(a=60, b=40).warnings


def stored() -> Profile:
    """Return a profile in which experts that run from a store take three times as long."""
    profile = roofline_profile(
        load_model("mixtral-8x7b"), A100, max_batched_tokens=512, max_num_seqs=8
    )
    factors = [(*cell.at[:2], 3.0) for cell in profile.operations["experts"]]
    measured = [Stored(copies=256, complete=whole, factors=factors) for whole in (True, False)]
    return profile.model_copy(update={"transfers": Transfers(stored=measured)})


def test_a_store_costs_the_same_under_mps() -> None:
    """One model with half its experts, on a device and on all of its SMs."""
    experts = {"load_gb_per_s": 400, "resident": 0.5}
    dedicated, mps = (
        simulate(
            scenario({**kind, "experts": experts}, A100.name, "mixtral-8x7b", "a"), {"a": stored()}
        )
        for kind in ({"kind": "dedicated"}, {"kind": "mps", "sm_percent": {"a": 100.0}})
    )
    plain = simulate(
        scenario({"kind": "dedicated", "experts": experts}, A100.name, "mixtral-8x7b", "a")
    )
    assert tpot_s(mps) == pytest.approx(tpot_s(dedicated), rel=1e-12)
    assert tpot_s(mps) > 1.2 * tpot_s(plain)


def test_a_store_costs_as_much_beside_neighbours() -> None:
    """Both are busy at the same times, and reading experts is most of what they do."""
    experts = {"load_gb_per_s": 4000, "resident": 0.3}
    profiles = {"a": stored(), "b": stored()}
    deployment = {"kind": "mps", "sm_percent": {"a": 50.0, "b": 50.0}, "experts": experts}
    both = simulate(scenario(deployment, A100.name, "mixtral-8x7b", "ab"), profiles)
    bare = simulate(scenario(deployment, A100.name, "mixtral-8x7b", "ab"))
    assert tpot_s(both) > 1.5 * tpot_s(bare)
