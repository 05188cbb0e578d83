"""Models that share a device: served as the scenario says, compared tenant by tenant."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from calibration.host import Host
from calibration.plan import Plan
from calibration.sharing import host_of, refuse_unservable, served_together
from calibration.validate import validate
from calibration.whole_models import whole_models
from engine.model.checkpoint import load_decoder
from engine.variants.family import Family
from engine.variants.reconfigure import AllSets, PackedSets
from moesim.cost.profile import Profile
from moesim.deployment import Consolidated
from moesim.errors import CalibrationError, ScenarioError
from moesim.evidence.validation import load_validation
from moesim.scenario import Scenario, scenario_from

CPU = torch.device("cpu")
OWN = {"kind": "dedicated", "kv_blocks": 16}
KINDS: dict[str, dict[str, Any]] = {
    "consolidated": {"ratio": 0.5, "kv_blocks": 16, "experts": {"resident": 0.5}},
    "offloaded": {"kv_blocks": 16, "experts": {"resident": 0.5, "cache": "lru"}},
    "time_shared": {"kv_blocks": 16, "turns": "drain"},
    "expert_router": {
        "gateway": {"name": "gate", "classify_s": 0.01, "shares": {"a": 1, "b": 1}},
        "experts": {"a": OWN, "b": OWN},
    },
}

Build = Callable[..., Scenario]


@pytest.fixture
def build(variants: dict[str, Path], profile_file: Path) -> Build:
    """Return what builds a scenario of half a second for two tenants, deployed in some kind."""

    def built(kind: str, **deployment: Any) -> Scenario:
        routed = kind == "expert_router"
        tenant = {
            "arrivals": {"kind": "constant", "rate_per_s": 16},
            "prompt_tokens": {"kind": "fixed", "tokens": 12},
            "output_tokens": {"kind": "fixed", "tokens": 4},
        }
        content = {
            "name": "tiny",
            "duration_s": 0.5,
            "models": {
                name: {"architecture": str(folder), "profile": str(profile_file)}
                for name, folder in variants.items()
            },
            "tenants": {n: {**tenant, "model": "gate" if routed else n} for n in variants},
            "hardware": {"device": "cpu-2core", "count": 2 if routed else 1},
            "deployment": {"kind": kind, **KINDS[kind], **deployment},
        }
        return scenario_from(content)

    return built


@pytest.fixture
def plan(build: Build, shared_profile: Profile, variants: dict[str, Path]) -> Plan:
    return Plan(
        scenario=served_together(build("consolidated"), variants),
        profile=shared_profile,
        model="",
        runs=1,
        seed=0,
        device=CPU,
        variants=variants,
    )


def silent(fraction: float, doing: str) -> None:
    pass


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_is_served_and_predicted(
    build: Build, plan: Plan, host: Host, tmp_path: Path, kind: str
) -> None:
    """The same requests on both sides, all completed, each by its own model; a table a tenant."""
    shared = replace(plan, scenario=served_together(build(kind), dict(plan.variants)))
    found = validate(shared, tmp_path / "v", host, silent)
    (measured,) = found.measured
    same = ["request_id", "tenant", "model", "arrival_s", "output_tokens", "outcome"]
    assert measured[same].equals(found.predicted[same])
    assert set(measured["outcome"]) == {"completed"}
    assert set(found.tenants["tenant"]) == {"a", "b"}
    again = load_validation(tmp_path / "v")
    assert again.tenants["tenant"].tolist() == found.tenants["tenant"].tolist()
    assert found.facts["deployment"].startswith(kind)


def test_the_gateway_delays_what_it_sends(
    build: Build, plan: Plan, host: Host, tmp_path: Path
) -> None:
    """No prompt is scheduled before it has been classified, one after the other."""
    scenario = served_together(build("expert_router"), dict(plan.variants))
    (measured,) = validate(replace(plan, scenario=scenario), tmp_path, host, silent).measured
    waits_s = measured["scheduled_s"] - measured["arrival_s"]
    assert (waits_s >= 0.01 - 1e-9).all()
    # Two arrive at once: the second is classified when the first has been.
    assert waits_s.groupby(measured["arrival_s"]).max().min() >= 0.02 - 1e-9


@pytest.mark.parametrize(("ratio", "copies", "resident"), [(0.0, 16, 8), (0.5, 12, 6), (1.0, 8, 4)])
def test_the_engine_holds_what_the_simulator_lays_out(
    build: Build, plan: Plan, ratio: float, copies: int, resident: int
) -> None:
    """Of 2 x 8 positions: as many copies, half of them resident, and one non-expert set."""
    scenario = build("consolidated", ratio=ratio)
    found = host_of(scenario, plan.profiles, plan.variants, CPU)
    assert len(found.family.store.copies) == copies
    staging = 2
    assert len(found.family.store.gate_up) == resident + staging
    assert found.blocks == 16
    assert isinstance(found.family.sets, PackedSets)
    both = build("consolidated", ratio=ratio, non_expert_sets="all")
    assert isinstance(host_of(both, plan.profiles, plan.variants, CPU).family.sets, AllSets)


def test_a_whole_model_is_swapped(variants: dict[str, Path]) -> None:
    """Once loaded, every weight of a skeleton is that of its checkpoint, experts included."""
    family: Family = whole_models(variants, CPU)
    for place, (name, folder) in enumerate(variants.items()):
        family.sets.load(place)
        expected = dict(load_decoder(folder, CPU).named_parameters())
        found = dict(family.decoders[name].named_parameters())
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[key], weight) for key, weight in expected.items())


def test_what_a_scenario_says_of_other_hosts_is_left_out(
    build: Build, variants: dict[str, Path]
) -> None:
    """Speeds of links and floors of software: here the profile knows."""
    scheduler = {"floor_s": 0.1, "max_num_seqs": 3}
    experts = {"resident": 0.5, "load_gb_per_s": 25}
    written = build("consolidated", swap_gb_per_s=2.7, scheduler=scheduler, experts=experts)
    found = served_together(written, variants).deployment
    assert isinstance(found, Consolidated)
    assert (found.swap_gb_per_s, found.experts.load_gb_per_s) == (None, None)
    assert (found.scheduler.floor_s, found.scheduler.max_num_seqs) == (0.0, 3)
    assert (found.ratio, found.experts.resident) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("kind", "deployment", "words"),
    [
        ("consolidated", {"layout": ["3g.40gb"]}, "one whole device"),
        ("offloaded", {"experts": {"cpu_s_per_token_expert": 0.1}}, "on the CPU"),
        ("time_shared", {"experts": {}}, "swapped with all theirs"),
        ("expert_router", {"experts": {"a": {**OWN, "experts": {}}, "b": OWN}}, "experts.a"),
    ],
)
def test_what_the_engine_cannot_do_is_refused(
    build: Build, kind: str, deployment: dict[str, Any], words: str
) -> None:
    """In a line that names the field."""
    with pytest.raises(ScenarioError, match=words):
        refuse_unservable(build(kind, **deployment))


def test_what_does_not_belong_together_is_refused(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Other names, other checkpoints, a profile that knows nothing of sharing, no variants."""
    with pytest.raises(ScenarioError, match="--variants: a are not the scenario's models a, b"):
        validate(replace(plan, variants={"a": plan.variants["a"]}), tmp_path, host, silent)
    swapped = {"a": plan.variants["b"], "b": plan.variants["a"]}
    with pytest.raises(CalibrationError, match="not the checkpoint that was profiled under"):
        validate(replace(plan, variants=swapped), tmp_path, host, silent)
    bare = plan.profile.model_copy(update={"transfers": None})
    with pytest.raises(CalibrationError, match="has no transfers"):
        validate(replace(plan, profile=bare), tmp_path, host, silent)
    with pytest.raises(ScenarioError, match="without --variants"):
        validate(replace(plan, variants={}), tmp_path, host, silent)
