"""Measured beside predicted: errors, spreads, intervals and hits, worked by hand."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.evidence.compare import COLUMNS, ERRORS, compare, compare_replications
from moesim.serving.metrics import summarise

Predicting = Callable[..., dict[str, Any]]


def of(comparison: pd.DataFrame, metric: str, statistic: str) -> dict[str, Any]:
    """Return the row of a figure."""
    rows = comparison[(comparison["metric"] == metric) & (comparison["statistic"] == statistic)]
    return dict(rows.iloc[0])


def test_a_row_worked_by_hand(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    """TTFT means of 2 s and 2.5 s; predicted are 2 s, give or take a tenth."""
    row = of(compare_replications([records, slower], predicting(records)), "ttft_s", "mean")
    assert row["measured"] == pytest.approx(2.25)
    assert [row[name] for name in ("predicted", "low", "high")] == pytest.approx([2, 1.8, 2.2])
    assert row["error"] == pytest.approx(2 / 2.25 - 1)
    assert row["spread"] == pytest.approx(0.5 / 2.25)


def test_a_single_prediction_has_no_interval(records: pd.DataFrame, slower: pd.DataFrame) -> None:
    """Its errors are those of a median where all replications are alike."""
    alone = compare([records, slower], records)
    assert list(alone.columns) == list(ERRORS)
    row = of(alone, "ttft_s", "mean")
    assert row["error"] == pytest.approx(2 / 2.25 - 1)
    assert row["close"]


@pytest.mark.parametrize(("share", "hit"), [(0.1, False), (0.12, False), (0.13, True)])
def test_the_mean_of_the_runs_must_lie_inside(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting, share: float, hit: bool
) -> None:
    """It is 2.25 s; that one run is 2 s, as predicted, does not help."""
    row = of(compare_replications([records, slower], predicting(records, share)), "ttft_s", "mean")
    assert row["hit"] == hit


def test_the_ends_are_inside(records: pd.DataFrame, predicting: Predicting) -> None:
    """An interval without width is hit by what is exactly as predicted."""
    assert compare_replications([records], predicting(records, 0.0))["hit"].all()


def test_close_and_hit_are_two_questions(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    """An interval is honest where it is wide, and a prediction may be close by luck."""
    wide = (
        compare_replications([slower], predicting(records, 0.5)).set_index("metric").loc["ttft_s"]
    )
    assert (wide["hit"] & ~wide["close"]).all()
    narrow = compare_replications(
        [slower], predicting(slower, 0.01) | {"overall": summarise(slower)["overall"]}
    )
    assert (narrow["hit"] & narrow["close"]).all()
    missed = compare_replications([records, slower], predicting(records, 0.01)).set_index("metric")
    assert (missed.loc["ttft_s", "close"] & ~missed.loc["ttft_s", "hit"]).all()


def test_a_figure_that_one_side_lacks_has_no_row(
    records: pd.DataFrame, predicting: Predicting
) -> None:
    """Answers of one token have no time per token."""
    short = records.assign(output_tokens=1)
    for measured, predicted in ((records, short), (short, records), (short, short)):
        comparison = compare_replications([measured], predicting(predicted))
        assert list(comparison.columns) == list(COLUMNS)
        assert "tpot_s" not in set(comparison["metric"])
        assert len(comparison) == 12
    assert compare_replications([records.iloc[3:]], predicting(records)).empty


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"coverage": None, "intervals": None, "replications": 1}, "replications: 1: "),
        ({"coverage": 4 / 6, "replications": 6}, "replications: 6: .* predict with 20"),
    ],
)
def test_intervals_must_hold_nine_in_ten(
    records: pd.DataFrame, predicting: Predicting, changes: dict[str, Any], words: str
) -> None:
    """A hit would mean something else."""
    with pytest.raises(ScenarioError, match=words):
        compare_replications([records], predicting(records) | changes)
    with pytest.raises(ScenarioError, match="no intervals"):
        compare_replications([records], summarise(records))
