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


def test_refused_requests_are_said_with_the_reason(tmp_path: Path, content: dict[str, Any]) -> None:
    """In rows for scripts, in a line for people; the other deployment has nothing to tell."""
    path = _written(tmp_path, content)
    rows = json.loads(_compare(path, "--json").stdout)
    (note,) = (row for row in rows if row["metric"] == "note")
    assert (note["deployment"], note["statistic"], note["median"]) == ("small", "refused", None)
    assert note["note"] in _compare(path).stdout


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
