"""Reading a table of results: every way in which a file can be broken is one line."""

from pathlib import Path

import pytest

from moesim.errors import ScenarioError
from moesim.evidence.accuracy.table import COLUMNS, read_table

GOOD = {
    "source": "s", "model": "Mixtral-8x7B", "gpu": "H100", "tp": "2", "ep": "1",
    "precision": "FP8", "isl": "128", "osl": "64", "load": "inf", "scenario": "offline_max_load",
    "metric": "output_tokens_per_s", "value": "1000.5", "software": "TensorRT-LLM 0.14", "note": "",
}  # fmt: skip


def _written(path: Path, *, names: tuple[str, ...] = COLUMNS, **changed: str) -> Path:
    fields = [(GOOD | changed).get(name, "") for name in names]
    path.write_text(",".join(names) + "\n" + ",".join(fields) + "\n")
    return path


def test_a_row_is_read(tmp_path: Path) -> None:
    (row,) = read_table(_written(tmp_path / "t.csv"))
    assert (row.line, row.model, row.tp, row.isl, row.value) == (2, "Mixtral-8x7B", 2, 128, 1000.5)
    assert row.n_gpus is None


def test_columns_come_in_any_order_and_under_their_other_name(tmp_path: Path) -> None:
    names = ("n_gpus", *reversed(COLUMNS))
    path = _written(tmp_path / "t.csv", names=names, n_gpus="8")
    path.write_text(path.read_text().replace("load", "concurrency_or_rate", 1))
    (row,) = read_table(path)
    assert (row.load, row.n_gpus) == ("inf", 8)


def test_columns_come_in_any_case(tmp_path: Path) -> None:
    path = _written(tmp_path / "t.csv")
    header, rest = path.read_text().split("\n", 1)
    path.write_text(f"{header.title()}\n{rest}")
    (row,) = read_table(path)
    assert (row.gpu, row.isl) == ("H100", 128)


@pytest.mark.parametrize("mark", [";", "\t"])
def test_other_marks_than_commas_are_one_short_line(tmp_path: Path, mark: str) -> None:
    path = _written(tmp_path / "t.csv")
    path.write_text(path.read_text().replace(",", mark))
    with pytest.raises(ScenarioError, match="part them by commas") as wrong:
        read_table(path)
    assert len(str(wrong.value)) < len(str(path)) + 60


def test_what_is_empty_is_not_known(tmp_path: Path) -> None:
    (row,) = read_table(_written(tmp_path / "t.csv", tp="", isl="", ep="0"))
    assert (row.tp, row.isl, row.ep) == (None, None, None)


@pytest.mark.parametrize(
    ("column", "value", "said"),
    [
        ("value", "fast", "column value: 'fast' is not a number above zero"),
        ("value", "", "column value: empty"),
        ("value", "nan", "column value: 'nan'"),
        ("value", "-3", "column value: '-3'"),
        ("isl", "12O", "column isl: '12O'"),
        ("osl", "inf", "column osl: 'inf'"),
        ("tp", "1.5", "column tp: '1.5' is not a whole number"),
        ("tp", "two", "column tp: 'two'"),
    ],
)
def test_a_broken_field_is_named_with_its_line(
    tmp_path: Path, column: str, value: str, said: str
) -> None:
    with pytest.raises(ScenarioError, match="line 2") as wrong:
        read_table(_written(tmp_path / "t.csv", **{column: value}))
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_missing_column_is_named(tmp_path: Path) -> None:
    names = tuple(name for name in COLUMNS if name not in ("metric", "gpu"))
    with pytest.raises(ScenarioError, match="line 1: no column gpu, metric"):
        read_table(_written(tmp_path / "t.csv", names=names))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "no column"),
        (b"\xff\xfe\x00", "not readable as text"),
        (",".join(COLUMNS).encode() + b"\na,b\n", "line 2: 2 fields, the header has 14"),
        (",".join(COLUMNS).encode() + b'\n"a', "not readable as CSV"),
    ],
)
def test_a_file_of_another_kind_is_one_line(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(content)
    with pytest.raises(ScenarioError, match=said):
        read_table(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no such file"):
        read_table(tmp_path / "t.csv")
