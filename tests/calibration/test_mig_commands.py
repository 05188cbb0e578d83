"""The lines that make MIG layouts: exact, possible, and never run."""

import json
import subprocess
from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibration.cli import app
from calibration.host import Host
from calibration.mig_commands import commands_for, device_here, known_gpus, shell_lines
from calibration.nvml import Gpu
from moesim.errors import CalibrationError, CapacityError, ScenarioError
from moesim.facts.catalog import load_device
from moesim.facts.hardware import Device
from moesim.facts.mig import geometry_of, valid_layouts

DIVISIBLE = [device for device in known_gpus().values() if device.mig]


def _host(*names: str) -> Host:
    gpus = tuple(Gpu(index=n, name=name, uuid_hash=str(n)) for n, name in enumerate(names))
    return Host(cpu="", cores=1, memory_bytes=1, load=0.0, driver="580", gpus=gpus)


def test_the_lines_of_two_halves() -> None:
    """As the MIG User Guide makes two 3g instances, and removes them."""
    made = commands_for(load_device("a100-sxm-80gb"), ["3g.40gb", "3g.40gb"], 0)
    assert [step.command for step in made.make] == [
        "nvidia-smi -i 0 -mig 1",
        "nvidia-smi mig -i 0 -cgi 3g.40gb:0,3g.40gb:4 -C",
        "nvidia-smi -L",
    ]
    assert [step.command for step in made.undo] == [
        "nvidia-smi mig -i 0 -dci",
        "nvidia-smi mig -i 0 -dgi",
        "nvidia-smi -i 0 -mig 0",
    ]


def test_the_largest_is_made_first() -> None:
    """Whatever the order asked for; on the GPU asked for."""
    made = commands_for(load_device("h200-sxm-141gb"), ["1g.18gb", "2g.35gb", "4g.71gb"], 3)
    assert made.make[1].command == "nvidia-smi mig -i 3 -cgi 4g.71gb:0,2g.35gb:4,1g.18gb:6 -C"


@pytest.mark.parametrize("device", DIVISIBLE, ids=lambda device: device.name)
def test_instances_of_every_layout_stand_apart(device: Device) -> None:
    """No two take the same memory slice, and each begins where its profile may."""
    profiles = geometry_of(device).by_name
    for layout in valid_layouts(device):
        taken: list[int] = []
        for specifier in commands_for(device, layout, 0).instances:
            profile, start = specifier.split(":")
            assert int(start) in profiles[profile].starts
            taken += range(int(start), int(start) + profiles[profile].memory_slices)
        assert len(taken) == len(set(taken))
        assert max(taken) < 8


def test_an_impossible_layout_is_refused() -> None:
    """As the simulator refuses it, with layouts that exist."""
    device = load_device("a100-sxm-80gb")
    with pytest.raises(CapacityError, match=r"8 of 7 compute slices; nearest .* 4g.40gb \+ 3g"):
        commands_for(device, ["4g.40gb", "4g.40gb"], 0)
    with pytest.raises(ScenarioError, match=r"no MIG profile '9g'; it has 7g\.80gb, "):
        commands_for(device, ["9g"], 0)
    with pytest.raises(ScenarioError, match="cannot be divided by MIG"):
        commands_for(load_device("cpu-2core"), ["3g.40gb"], 0)


def test_every_line_is_a_command_or_a_comment() -> None:
    """They can be pasted into a shell."""
    made = commands_for(load_device("h100-sxm-80gb"), ["7g.80gb"], 1)
    lines = [line for line in shell_lines(made) if line]
    commands = [line for line in lines if not line.startswith("#")]
    assert commands == [step.command for step in (*made.make, *made.undo)]
    assert max(map(len, lines)) <= 80


def test_the_page_shows_what_is_printed() -> None:
    """The example in the documentation is the command's own output."""
    page = (Path(__file__).parents[2] / "docs/gpu-host.md").read_text()
    made = commands_for(load_device("h100-sxm-80gb"), ["4g.40gb", "2g.20gb", "1g.10gb"], 1)
    assert "moesim-calibrate commands 4g.40gb,2g.20gb,1g.10gb --gpu 1" in page
    assert "\n".join(shell_lines(made)) in page


def test_the_device_is_taken_from_this_host() -> None:
    """By NVML's name; what is not known has to be given."""
    host = _host("NVIDIA H200", "NVIDIA L4", "NVIDIA H200 NVL")
    assert device_here(host, 0).name == "h200-sxm-141gb"
    assert device_here(host, 2).name == "h200-nvl-141gb"
    with pytest.raises(CalibrationError, match=r"--gpu: 1 is an unknown 'NVIDIA L4'; give --dev"):
        device_here(host, 1)
    with pytest.raises(CalibrationError, match="--gpu: 3 is not on this host, it has GPUs 0, 1, 2"):
        device_here(host, 3)
    with pytest.raises(CalibrationError, match="it has none; give --device: a100-pcie-80gb, "):
        device_here(_host(), 0)


def test_the_command_prints_and_runs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any process it started would fail the test."""

    def never(*words: object, **_: object) -> None:
        raise AssertionError(words)

    monkeypatch.setattr(subprocess, "Popen", never)
    monkeypatch.setattr("os.system", never)
    words = ["commands", "3g.40gb, 3g.40gb", "--device", "h100-sxm-80gb", "--gpu", "1"]
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0
    assert "\nnvidia-smi mig -i 1 -cgi 3g.40gb:0,3g.40gb:4 -C\n" in done.stdout
    content = json.loads(CliRunner().invoke(app, [*words, "--json"]).stdout)
    assert content["instances"] == ["3g.40gb:0", "3g.40gb:4"]
    assert content["undo"][2]["command"] == "nvidia-smi -i 1 -mig 0"


def test_the_command_refuses_in_one_line() -> None:
    """With exit code 2."""
    done = CliRunner().invoke(app, ["commands", ",", "--device", "h100-sxm-80gb"])
    assert done.exit_code == 2
    assert done.stderr == ("error: h100-sxm-80gb: an empty MIG layout; name at least one profile\n")
