"""Validation folders: read whole, and broken ones named in one line."""

import json
from pathlib import Path

import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.evidence.compare import compare
from moesim.evidence.validation import load_validation, named_tables
from moesim.serving.records import write_records


@pytest.fixture
def folder(tmp_path: Path, records: pd.DataFrame) -> Path:
    """Eleven real runs, so that run 10 must not be sorted before run 2."""
    for number in range(1, 12):
        write_records(records, tmp_path / f"measured-{number}.parquet")
    write_records(records, tmp_path / "predicted.parquet")
    rows = json.loads(compare([records], records).to_json(orient="records"))
    content = {"comparison": rows, "facts": {"threads": 2}, "notes": ["short"]}
    (tmp_path / "comparison.json").write_text(json.dumps(content))
    return tmp_path


def test_everything_is_read(folder: Path, records: pd.DataFrame) -> None:
    found = load_validation(folder)
    assert len(found.measured) == 11
    assert found.facts == {"threads": "2"}
    assert found.notes == ["short"]
    pd.testing.assert_frame_equal(found.comparison, compare([records], records))
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
        ("comparison.json", '{"comparison": [{"metric": 1}]}', "expected rows of metric"),
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
