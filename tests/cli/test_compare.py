"""`moesim compare` as a person runs it: what limits the figures, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.facts.catalog import shipped


def _compare(*words: object) -> Result:
    return CliRunner().invoke(app, ["compare", *map(str, words), "--replications", "1"])


@pytest.fixture
def content() -> dict[str, Any]:
    """Return the shipped quickstart with an alternative of one KV block: it refuses all."""
    found = dict(yaml.safe_load(shipped("scenarios")["quickstart"].read_text()))
    small = {"kind": "dedicated", "kv_blocks": 1}
    return found | {"duration_s": 20, "alternatives": {"small": small}}


def _written(folder: Path, content: dict[str, Any]) -> Path:
    path = folder / "s.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_experts_in_host_memory_are_said_of_the_deployment_that_has_them() -> None:
    """Of one card; two hold all of them."""
    out = _compare("offloaded").stdout
    lines = [line for line in out.splitlines() if "in host memory" in line]
    (said,) = lines
    assert said.endswith(": in host memory: 50 of 256 expert copies of mixtral")


def test_refused_requests_are_said_with_the_reason(tmp_path: Path, content: dict[str, Any]) -> None:
    """In rows for scripts, in a line for people; beside it the other deployment's none."""
    path = _written(tmp_path, content)
    rows = json.loads(_compare(path, "--json").stdout)
    (note,) = (row for row in rows if row["statistic"] == "refused")
    assert (note["deployment"], note["median"]) == ("small", None)
    table = _compare(path).stdout
    assert note["note"] in table
    refused = {row["deployment"]: row["median"] for row in rows if row["metric"] == "refused"}
    (asked,) = {int(word) for word in note["note"].split()[:3] if word.isdigit()}
    assert refused == {"dedicated (the scenario's)": 0, "small": asked}
    assert " refused " in table.splitlines()[2]


def test_devices_are_told_where_they_differ(tmp_path: Path, content: dict[str, Any]) -> None:
    """What answers sooner with twice the devices is no better a deployment."""
    content["hardware"] = {**content["hardware"], "count": 2}
    other = {"kind": "dedicated", "scheduler": {"max_num_seqs": 2}}
    content["alternatives"] = {"other": other}
    path = _written(tmp_path, content)
    assert "GPUs" not in _compare(path).stdout
    assert '"devices"' not in _compare(path, "--json").stdout
    content["alternatives"] = {"other": {**other, "replicas": 2}}
    path = _written(tmp_path, content)
    assert "GPUs" in _compare(path).stdout
    rows = json.loads(_compare(path, "--json").stdout)
    taken = {row["deployment"]: row["median"] for row in rows if row["metric"] == "devices"}
    assert taken == {"dedicated (the scenario's)": 1, "other": 2}


def test_what_no_target_judges_is_a_dash(tmp_path: Path, content: dict[str, Any]) -> None:
    """In a table, and null in JSON."""
    del content["tenants"]["chat"]["slo"]
    rows = json.loads(_compare(_written(tmp_path, content), "--json").stdout)
    for row in rows:
        if row["metric"] in ("goodput_rps", "slo_attainment"):
            assert (row["median"], row["ratio"]) == (None, None)


def test_users_that_round_are_noted(tmp_path: Path, content: dict[str, Any]) -> None:
    """Half of three users are two."""
    content["tenants"]["chat"]["arrivals"] = {"kind": "users", "count": 3, "think_s": 5}
    done = _compare(_written(tmp_path, content), "--loads", "0.5,1")
    assert done.exit_code == 0, done.stderr
    assert done.stdout.count("warning: tenants.chat: 3 users x 0.5 is rounded to 2") == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--loads", "1,1.0"], "a load is given twice"),
        (["--loads", "1e308"], "load: 1e+308 must be a number from 0.001 to 1000"),
        (["--loads", ""], "--loads: is empty"),
        (["--plot", "s.yaml"], "--plot: s.yaml: is read as input"),
        (["--plot", "."], "is a folder"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    content: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    _written(tmp_path, content)
    monkeypatch.chdir(tmp_path)
    done = _compare("s.yaml", *words)
    assert done.exit_code == 2
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
