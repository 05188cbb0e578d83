"""Columns say what a frame of them says, whether a column is written out or one value."""

import numpy as np
import pandas as pd
import pytest

from moesim.serving.columns import Columns, joined


@pytest.fixture
def written() -> pd.DataFrame:
    """Return three rows in which one column of text and one of numbers are alike."""
    return pd.DataFrame(
        {
            "tenant": ["chat"] * 3,
            "arrival_s": [0.5, 0.25, 1.0],
            "swaps": [0] * 3,
            "replica": ["m/0", "m/1", "m/0"],
        }
    )


@pytest.fixture
def columns(written: pd.DataFrame) -> Columns:
    """Return the same as columns."""
    return Columns(
        3,
        {
            "tenant": "chat",
            "arrival_s": written["arrival_s"].to_numpy(),
            "swaps": 0,
            "replica": written["replica"].to_numpy(dtype=object),
        },
    )


def test_the_frame_is_as_if_all_had_been_written_out(
    columns: Columns, written: pd.DataFrame
) -> None:
    """Types of columns too."""
    pd.testing.assert_frame_equal(columns.frame, written)
    pd.testing.assert_frame_equal(Columns.of(written).frame, written)
    assert columns.frame is columns.frame
    assert len(columns) == 3


def test_one_value_reads_as_an_array(columns: Columns, written: pd.DataFrame) -> None:
    for name in written:
        assert columns[name].tolist() == written[name].tolist()
    assert (columns.value("tenant"), columns.value("swaps")) == ("chat", 0)
    assert columns.value("replica") is None
    with pytest.raises(KeyError, match="model"):
        columns["model"]


def test_where_compares_row_by_row(columns: Columns) -> None:
    assert columns.where("replica", "m/0").tolist() == [True, False, True]
    assert columns.where("tenant", "chat").tolist() == [True] * 3
    assert columns.where("tenant", "code").tolist() == [False] * 3


@pytest.mark.parametrize(
    "rows", [slice(1, None, 2), np.array([True, False, True]), np.array([2, 0, 0, 1])]
)
def test_some_rows_are_those_of_the_frame(
    columns: Columns, written: pd.DataFrame, rows: slice | np.ndarray
) -> None:
    """Slices, masks and places, in any order and repeated."""
    places = np.arange(3)[rows]
    expected = written.iloc[places].reset_index(drop=True)
    pd.testing.assert_frame_equal(columns.take(rows).frame, expected)


def test_parts_follow_each_other(columns: Columns, written: pd.DataFrame) -> None:
    """What is alike in all parts stays one value; what only one part has alike is written out."""
    other = columns.assign(tenant="code", replica="m/2")
    both = joined([columns, other])
    expected = pd.concat([written, written.assign(tenant="code", replica="m/2")])
    pd.testing.assert_frame_equal(both.frame, expected.reset_index(drop=True))
    assert both.value("swaps") == 0
    assert both.value("tenant") is None


def test_columns_are_chosen_and_left_out(columns: Columns) -> None:
    assert list(columns.only(["swaps", "tenant"]).frame) == ["swaps", "tenant"]
    assert "tenant" in columns
    assert "tenant" not in columns.without("tenant")
    assert list(columns.without("model").frame) == list(columns.frame)


def test_attributes_go_with_the_rows(columns: Columns) -> None:
    """Of a frame, to the columns, to some of them, to a frame."""
    columns.attrs["prefix_block"] = 16
    again = Columns.of(columns.take(slice(2)).frame)
    assert again.frame.attrs == {"prefix_block": 16}
