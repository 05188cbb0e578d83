"""Tables: human units, one unit a row, and a headline that says how good the prediction was."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from moesim.evidence.compare import compare_replications
from moesim.serving.metrics import STATISTICS, summarise
from moesim.views.tables import (
    COMPARISON_HEADINGS,
    PERCENTILE_HEADINGS,
    comparison_rows,
    estimate,
    headline,
    interval_meaning,
    percentile_rows,
    predicted_group,
)
from moesim.views.wording import in_units, percent, rounded

Predicting = Callable[..., dict[str, Any]]


def test_a_row_has_a_cell_for_every_heading(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    """Measured and predicted in one unit, which is written once."""
    rows = comparison_rows(compare_replications([slower], predicting(records)))
    assert {len(row) for row in rows} == {len(COMPARISON_HEADINGS)}
    assert rows[0] == ("TTFT mean", "2.50 s", "2.00 [1.80, 2.20]", "-20.0 %", "–", "off", "no")
    assert rows[-1][0] == "Output tokens"
    wide = comparison_rows(compare_replications([slower], predicting(records, 0.3)))
    assert wide[0][2:] == ("2.00 [1.40, 2.60]", "-20.0 %", "–", "off", "yes")


def test_headline_counts_what_is_close_and_what_is_hit(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    exact = compare_replications([records, records], predicting(records))
    assert headline(exact).startswith(f"{len(exact)} of {len(exact)} predicted figures")
    assert headline(exact).endswith(
        f"; {len(exact)} of {len(exact)} real ones lie in the predicted 90 % interval."
    )
    off = compare_replications([slower, slower], predicting(records))
    assert headline(off).startswith(f"{int(off['close'].sum())} of {len(off)} ")
    assert f"; {int(off['hit'].sum())} of {len(off)} real ones" in headline(off)
    assert 0 <= off["hit"].sum() < len(off)
    assert "15 %" in headline(off)
    assert "more within" not in headline(off)


def test_headline_sets_apart_what_is_close_by_the_spread_alone(
    records: pd.DataFrame, predicting: Predicting
) -> None:
    """A prediction of runs that differ much is no good one for that."""
    waits = ("first_token_s", "finish_s")
    twice = records.assign(**{name: 2 * records[name] - records["arrival_s"] for name in waits})
    torn = compare_replications([records, twice], predicting(records))
    within = int((torn["error"].abs() <= 0.15).sum())
    looser = int(torn["close"].sum()) - within
    assert looser > 0
    assert headline(torn).startswith(f"{within} of {len(torn)} predicted figures are within 15 %")
    spread = f"{torn['spread'].median():.0%}".replace("%", " %")
    assert f", {looser} more within twice their spread (median {spread}); " in headline(torn)


def test_headline_of_nothing_says_so(records: pd.DataFrame, predicting: Predicting) -> None:
    nothing = compare_replications([records.iloc[:0]], predicting(records))
    assert headline(nothing).startswith("Nothing to compare")


def test_a_prediction_s_intervals_are_found_by_figure(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    """As charts ask for them."""
    group = predicted_group(compare_replications([slower], predicting(records)))
    assert group.value("ttft_s", "mean") == pytest.approx(2.0)
    assert group.interval("ttft_s", "mean") == pytest.approx([1.8, 2.2])


def test_one_tenant_is_not_repeated_as_everyone(records: pd.DataFrame) -> None:
    rows = percentile_rows(summarise(records))
    assert [row[0] for row in rows] == ["chat"] * 3
    assert {len(row) for row in rows} == {len(PERCENTILE_HEADINGS)}


def test_several_tenants_are_followed_by_everyone(records: pd.DataFrame) -> None:
    two = pd.concat([records, records.assign(tenant="code")])
    names = [row[0] for row in percentile_rows(summarise(two))]
    assert names == ["chat"] * 3 + ["code"] * 3 + ["all tenants"] * 3


def _estimated(metrics: dict[str, Any]) -> dict[str, Any]:
    """Give every latency of the tenant chat the same interval."""
    latencies = {name: {key: [0.5, 20] for key in STATISTICS} for name in ("ttft_s", "tpot_s")}
    return metrics | {
        "replications": 20,
        "varied": "profile",
        "coverage": 0.9,
        "intervals": {"tenants": {"chat": latencies}, "overall": {}},
    }


def test_a_cell_has_its_interval_in_the_row_s_unit(records: pd.DataFrame) -> None:
    """Of TTFT 1, 2 and 3 s the median is 2 s; a figure without interval stands alone."""
    rows = percentile_rows(_estimated(summarise(records)))
    assert rows[0][:4] == ("chat", "TTFT", *["2.00 [0.500, 20.0] s"] * 2)
    assert rows[-1][:3] == ("chat", "Turnaround", "3.00 s")


def test_gaps_between_tokens_stand_beside_their_means(records: pd.DataFrame) -> None:
    """Where there is a log to know them from."""
    known = summarise(records)
    known["tenants"]["chat"]["itl_s"] = dict.fromkeys(STATISTICS, 0.1)
    assert [row[1] for row in percentile_rows(known)] == ["TTFT", "TPOT", "ITL", "Turnaround"]


def test_what_an_interval_means_is_said_only_where_there_is_one(records: pd.DataFrame) -> None:
    assert interval_meaning(summarise(records)) == ""
    assert interval_meaning(_estimated(summarise(records))) == (
        "median [low, high] over 19 runs, profile redrawn: 90 % of single runs fall inside"
    )


@pytest.mark.parametrize(
    ("value", "interval", "scale", "shown"),
    [
        (0.5, [0.25, 1.0], 100, ("50.0", "[25.0, 100]")),
        (1200, [0, 3000], 1, ("1,200", "[0, 3,000]")),
        (2.0, None, 1, ("2.00", "")),
        (None, None, 1, ("–", "")),
        (float("nan"), [1.0, 2.0], 1, ("–", "")),
    ],
)
def test_an_estimate_in_words(
    value: float | None, interval: list[float] | None, scale: float, shown: tuple[str, str]
) -> None:
    """Counts are whole, other numbers have three digits."""
    assert estimate(value, interval, scale) == shown


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
