"""A rehearsal of the queue at its smallest, on the CPU, within the tests' own process."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.provenance import Begun, begin
from benchmarks.gpu_queue.sizes import TINY
from calibration.host import Host, detect
from moesim.files import write_text

SMALLEST = replace(
    TINY,
    spec=replace(TINY.spec, num_hidden_layers=2),
    variant=replace(TINY.spec, num_hidden_layers=2),
    max_num_seqs=4,
    max_batched_tokens=32,
    num_blocks=64,
    traffic=replace(TINY.traffic, max_num_seqs=4),
    variant_blocks=64,
    variant_profile_s=0.3,
    cell_s=0.3,
    budgets_s={"tests": 60, "kernels": 1, "profile": 1, "validate": 2, "variants": 60},
    setup_s={"profile": 0, "validate": 0},
)


@pytest.fixture(scope="session")
def this_host() -> Host:
    return detect()


@pytest.fixture(scope="session")
def asked(tmp_path_factory: pytest.TempPathFactory) -> Asked:
    """Return what the steps of a session share: they build on each other's files."""
    folder = tmp_path_factory.mktemp("queue")
    shape = json.dumps(SMALLEST.spec.to_config())
    write_text(folder / "scratch/tiny.json", shape)
    return Asked(
        size=SMALLEST,
        device=torch.device("cpu"),
        out=folder / "out",
        scratch=folder / "scratch",
        command="python -m benchmarks.gpu_queue rehearsed",
    )


@pytest.fixture(scope="session")
def begun(asked: Asked, this_host: Host) -> Callable[[str], Begun]:
    """Return what begins a step."""
    return lambda step: begin(asked, this_host, step)


@pytest.fixture(scope="session")
def profiled(begun: Callable[[str], Begun]) -> Path:
    """Return the profile that the step `profile` made."""
    from benchmarks.gpu_queue import profiling

    step = begun("profile")
    profiling.run(step)
    return step.asked.profile
