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
