"""Tables: human units, one unit a row, and a headline that says how good the prediction was."""

import pandas as pd
import pytest

from moesim.evidence.compare import compare
from moesim.serving.metrics import summarise
from moesim.views.tables import (
    COMPARISON_HEADINGS,
    PERCENTILE_HEADINGS,
    comparison_rows,
    headline,
    percentile_rows,
)
from moesim.views.wording import in_units, percent, rounded


def test_a_row_has_a_cell_for_every_heading(records: pd.DataFrame, slower: pd.DataFrame) -> None:
    rows = comparison_rows(compare([slower], records))
    assert {len(row) for row in rows} == {len(COMPARISON_HEADINGS)}
    assert rows[0] == ("TTFT mean", "2.50 s", "2.00 s", "-20.0 %", "–", "off")
    assert rows[-1][0] == "Output tokens"


def test_headline_counts_what_is_close(records: pd.DataFrame, slower: pd.DataFrame) -> None:
    exact = compare([records, records], records)
    assert headline(exact).startswith(f"{len(exact)} of {len(exact)} predicted figures")
    off = compare([slower, slower], records)
    assert headline(off).startswith(f"{int(off['close'].sum())} of {len(off)} ")
    assert "15 %" in headline(off)


def test_headline_of_nothing_says_so(records: pd.DataFrame) -> None:
    assert headline(compare([records.iloc[:0]], records)).startswith("Nothing to compare")


def test_one_tenant_is_not_repeated_as_everyone(records: pd.DataFrame) -> None:
    rows = percentile_rows(summarise(records))
    assert [row[0] for row in rows] == ["chat"] * 3
    assert {len(row) for row in rows} == {len(PERCENTILE_HEADINGS)}


def test_several_tenants_are_followed_by_everyone(records: pd.DataFrame) -> None:
    two = pd.concat([records, records.assign(tenant="code")])
    names = [row[0] for row in percentile_rows(summarise(two))]
    assert names == ["chat"] * 3 + ["code"] * 3 + ["all tenants"] * 3


@pytest.mark.parametrize(
    ("values", "shown"),
    [
        ([0.9996, 0.0471], ["1,000 ms", "47.1 ms"]),
        ([1.15, 0.9], ["1.15 s", "0.900 s"]),
        ([None, float("nan")], ["–", "–"]),
    ],
)
def test_a_row_of_durations_shares_a_unit(values: list[float | None], shown: list[str]) -> None:
    assert in_units("ttft_s", values) == shown


def test_numbers_keep_three_digits() -> None:
    assert [rounded(value) for value in (0.0, 3.0416, 99.95, 123.4, 1234.5)] == [
        "0.00",
        "3.04",
        "100",
        "123",
        "1,234",
    ]


def test_percent_has_a_sign_where_asked() -> None:
    assert [percent(0.081), percent(0.081, signed=True), percent(float("nan"))] == [
        "8.1 %",
        "+8.1 %",
        "–",
    ]
