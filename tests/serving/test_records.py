"""Records: stamped in order, written whole or not at all, read back as they were."""

from pathlib import Path

import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.files import atomic_path, write_text
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import (
    COLUMNS,
    COMPLETED,
    REFUSED,
    UNFINISHED,
    Ledger,
    Record,
    read_records,
    records_frame,
    write_records,
)
from moesim.serving.scheduling import Limits, Scheduler
from moesim.serving.sequences import Sequence

DONE = Record(
    request_id=0,
    tenant="chat",
    model="m",
    replica="m/0",
    arrival_s=0.1 + 0.2,
    scheduled_s=1 / 3,
    first_token_s=0.5,
    finish_s=2 / 3,
    prompt_tokens=3,
    output_tokens=2,
    preemptions=1,
    outcome=COMPLETED,
)
TURNED_AWAY = Record(
    request_id=1,
    tenant="batch",
    model="m",
    replica="m/0",
    arrival_s=1.0,
    outcome=REFUSED,
    detail="empty prompt",
)


@pytest.fixture
def frame() -> pd.DataFrame:
    """Return a table of one completed and one refused request."""
    return records_frame([DONE, TURNED_AWAY])


def test_a_ledger_stamps_a_request_from_arrival_to_finish() -> None:
    """Prompt 6 under a budget of 4: scheduled at 1, first token at 3, second and last at 4."""
    limits = Limits(max_num_seqs=2, max_batched_tokens=4, max_model_len=32)
    scheduler = Scheduler(limits, KvCache(num_blocks=8, block_size=4))
    ledger = Ledger()
    ledger.open(Record(request_id=0, tenant="t", model="m", replica="r", arrival_s=0.5))
    scheduler.submit(Sequence(0, prompt_tokens=6, output_tokens=2))
    for begin in (1.0, 2.0, 3.0):
        batch = scheduler.schedule()
        ledger.scheduled(batch, begin)
        assert ledger.records[0].outcome == UNFINISHED
        ledger.advanced(batch, *scheduler.advance(batch), begin + 1)
    row = ledger.frame().iloc[0]
    assert (row.arrival_s, row.scheduled_s, row.first_token_s, row.finish_s) == (0.5, 1, 3, 4)
    assert row.outcome == COMPLETED


def test_a_preempted_request_keeps_its_first_stamps() -> None:
    """Blocks of 1, four of them: the second request is put back and later starts from context 0.

    Both emit their first token at 1. The second is preempted in the iteration from 1 to 2, is
    scheduled anew from 2 to 3, and still was scheduled at 0 with its first token at 1.
    """
    limits = Limits(max_num_seqs=2, max_batched_tokens=8, max_model_len=32)
    scheduler = Scheduler(limits, KvCache(num_blocks=4, block_size=1))
    ledger = Ledger()
    for number in range(2):
        ledger.open(Record(request_id=number, tenant="t", model="m", replica="r", arrival_s=0))
        scheduler.submit(Sequence(number, prompt_tokens=2, output_tokens=2))
    for begin in (0.0, 1.0, 2.0):
        batch = scheduler.schedule()
        ledger.scheduled(batch, begin)
        ledger.advanced(batch, *scheduler.advance(batch), begin + 1)
    frame = ledger.frame()
    assert frame["scheduled_s"].tolist() == [0, 0]
    assert frame["first_token_s"].tolist() == [1, 1]
    assert frame["finish_s"].tolist() == [2, 3]
    assert frame["preemptions"].tolist() == [0, 1]


def test_a_refused_request_has_a_reason_and_no_times() -> None:
    """Its arrival is all that is known of it."""
    ledger = Ledger()
    ledger.open(Record(request_id=3, tenant="t", model="m", replica="r", arrival_s=0.5))
    ledger.refuse(3, "empty prompt")
    row = ledger.frame().iloc[0]
    assert (row.outcome, row.detail) == (REFUSED, "empty prompt")
    assert row[["scheduled_s", "first_token_s", "finish_s"]].isna().all()


def test_a_ledger_lists_by_request_id() -> None:
    """Whatever the order in which requests reached it."""
    ledger = Ledger()
    for number in (2, 0, 1):
        ledger.open(Record(request_id=number, tenant="t", model="m", replica="r", arrival_s=0))
    assert ledger.frame()["request_id"].tolist() == [0, 1, 2]


def test_parquet_gives_back_the_same_table(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Every column, to the last bit, NaN and empty text included."""
    write_records(frame, tmp_path / "records.parquet")
    pd.testing.assert_frame_equal(
        read_records(tmp_path / "records.parquet"), frame, check_exact=True
    )


def test_csv_gives_back_the_same_figures(frame: pd.DataFrame, tmp_path: Path) -> None:
    """Names and numbers, to the last bit."""
    write_records(frame, tmp_path / "records.csv")
    again = read_records(tmp_path / "records.csv")
    known = [name for name in COLUMNS if name != "detail"]
    assert list(again.columns) == list(COLUMNS)
    pd.testing.assert_frame_equal(again[known], frame[known], check_exact=True)
    assert again["detail"].iloc[1] == "empty prompt"


def test_an_empty_table_has_every_column() -> None:
    """Nobody came, and the columns are still those of a record."""
    assert tuple(records_frame([]).columns) == COLUMNS


def test_writing_replaces_the_former_table_and_nothing_else(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    """No draft is left beside it; missing folders are made."""
    path = tmp_path / "new" / "records.parquet"
    write_records(frame.iloc[:1], path)
    write_records(frame, path)
    assert len(read_records(path)) == 2
    assert list(path.parent.iterdir()) == [path]


def test_a_table_that_cannot_be_written_leaves_the_former(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    """Parquet has no column for things; the good table stays and no draft is left."""
    path = tmp_path / "records.parquet"
    write_records(frame, path)
    before = path.read_bytes()
    with pytest.raises(Exception, match="Could not convert"):
        write_records(frame.assign(detail=[object(), 1]), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_draft_that_fails_vanishes(tmp_path: Path) -> None:
    """Half a file is no file."""

    def half(path: Path) -> None:
        with atomic_path(path) as draft:
            draft.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        half(tmp_path / "file.txt")
    assert list(tmp_path.iterdir()) == []


def test_a_draft_is_not_seen_under_its_name_until_it_is_whole(tmp_path: Path) -> None:
    """Readers see the former text while the new one is written."""
    path = tmp_path / "file.txt"
    write_text(path, "old")
    with atomic_path(path) as draft:
        draft.write_text("new")
        assert path.read_text() == "old"
    assert path.read_text() == "new"


@pytest.mark.parametrize("name", ["records.xlsx", "records"])
def test_another_format_is_refused(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    """Two formats, named in the message."""
    with pytest.raises(ScenarioError, match=r"\.parquet or \.csv"):
        write_records(frame, tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_a_table_without_a_column_is_refused(
    frame: pd.DataFrame, tmp_path: Path, suffix: str
) -> None:
    """The first missing column is named."""
    path = tmp_path / f"other{suffix}"
    frame = frame.drop(columns=["finish_s", "outcome"])
    frame.to_csv(path, index=False) if suffix == ".csv" else frame.to_parquet(path, index=False)
    with pytest.raises(ScenarioError, match="column 'finish_s' is missing"):
        read_records(path)


@pytest.mark.parametrize("name", ["r.csv", "r.parquet"])
def test_what_is_no_table_is_refused(tmp_path: Path, name: str) -> None:
    """Absent, empty, or something else."""
    path = tmp_path / name
    with pytest.raises(ScenarioError, match="no such record table"):
        read_records(path)
    path.write_text("")
    with pytest.raises(ScenarioError, match="not a record table"):
        read_records(path)
    path.write_text("hello\n")
    with pytest.raises(ScenarioError, match="not a record table"):
        read_records(path)
