"""Small batches as published: vLLM of early 2024, of which one does not judge, and gpt-fast."""

from pathlib import Path

import pandas as pd
import pytest

from moesim.evidence.accuracy.outcome import Choice, accuracy

TABLE = Path(__file__).parents[3] / "data/published/small_batches.csv"


@pytest.fixture(scope="module")
def rows() -> pd.DataFrame:
    return accuracy(TABLE, Choice()).judged


def test_every_row_is_predicted(rows: pd.DataFrame) -> None:
    """All judge but the one on which a rate was found."""
    assert len(rows) + 1 == len(TABLE.read_text().splitlines()) - 1 == 27


def test_one_and_more_sequences_on_two_a100(rows: pd.DataFrame) -> None:
    """0.762 s for one request to 7.537 s for 64, with tuned tiles."""
    tuned = rows[rows["software"].str.contains("tuned tiles")]
    assert len(tuned) == 6
    assert tuned["error"].abs().max() < 0.10


def test_tiles_that_nobody_tuned_and_nccl(rows: pd.DataFrame) -> None:
    """Eight H100, of which the tables' kernels alone would make 19 to 49 % too little."""
    h100 = rows[(rows["device"] == "h100-sxm-80gb") & (rows["tp"] == 8)]
    assert len(h100) == 7
    assert h100["error"].abs().max() < 0.09


def test_the_same_tiles_on_a100(rows: pd.DataFrame) -> None:
    a100 = rows[rows["software"] == "vLLM 0.3.3"]
    assert len(a100) == 7
    assert a100["error"].abs().max() < 0.18


def test_experts_of_eight_bits(rows: pd.DataFrame) -> None:
    fast = rows[rows["precision"] == "INT8"]
    assert sorted(fast["tp"]) == [1, 2, 8]
    assert fast["error"].abs().max() < 0.11
