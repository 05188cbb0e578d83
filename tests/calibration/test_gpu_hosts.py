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
from calibration.calibrate import Settings, calibrate
from calibration.host import Host
from calibration.merge import merge
from calibration.models import model_digest
from engine.model.allocation import LARGE_BYTES, allocating
from engine.model.checkpoint import random_decoder
from engine.serve.engine import Engine
from engine.variants import command
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError, EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision

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
    wide = load_profile(profile_file)
    assert wide.provenance.model_digest == model_digest(settings.model, wide.spec)
    with pytest.raises(CalibrationError, match=r"model_digest: .* were made alike"):
        merge([("wide.json", wide), ("made.json", made)])


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
