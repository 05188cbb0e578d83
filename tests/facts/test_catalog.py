"""The shipped data: all of it loads, and names that do not exist list those that do."""

import os
import subprocess
import sys
import sysconfig
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from moesim.cost.kernels.tables import is_kernels, load_kernels
from moesim.cost.profile import load_profile, read_profile
from moesim.errors import ScenarioError
from moesim.facts.catalog import SUFFIX, load_device, load_model, locate, shipped
from moesim.facts.configs import ARCHITECTURES, DECODERS, RUNNABLE
from moesim.facts.quality import load_curve
from moesim.scenario import ROOFLINE, load_scenario, load_workload


def load_either(name: str) -> Any:
    """Load a profile of one model, or the kernels of a device."""
    return load_kernels(name) if is_kernels(read_profile(name)) else load_profile(name)


LOADERS: dict[str, Callable[[str], Any]] = {
    "hardware": load_device,
    "models": partial(load_model, architectures=ARCHITECTURES),
    "profiles": load_either,
    "workloads": load_workload,
    "scenarios": load_scenario,
    "quality": load_curve,
}
SHIPPED = [(folder, name) for folder in LOADERS for name in shipped(folder)]
DEVICE = "name: d\nkind: cpu\nmemory_bytes: 1024\nsource: here\n"


def test_every_folder_has_a_loader() -> None:
    """A new data folder cannot ship files that no test reads."""
    assert set(LOADERS) == set(SUFFIX)


@pytest.mark.parametrize(("folder", "name"), SHIPPED)
def test_a_shipped_file_loads(folder: str, name: str, monkeypatch: Any, tmp_path: Path) -> None:
    """By its name, from any working directory."""
    monkeypatch.chdir(tmp_path)
    assert LOADERS[folder](name) is not None


def test_what_is_named_in_a_file_is_its_file_name() -> None:
    """Devices, workloads, scenarios and curves carry their own name, that they are found by."""
    for folder in ("hardware", "workloads", "scenarios", "quality"):
        for name in shipped(folder):
            assert LOADERS[folder](name).name == name


@pytest.mark.parametrize("name", shipped("scenarios"))
def test_a_shipped_scenario_names_shipped_parts(name: str) -> None:
    """Model, profile and device of a shipped scenario exist."""
    scenario = load_scenario(name)
    load_device(scenario.hardware.device)
    for model in scenario.models.values():
        if model.profile == ROOFLINE or is_kernels(read_profile(model.profile)):
            load_model(model.architecture, architectures=ARCHITECTURES)
        else:
            assert load_profile(model.profile).spec == load_model(model.architecture)


@pytest.mark.parametrize("folder", LOADERS)
def test_an_unknown_name_lists_the_known(folder: str) -> None:
    """The message is a menu."""
    with pytest.raises(ScenarioError, match="no-such-thing") as caught:
        LOADERS[folder]("no-such-thing")
    for name in shipped(folder):
        assert name in str(caught.value)


def test_who_follows_decoders_alone_gets_no_other() -> None:
    """The simulator says so before it gets anything wrong; the engine runs both."""
    with pytest.raises(ScenarioError, match=r"model_type: .* is not supported here.*'mixtral'"):
        load_model("switch-base-8", architectures=DECODERS)
    assert load_model("switch-base-8").model_type in RUNNABLE


def test_a_path_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    """Relative paths start from the scenario's folder."""
    (tmp_path / "mine.yaml").write_text(DEVICE)
    assert locate("hardware", "mine.yaml", relative_to=tmp_path) == tmp_path / "mine.yaml"
    assert load_device("mine.yaml", relative_to=tmp_path).memory_bytes == 1024


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (DEVICE + "memory: 3\n", "memory: unknown key"),
        (DEVICE.replace("1024", "-1"), "memory_bytes: -1: input should be greater than 0"),
        (DEVICE.replace("cpu", "tpu"), "kind: "),
        (DEVICE.replace("source: here\n", ""), "source: missing; add it"),
        ("name: [", "not valid YAML"),
    ],
)
def test_a_wrong_device_file_names_its_field(tmp_path: Path, text: str, words: str) -> None:
    """One line with the file and the field."""
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=words) as caught:
        load_device(str(path))
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("name", "what"), [(".", "a folder"), ("/dev/null", "a device or a pipe")])
def test_what_is_there_and_no_file_is_said(name: str, what: str) -> None:
    """Better than a list of what is shipped."""
    with pytest.raises(ScenarioError, match=f"{name}: is {what}; give a file"):
        locate("scenarios", name)


def test_a_tree_that_is_not_installed_has_its_data(tmp_path: Path) -> None:
    """As on a host without a registry: no installation says where `moesim.data` lies."""
    tree, packages = Path(__file__).parents[2], sysconfig.get_path("purelib")
    script = (
        "import moesim.facts.catalog as c, moesim.reproduction.publication as p;"
        "print(c.load_device('h200-sxm-141gb').name, p.load_publication('qos-moe').system)"
    )
    ran = subprocess.run(
        [sys.executable, "-S", "-c", script],  # -S: nor does an editable one
        env={"PYTHONPATH": f"{tree}{os.pathsep}{packages}"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ran.stdout, ran.stderr) == ("h200-sxm-141gb qos-moe\n", "")
