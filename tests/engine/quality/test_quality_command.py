"""`moesim-engine quality`: all of it on tiny models, going on, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

import engine.quality.command as command
import engine.quality.study as study
from engine.cli import app
from engine.quality.corpus import Domain
from engine.quality.plan import Plan
from moesim.errors import EngineError
from moesim.facts.catalog import load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.models import ModelSpec
from moesim.facts.quality import load_curve

QUICK = ("--steps", "1", "--fine-steps", "1", "--training-kib", "1")


@pytest.fixture
def tiny(
    monkeypatch: pytest.MonkeyPatch, specs: dict[str, ModelSpec], tiny_domains: list[Domain]
) -> None:
    """Put tiny shapes, tiny texts and few settings in place of those of the experiment."""
    shapes = {"byte-moe": specs["decoder"], "byte-switch": specs["switch"]}
    monkeypatch.setattr(command, "shape", shapes.__getitem__)
    monkeypatch.setattr(command, "domains", lambda _: tiny_domains)
    monkeypatch.setattr(study, "RATIOS", (0.0, 0.5, 1.0))
    monkeypatch.setattr(study, "CONTROL_RATIOS", (0.5,))
    monkeypatch.setattr(study, "ARITHMETIC_SCALES", (0.4,))
    monkeypatch.setattr(study, "TIES_SCALES", (1.0,))


def run(out: Path, *more: str) -> Result:
    return CliRunner().invoke(app, ["quality", "--out", str(out), *QUICK, *more])


def silent(_: float, __: str) -> None:
    """Tell nobody."""


@pytest.mark.usefixtures("tiny")
def test_the_whole_experiment(tmp_path: Path) -> None:
    """Results, curves that load, a plot and a table; done, it is not done again."""
    out = tmp_path / "quality"
    result = run(out)
    assert result.exit_code == 0, result.output
    assert "| task arithmetic |" in result.stdout
    results = json.loads((out / "results.json").read_text())
    assert results["format"] == "moesim-quality"
    assert set(results["families"]) == {"byte-moe", "byte-switch"}
    assert set(results["domains"]) == {"ada", "bob", "eve"}
    for name in results["families"]:
        curve = load_curve(str(out / f"{name}.yaml"))
        assert curve.model == name
    assert (out / "quality.svg").read_text().startswith("<svg")
    again = run(out)
    assert again.exit_code == 2
    assert "has results already; remove it or choose another --out" in again.stderr
    assert again.stderr.count("\n") == 1


@pytest.mark.usefixtures("tiny")
def test_it_goes_on_where_it_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stopped in the second family, the first is neither trained nor measured again."""
    plan = Plan(steps=1, fine_steps=1, training_kib=1)

    def broken(*_: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setitem(command.STUDIES, "byte-switch", broken)
        with pytest.raises(KeyboardInterrupt):
            command.run(plan, tmp_path / "one", silent)
    assert not (tmp_path / "one" / "results.json").exists()
    with monkeypatch.context() as patched:
        patched.setitem(command.STUDIES, "byte-moe", broken)
        resumed = command.run(plan, tmp_path / "one", silent)
    assert resumed == command.run(plan, tmp_path / "other", silent)


@pytest.mark.usefixtures("tiny")
def test_models_of_another_plan_are_not_mixed(tmp_path: Path) -> None:
    command._claim(tmp_path, Plan(steps=2), [])
    with pytest.raises(EngineError, match="has models of another plan or host; choose another"):
        command._claim(tmp_path, Plan(steps=3), [])
    command._claim(tmp_path, Plan(steps=2), [])


def test_a_folder_of_other_things_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = run(tmp_path)
    assert result.exit_code == 2
    assert "exists already, with other files; choose another --out" in result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_too_little_text_on_a_host(tmp_path: Path) -> None:
    result = run(tmp_path / "out", "--training-kib", "1000000")
    assert result.exit_code == 2
    assert "this host has" in result.stderr
    assert not (tmp_path / "out").exists()


def test_a_plan_of_nothing() -> None:
    with pytest.raises(EngineError, match="quality: seeds: 0 must be 1 or more"):
        Plan(seeds=0)


@pytest.mark.parametrize("name", sorted(command.STUDIES))
def test_the_shapes_of_the_experiment_are_shipped(name: str) -> None:
    """32 expert positions each, and few enough parameters to train in minutes."""
    spec = command.shape(name)
    assert spec == load_model(name, architectures=ARCHITECTURES)
    assert spec.expert_positions == 32
    assert spec.parameters < 2_000_000
