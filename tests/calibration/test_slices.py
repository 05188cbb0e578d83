"""Models on shares of a device: profiled there, served at once, compared tenant by tenant."""

import os
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from calibration import datasheet, slices
from calibration.calibrate import Settings, calibrate
from calibration.cli import app
from calibration.datasheet import device_yaml, measured_device
from calibration.foresight import foresee
from calibration.host import Host
from calibration.plan import Plan
from calibration.share_profile import part_of
from calibration.sharing import served_together
from calibration.slices import realised
from calibration.validate import validate
from engine.slices.here import on_share
from engine.slices.part import Part
from moesim.cost.profile import Profile, load_profile
from moesim.cost.roofline import on_slice, roofline_profile
from moesim.deployment import Mps, Offloaded
from moesim.errors import CalibrationError, MoesimError, ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.facts.hardware import Device
from moesim.facts.slices import Slice, group, whole
from moesim.facts.sm_share import sm_share
from moesim.scenario import Scenario, scenario_from

CPU = torch.device("cpu")
HALF = Fraction(1, 2)
H100 = load_device("h100-sxm-80gb")

pytestmark = pytest.mark.skipif(
    not hasattr(os, "sched_getaffinity") or len(os.sched_getaffinity(0)) < 2,
    reason="one core cannot be shared",
)


def silent(fraction: float, doing: str) -> None:
    pass


def on(share: Fraction, bandwidth: float, device: Device = H100) -> Slice:
    """Return a share as the simulator has it."""
    return Slice(
        name="share",
        compute_share=float(share),
        bandwidth_share=bandwidth,
        memory_bytes=device.memory_bytes,
    )


@pytest.fixture(scope="module")
def drawn() -> Profile:
    """Return a profile that stands for what was measured on a share."""
    spec = load_model("llama-3-8b")
    return roofline_profile(spec, H100, max_batched_tokens=512, max_num_seqs=8)


def of_share(profile: Profile, share: str) -> Profile:
    """Return the profile as if it had been measured on a share."""
    provenance = profile.provenance.model_copy(update={"share": share})
    return profile.model_copy(update={"provenance": provenance})


@given(units=st.integers(1, 16))
def test_a_measured_share_is_taken_as_it_is(drawn: Profile, units: int) -> None:
    """While neighbours are idle, however little of the bandwidth it draws."""
    own = of_share(drawn, f"{units}/16 SMs")
    assert on_slice(own, H100, sm_share(H100, 100 * units / 16)) == own


def test_a_busy_neighbour_takes_bandwidth_and_nothing_else(drawn: Profile) -> None:
    """One token reads weights for twice as long; 512, on half the SMs, compute as long as ever."""
    alone = on_slice(drawn, H100, sm_share(H100, 50))
    beside = on_slice(of_share(alone, "66/132 SMs"), H100, on(HALF, 0.5))
    before, after = alone.operations["projections"], beside.operations["projections"]
    assert after[0].at == (1,)
    assert after[0].median_s == pytest.approx(2 * before[0].median_s)
    assert after[-1].at == (512,)
    assert after[-1].median_s == pytest.approx(before[-1].median_s)
    assert beside.operations["host"] == drawn.operations["host"]


@pytest.mark.parametrize(
    "part", [whole(H100), sm_share(H100, 40), group(H100, tensor_parallel=2)], ids=lambda p: p.name
)
def test_a_measured_share_stands_for_no_other(drawn: Profile, part: Slice) -> None:
    with pytest.raises(ProfileError, match=r"measured on 1/2 SMs, here the model is on .*h100"):
        on_slice(of_share(drawn, "1/2 SMs"), H100, part)


@pytest.fixture(scope="module")
def half_profiles(
    settings: Settings,
    host: Host,
    variants: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Profile]:
    """Profile each checkpoint on half the cores."""
    folder = tmp_path_factory.mktemp("halves")
    with on_share(HALF, CPU) as part:
        asked = replace(settings, share=str(part))
        for name, model in variants.items():
            calibrate(replace(asked, model=str(model)), folder / f"{name}.json", host)
    return {name: load_profile(folder / f"{name}.json") for name in variants}


Build = Callable[..., Scenario]


@pytest.fixture
def build(variants: dict[str, Path], profile_file: Path, tmp_path: Path) -> Build:
    """Return what builds a scenario of half a second for two tenants on shares."""
    device = Device(
        name="cpu",
        kind="cpu",
        memory_bytes=2**30,
        memory_bandwidth_bytes_per_s=2e10,
        bf16_flop_per_s=1e11,
        source="made up",
    )
    (tmp_path / "cpu.yaml").write_text(device_yaml(device))

    def built(**deployment: Any) -> Scenario:
        tenant = {
            "arrivals": {"kind": "constant", "rate_per_s": 16},
            "prompt_tokens": {"kind": "fixed", "tokens": 12},
            "output_tokens": {"kind": "fixed", "tokens": 4},
        }
        shares = {"kind": "mps", "sm_percent": {"a": 50, "b": 50}, "kv_blocks": 16}
        return scenario_from(
            {
                "name": "tiny",
                "duration_s": 0.5,
                "models": {
                    name: {"architecture": str(folder), "profile": str(profile_file)}
                    for name, folder in variants.items()
                },
                "tenants": {name: {**tenant, "model": name} for name in variants},
                "hardware": {"device": str(tmp_path / "cpu.yaml")},
                "deployment": {**shares, **deployment},
            }
        )

    return built


@pytest.fixture
def plan(
    build: Build,
    profile_file: Path,
    half_profiles: dict[str, Profile],
    variants: dict[str, Path],
) -> Plan:
    return Plan(
        scenario=served_together(build(), variants),
        profile=load_profile(profile_file),
        model="",
        runs=1,
        seed=0,
        device=CPU,
        variants=variants,
        share_profiles=half_profiles,
    )


def test_both_are_served_and_predicted(plan: Plan, host: Host, tmp_path: Path) -> None:
    """The same requests on both sides, all completed, and a table a tenant."""
    found = validate(plan, tmp_path / "v", host, silent)
    (measured,) = found.measured
    same = ["request_id", "tenant", "model", "arrival_s", "output_tokens", "outcome"]
    assert measured[same].equals(found.predicted[same])
    assert set(measured["outcome"]) == {"completed"}
    assert set(found.tenants["tenant"]) == {"a", "b"}
    assert found.facts["deployment"] == "mps, a 50 %, b 50 %"
    units = len(os.sched_getaffinity(0)) // 2
    assert any(f"a had {units}/{2 * units} cores" in note for note in found.notes)
    assert any("while all shares computed the same" in note for note in found.notes)


def test_a_measured_share_beats_the_scaled_one(plan: Plan) -> None:
    """With its own profile a model alone costs what was measured; the other's is scaled."""
    own = plan.share_profiles["a"]
    foreseen = foresee(replace(plan, share_profiles={"a": own}))
    device = load_device(foreseen.scenario.hardware.device)
    assert on_slice(foreseen.profiles["a"], device, sm_share(device, 50)) == own
    assert foreseen.profiles["b"].operations == plan.profile.operations
    assert foreseen.notes[1].startswith("Profiled on its own share: a;")


def test_what_was_measured_where_is_in_the_profile(half_profiles: dict[str, Profile]) -> None:
    units = len(os.sched_getaffinity(0)) // 2
    part = Part(units=units, of=len(os.sched_getaffinity(0)), what="cores")
    assert part_of(half_profiles["a"]) == part
    assert half_profiles["a"].provenance.threads == units


def test_what_is_predicted_is_what_shares_come_to(
    build: Build, monkeypatch: pytest.MonkeyPatch
) -> None:
    """7 of 15 groups of 8 SMs, of a GPU that has 132, are less than the half that was asked for."""
    given = Part(units=56, of=132, what="SMs")
    monkeypatch.setattr(slices, "parts_of", lambda shares, device: [given for _ in shares])
    scenario, parts = realised(build(), CPU)
    assert isinstance(scenario.deployment, Mps)
    assert scenario.deployment.sm_percent == pytest.approx({"a": 42.424242, "b": 42.424242})
    assert parts == {"a": given, "b": given}


@pytest.mark.parametrize(
    ("deployment", "words"),
    [
        ({"experts": {"resident": 0.5}}, "deployment.experts: on shares of a device all experts"),
        ({"sm_percent": {"a": 1, "b": 50}}, "shares: 1 % of .* cores is less than one; give"),
    ],
)
def test_what_a_share_cannot_serve_is_refused(
    plan: Plan, build: Build, host: Host, tmp_path: Path, deployment: dict[str, Any], words: str
) -> None:
    scenario = served_together(build(**deployment), dict(plan.variants))
    with pytest.raises(MoesimError, match=words):
        validate(replace(plan, scenario=scenario), tmp_path / "v", host, silent)


def test_what_does_not_belong_together_is_refused(
    plan: Plan, build: Build, host: Host, tmp_path: Path
) -> None:
    """Profiles of other shares, checkpoints, or kinds of deployment: one line each."""
    out = tmp_path / "v"
    own = plan.share_profiles["a"]
    with pytest.raises(CalibrationError, match=r"--profile: was measured on .* cores; give a pro"):
        validate(replace(plan, profile=own), out, host, silent)
    with pytest.raises(CalibrationError, match=r"b: .* is not the checkpoint that was profiled"):
        validate(replace(plan, share_profiles={"b": own}), out, host, silent)
    with pytest.raises(CalibrationError, match=r"b: .* is not the checkpoint that was profiled"):
        validate(replace(plan, share_profiles={}), out, host, silent)
    undivided = {"a": plan.profile}
    with pytest.raises(CalibrationError, match="a: was measured on the whole device, the depl"):
        foresee(replace(plan, share_profiles=undivided))
    unknown = plan.scenario.hardware.model_copy(update={"device": "profiled"})
    nowhere = plan.scenario.model_copy(update={"hardware": unknown})
    with pytest.raises(ScenarioError, match=r"hardware\.device: 'profiled' has no rates, which"):
        validate(replace(plan, scenario=nowhere), out, host, silent)
    with pytest.raises(ScenarioError, match="--share-profiles: c is not one of the scenario's"):
        validate(replace(plan, share_profiles={"c": own}), out, host, silent)
    other = build().model_copy(update={"deployment": Offloaded(kind="offloaded", kv_blocks=16)})
    with pytest.raises(ScenarioError, match="nobody has a share in a deployment of kind offloa"):
        validate(replace(plan, scenario=other), out, host, silent)


def test_the_command_profiles_a_share(checkpoint: Path, tmp_path: Path) -> None:
    """And gives the cores back."""
    before = os.sched_getaffinity(0)
    out = tmp_path / "half.json"
    small = ["--max-num-seqs", "4", "--max-batched-tokens", "24", "--kv-blocks", "32"]
    command = ["profile", "--model", str(checkpoint), "--out", str(out), "--budget-s", "0.5"]
    found = CliRunner().invoke(app, [*command, *small, "--share", "1/2"])
    assert found.exit_code == 0, found.output
    assert part_of(load_profile(out)) == Part(units=len(before) // 2, of=len(before), what="cores")
    assert os.sched_getaffinity(0) == before
    found = CliRunner().invoke(app, [*command, "--share", "1/2", "--transfers"])
    assert found.exit_code == 2
    assert "--share: what sharing costs is measured on the whole device" in found.output


def test_a_datasheet_is_measured(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rates of 2 n^3 operations and of the bytes read, each over a time that was told here."""
    monkeypatch.setattr(datasheet, "READ_BYTES", 2**20)
    monkeypatch.setattr(datasheet, "_least_s", lambda work: 0.5 if work() is not None else 0.0)
    made = measured_device(host, "cpu")
    (tmp_path / "cpu.yaml").write_text(device_yaml(made))
    read = load_device(str(tmp_path / "cpu.yaml"))
    assert read == made
    assert read.bf16_flop_per_s == pytest.approx(2 * 1024**3 / 0.5, rel=5e-3)
    assert read.memory_bandwidth_bytes_per_s == pytest.approx(2**20 / 0.5, rel=5e-3)
    assert (read.sms, read.sm_bytes_per_s) == (host.cores, read.memory_bandwidth_bytes_per_s)


def test_a_datasheet_replaces_nothing_else(tmp_path: Path) -> None:
    """A profile took minutes; a device file that is there is measured again."""
    place = tmp_path / "there.yaml"
    datasheet.check_place(place)
    assert not place.exists()
    place.write_text('{"format": "moesim-profile"}')
    with pytest.raises(CalibrationError, match=r"there\.yaml: is there and is no device file"):
        datasheet.check_place(place)
    place.write_text(shipped("hardware")["cpu-2core"].read_text())
    datasheet.check_place(place)
