"""What matters on GPU hosts only, tried on the CPU: graphs, narrow weights, memory, versions."""

import gc
import weakref
from dataclasses import replace
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
import torch

from calibration import calibrate as calibrating
from calibration import copies
from calibration.belonging import check_belonging
from calibration.calibrate import Settings, calibrate, silent
from calibration.host import Host
from calibration.merge import merge
from calibration.models import model_digest
from calibration.plan import Plan
from calibration.validate import validate
from engine.model.allocation import LARGE_BYTES, allocating
from engine.model.checkpoint import random_decoder
from engine.serve.engine import Engine
from engine.variants import command
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError, EngineError, ProfileError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.scenario import load_scenario

CPU = torch.device("cpu")


def test_a_profile_says_which_decodes_are_padded(
    settings: Settings, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the engine serves them: its graphs' sizes."""
    opened = calibrating.engine_for

    def padding(asked: Settings) -> Engine:
        engine = opened(asked)
        engine.runner.capture([1, 2, 4])
        return engine

    monkeypatch.setattr(calibrating, "engine_for", padding)
    made = calibrate(settings, tmp_path / "made.json", host)
    assert made.decode_graphs == (1, 2, 4)


def test_a_profile_of_narrow_weights(
    settings: Settings, host: Host, profile_file: Path, tmp_path: Path
) -> None:
    """It is measured on them, says so, and is not taken for one of the model as it is."""
    narrow = replace(settings, precision=Precision.uniform("int8"))
    engine = calibrating.engine_for(narrow)
    assert engine.runner.decoder.precision.experts == "int8"
    made = calibrate(narrow, tmp_path / "made.json", host)
    assert made.provenance.model_source == "tiny, int8"
    assert load_profile(tmp_path / "made.json").formats == Precision.uniform("int8")
    wide = load_profile(profile_file)
    assert wide.provenance.model_digest == model_digest(settings.model, wide.spec)
    assert wide.precision is None
    assert wide.formats == Precision.of_dtype("float32")
    with pytest.raises(CalibrationError, match=r"model_digest: .* were made alike"):
        merge([("wide.json", wide), ("made.json", made)])


def test_narrow_weights_are_validated_as_they_were_profiled(
    settings: Settings, host: Host, workload: Path, tmp_path: Path
) -> None:
    """The same checkpoint is narrowed again, and the scenario is told of it."""
    narrow = replace(settings, precision=Precision.uniform("int8"), budget_s=0.01)
    profile = calibrate(narrow, tmp_path / "made.json", host)
    formats = profile.formats
    scenario = load_scenario(workload)
    plan = Plan(
        scenario=scenario.served_here(settings.model, formats.experts, formats.kv),
        profile=profile,
        model=settings.model,
        runs=1,
        seed=0,
        device=CPU,
    )
    found = validate(plan, tmp_path / "v", host, silent)
    assert found.measured[0]["outcome"].eq("completed").all()
    wide = replace(plan, scenario=scenario.served_here(settings.model))
    with pytest.raises(ProfileError, match="precision: fp32, the profile was measured in int8"):
        validate(wide, tmp_path / "w", host, silent)


def test_another_gpu_of_the_host_is_not_the_one_profiled(
    profile_file: Path, settings: Settings, workload: Path, host: Host
) -> None:
    """Its name is the same; what tells them apart is the UUID."""
    profile = load_profile(profile_file)
    assert profile.provenance.device_hash is None
    made = profile.provenance.model_copy(update={"device_hash": "d" * 16})
    plan = Plan(
        scenario=load_scenario(workload),
        profile=profile,
        model=settings.model,
        runs=1,
        seed=0,
        device=CPU,
    )
    check_belonging(plan, host)
    other = replace(plan, profile=profile.model_copy(update={"provenance": made}))
    with pytest.raises(CalibrationError, match=r"on another .* of this host; choose that by"):
        check_belonging(other, host)


def test_swaps_without_room_are_told(
    engine_spec: ModelSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those of whole models need twice as much memory again; the others are measured."""
    timed = copies._swaps_of

    def short(what: str, *rest: object) -> object:
        if what == "whole_model":
            raise EngineError("188 GB do not fit")
        return timed(what, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(copies, "_swaps_of", short)
    notes: list[str] = []
    rows = copies.swaps(engine_spec, CPU, rounds=1, notes=notes)
    assert {row.what for row in rows} == {"non_expert_set"}
    assert notes == ["swaps of a whole model: not measured: 188 GB do not fit"]
    with pytest.raises(EngineError):
        copies.swaps(engine_spec, CPU, rounds=1)


def test_a_model_that_nobody_uses_makes_room(engine_spec: ModelSpec) -> None:
    """Its layers hold themselves; a large allocation frees them first, a small one has no need."""
    gc.collect()
    gc.disable()
    try:
        layer = weakref.ref(random_decoder(engine_spec, seed=0).moe_layers[0])
        with allocating("little", 1, CPU, "no remedy"):
            assert layer() is not None
        with allocating("much", LARGE_BYTES, CPU, "no remedy"):
            assert layer() is None
    finally:
        gc.enable()


def test_a_layout_is_made_from_the_sources_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host that has the sources and no installed package."""

    def absent(name: str) -> str:
        raise PackageNotFoundError(name)

    monkeypatch.setattr(command, "version", absent)
    assert command.provenance().moesim == "not installed"
