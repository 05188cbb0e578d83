"""`moesim simulate` as a person runs it."""

import json
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.facts.catalog import shipped
from moesim.scenario import load_scenario
from moesim.serving.series import COLUMNS


def _simulate(*words: object) -> Result:
    return CliRunner().invoke(app, ["simulate", "quickstart", *map(str, words)])


def test_json_carries_medians_and_intervals() -> None:
    """The same places, numbers in one and pairs in the other."""
    metrics = json.loads(_simulate("--json").stdout)
    low, high = metrics["intervals"]["tenants"]["chat"]["itl_s"]["p99"]
    assert low < metrics["tenants"]["chat"]["itl_s"]["p99"] < high
    assert (metrics["replications"], metrics["coverage"]) == (20, 0.9)


def test_one_replication_is_a_single_run() -> None:
    """Nothing in brackets."""
    done = _simulate("--replications", 1)
    assert "[" not in done.stdout.replace("[ms]", "").replace("[s]", "").replace("[%]", "")
    assert "1 run simulated" in done.stdout
    assert "p95" in done.stdout


def test_experts_in_host_memory_are_a_line() -> None:
    """Where some are."""
    done = CliRunner().invoke(app, ["simulate", "offloaded", "--replications", "1"])
    assert "\nin host memory: 50 of 256 expert copies of mixtral\n" in done.stdout
    assert "in host memory" not in _simulate("--replications", 1).stdout


def test_files_are_written_and_named(tmp_path: Path) -> None:
    """Metrics with intervals, a timeline of events, a series of rows."""
    done = _simulate(
        "--out", tmp_path, "--timeline", tmp_path / "t.json", "--series", tmp_path / "s.csv"
    )  # fmt: skip
    assert done.exit_code == 0
    assert done.stdout.count(" written to ") == 3
    assert json.loads((tmp_path / "metrics.json").read_text())["intervals"]
    assert json.loads((tmp_path / "t.json").read_text())["traceEvents"]
    series = pd.read_csv(tmp_path / "s.csv")
    assert list(series) == [*COLUMNS, "kv_use"]
    assert 0 < series["kv_use"].max() < 1
    assert {path.name for path in tmp_path.iterdir()} == {
        "metrics.json", "records.parquet", "s.csv", "scenario.yaml", "t.json",
    }  # fmt: skip


def test_inputs_are_not_written_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the scenario by `--out`, nor a file that it names; and no file twice."""
    _simulate("--replications", 1, "--out", tmp_path)
    monkeypatch.chdir(tmp_path)
    own = tmp_path / "scenario.yaml"
    text = own.read_text()
    for words in (("--out", "."), ("--series", own), ("--series", "a", "--timeline", "a")):
        done = CliRunner().invoke(app, ["simulate", "scenario.yaml", *map(str, words)])
        assert done.exit_code == 2
        assert "choose another place" in done.stderr
    assert own.read_text() == text


def test_the_written_scenario_names_the_profile_used(tmp_path: Path) -> None:
    """So that it gives the same again."""
    profile = tmp_path / "p.json"
    profile.write_text(shipped("profiles")["demo-cpu"].read_text())
    _simulate("--replications", 1, "--profile", profile, "--out", tmp_path / "o")
    written = load_scenario(tmp_path / "o" / "scenario.yaml")
    assert {model.profile for model in written.models.values()} == {str(profile)}


@pytest.mark.parametrize("words", [("--profile", ""), ("--out="), ("--series", "")])
def test_empty_values_are_none(words: tuple[str, ...]) -> None:
    """They are not taken for options that were not given."""
    done = _simulate(*([words] if isinstance(words, str) else words))
    assert done.exit_code == 2
    assert done.stderr.endswith("is empty; give a value or leave it out\n")


def test_json_on_stdout_is_json_alone(tmp_path: Path) -> None:
    """What was written is not said there."""
    done = _simulate("--json", "--series", tmp_path / "s.csv")
    assert json.loads(done.stdout)["scenario"] == "quickstart"


def test_a_file_that_is_there_is_replaced(tmp_path: Path) -> None:
    """Whole, and nothing is left beside it."""
    path = tmp_path / "t.json"
    path.write_text("old")
    assert _simulate("--timeline", path).exit_code == 0
    assert json.loads(path.read_text())["displayTimeUnit"] == "ms"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("count", [0, -1, 2])
def test_counts_that_make_no_sense_are_one_line(count: int) -> None:
    done = _simulate("--replications", count)
    assert (done.exit_code, done.stdout) == (2, "")
    named = "replications: 2: give 1 for" if count == 2 else "Invalid value for '--replications'"
    assert done.stderr.startswith(f"error: {named}")
    assert done.stderr.count("\n") == 1


def test_a_count_is_a_number() -> None:
    done = _simulate("--replications", "abc")
    assert done.exit_code == 2
    assert "--replications" in done.stderr


@pytest.mark.parametrize("option", ["--out", "--timeline", "--series"])
def test_where_nothing_can_be_written_is_one_line(option: str, tmp_path: Path) -> None:
    """Beneath a file there is no folder."""
    (tmp_path / "file").write_text("")
    done = _simulate(option, tmp_path / "file" / "x")
    assert (done.exit_code, done.stdout) == (2, "")
    assert "cannot be written" in done.stderr
    assert done.stderr.count("\n") == 1


def test_an_unknown_gpu_is_said_in_the_first_line(tmp_path: Path) -> None:
    """A few figures of a datasheet and Mixtral: what it rests on, and a wide interval."""
    (tmp_path / "gpu.yaml").write_text(
        "name: my-gpu\nkind: cuda\nmemory_bytes: 137438953472\n"
        "memory_bandwidth_bytes_per_s: 2.2e12\nbf16_flop_per_s: 6.0e14\nsource: a slide\n"
    )
    (tmp_path / "scenario.yaml").write_text(
        "name: planned\nduration_s: 20\n"
        "models: {mixtral: {architecture: mixtral-8x7b, profile: roofline}}\n"
        "tenants:\n  chat:\n    model: mixtral\n    arrivals: {kind: poisson, rate_per_s: 2}\n"
        "    prompt_tokens: {kind: fixed, tokens: 1000}\n"
        "    output_tokens: {kind: fixed, tokens: 100}\n"
        "hardware: {device: gpu.yaml}\ndeployment: {kind: dedicated}\n"
    )
    path = str(tmp_path / "scenario.yaml")
    done = CliRunner().invoke(app, ["simulate", path])
    first, *_ = done.stdout.splitlines()
    assert first == "planned: from datasheets alone (rooflines), nothing was measured"
    assert "warning: nothing of mixtral was measured" in done.stdout
    metrics = json.loads(CliRunner().invoke(app, ["simulate", path, "--json"]).stdout)
    low, high = metrics["intervals"]["tenants"]["chat"]["tpot_s"]["p50"]
    assert high > 2 * low
    assert _simulate().stdout.splitlines()[0] == "quickstart"
