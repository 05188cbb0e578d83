"""A model small enough to profile within a test, and the host it is profiled on."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from calibration.calibrate import Settings, calibrate
from calibration.host import Host, detect
from calibration.transfers import Asked
from engine.model.checkpoint import random_decoder, save_decoder
from moesim.cost.profile import Profile
from moesim.facts.models import ModelSpec


@pytest.fixture(scope="session")
def checkpoint(engine_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_decoder(random_decoder(engine_spec, seed=0), folder)
    return folder


@pytest.fixture(scope="session")
def host() -> Host:
    return detect()


@pytest.fixture(scope="session")
def settings(checkpoint: Path) -> Settings:
    return Settings(
        model=str(checkpoint),
        budget_s=0.5,
        max_num_seqs=4,
        max_batched_tokens=24,
        num_blocks=32,
        device=torch.device("cpu"),
    )


@pytest.fixture(scope="session")
def profile_file(settings: Settings, host: Host, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("profile") / "tiny.json"
    calibrate(settings, path, host)
    return path


@pytest.fixture(scope="session")
def variants(
    checkpoint: Path, engine_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, Path]:
    """Write a second checkpoint of the same shape."""
    other = tmp_path_factory.mktemp("model") / "other"
    save_decoder(random_decoder(engine_spec, seed=1), other)
    return {"a": checkpoint, "b": other}


@pytest.fixture(scope="session")
def shared_profile(
    settings: Settings,
    host: Host,
    variants: dict[str, Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Profile:
    """Profile with what it costs to share the device."""
    asked = replace(settings, transfers=Asked(variants=variants))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # matrices of a few numbers wait for each other on more cores
    made = calibrate(asked, tmp_path_factory.mktemp("profile") / "shared.json", host)
    torch.set_num_threads(threads)
    return made


@pytest.fixture
def workload(checkpoint: Path, profile_file: Path, tmp_path: Path) -> Path:
    """Write a scenario of half a second for the tiny model."""
    path = tmp_path / "tiny.yaml"
    content = {
        "name": "tiny",
        "duration_s": 0.5,
        "models": {"m": {"architecture": str(checkpoint), "profile": str(profile_file)}},
        "tenants": {
            "t": {
                "model": "m",
                "arrivals": {"kind": "constant", "rate_per_s": 20},
                "prompt_tokens": {"kind": "fixed", "tokens": 12},
                "output_tokens": {"kind": "fixed", "tokens": 5},
            }
        },
        "hardware": {"device": "cpu-2core"},
        "deployment": {
            "kind": "dedicated",
            "scheduler": {"max_num_seqs": 4, "max_batched_tokens": 24},
        },
    }
    path.write_text(json.dumps(content))
    return path
