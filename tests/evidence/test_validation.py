"""Validation folders: read whole, and broken ones named in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.evidence.compare import compare_replications
from moesim.evidence.validation import load_validation, named_tables
from moesim.serving.records import write_records


@pytest.fixture
def comparison(records: pd.DataFrame, predicting: Callable[..., dict[str, Any]]) -> pd.DataFrame:
    return compare_replications([records], predicting(records))


@pytest.fixture
def folder(tmp_path: Path, records: pd.DataFrame, comparison: pd.DataFrame) -> Path:
    """Eleven real runs, so that run 10 must not be sorted before run 2."""
    for number in range(1, 12):
        write_records(records, tmp_path / f"measured-{number}.parquet")
    write_records(records, tmp_path / "predicted.parquet")
    rows = json.loads(comparison.to_json(orient="records"))
    content = {"comparison": rows, "facts": {"threads": 2}, "notes": ["short"]}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    return tmp_path


def test_everything_is_read(folder: Path, comparison: pd.DataFrame) -> None:
    found = load_validation(folder)
    assert len(found.measured) == 11
    assert found.facts == {"threads": "2"}
    assert found.notes == ["short"]
    pd.testing.assert_frame_equal(found.comparison, comparison)
    assert list(named_tables(found.measured, found.predicted))[9:] == [
        "measured 10",
        "measured 11",
        "predicted",
    ]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("comparison.json", "{", "comparison.json: not readable"),
        ("comparison.json", "[]", "expected comparison, facts and notes"),
        (
            "comparison.json",
            '{"comparison": [{"metric": 1}]}',
            "comparison: its rows lack statistic,",
        ),
        ("comparison.json", '{"comparison": {"metric": 1}}', "expected a list of rows"),
        ("predicted.parquet", "text", "predicted.parquet: not a record table"),
    ],
)
def test_a_broken_file_is_named(folder: Path, name: str, text: str, says: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(ScenarioError, match=says):
        load_validation(folder)


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        (["facts"], [1, 2], r"facts: \[1, 2\] is not names and values"),
        (["facts"], 3, "facts: 3 is not names and values"),
        (["notes"], 3, "notes: 3 is not a list"),
        (["notes"], "x", "notes: 'x' is not a list"),
        (["tenants"], 3, "tenants: expected a list of rows"),
        (["tenants"], [3], "tenants: expected a list of rows"),
        (["comparison", 0], None, "comparison: expected a list of rows"),
        (["comparison", 0, "metric"], [1], r"comparison\.0\.metric: \[1\] is not possible"),
        (["comparison", 0, "metric"], "speed", r"0\.metric: 'speed' is not possible"),
        (["comparison", 0, "measured"], {}, r"0\.measured: {} is not possible"),
        (["comparison", 0, "predicted"], 10**400, r"0\.predicted: 10+ is not possible"),
        (["comparison", 1, "error"], "x", r"1\.error: 'x' is not possible"),
        (["comparison", 1, "hit"], "no", r"1\.hit: 'no' is not possible"),
    ],
)
def test_a_comparison_that_is_none(
    folder: Path, place: list[str | int], value: object, says: str
) -> None:
    """Each part of another kind: the file, the part and the value are named."""
    content = json.loads((folder / "comparison.json").read_text())
    part: Any = content
    for key in place[:-1]:
        part = part[key]
    part[place[-1]] = value
    (folder / "comparison.json").write_text(json.dumps(content))
    with pytest.raises(ScenarioError, match=rf"comparison\.json: .*{says}.*validate again"):
        load_validation(folder)


def test_no_real_run_is_an_error(folder: Path) -> None:
    for path in folder.glob("measured-*.parquet"):
        path.unlink()
    with pytest.raises(ScenarioError, match=r"no measured-1\.parquet"):
        load_validation(folder)


def test_a_validation_without_intervals_must_be_made_again(folder: Path) -> None:
    """As they were written once: no end is made up, and nothing is missed by default."""
    path = folder / "comparison.json"
    content = json.loads(path.read_text())
    for row in content["comparison"]:
        del row["low"], row["high"], row["hit"]
    path.write_text(json.dumps(content))
    with pytest.raises(ScenarioError) as told:
        load_validation(folder)
    assert str(told.value) == (
        f"{path}: comparison: its rows lack low, high, hit, as those of older versions do; "
        "validate again"
    )
