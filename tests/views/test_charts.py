"""Charts: the numbers in them, their units, and that the same name looks the same everywhere."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.evidence.compare import compare_replications
from moesim.views.charts import (
    MOST_POINTS,
    errors,
    latency_cdf,
    running_over_time,
    series_over_time,
)
from moesim.views.tables import Group, comparison_rows
from moesim.views.wording import figure_name

Predicting = Callable[..., dict[str, Any]]


def test_cdf_reaches_each_share_at_its_latency(records: pd.DataFrame) -> None:
    curve = latency_cdf({"predicted": records}, "ttft_s").data[0]
    assert list(curve.x) == [1, 2, 3]
    assert list(curve.y) == pytest.approx([100 / 3, 200 / 3, 100])


def test_short_latencies_are_in_milliseconds(records: pd.DataFrame) -> None:
    quick = records.assign(
        first_token_s=records["arrival_s"] + (records["first_token_s"] - records["arrival_s"]) / 100
    )
    figure = latency_cdf({"predicted": quick}, "ttft_s")
    assert figure.layout.xaxis.title.text == "TTFT [ms]"
    assert list(figure.data[0].x) == pytest.approx([10, 20, 30])


@pytest.mark.parametrize("metric", ["ttft_s", "tpot_s", "turnaround_s"])
def test_every_axis_names_its_unit(records: pd.DataFrame, metric: str) -> None:
    layout = latency_cdf({"predicted": records}, metric).layout
    assert layout.xaxis.title.text.endswith("[s]")
    assert layout.yaxis.title.text == "Requests [%]"
    assert layout.title.text


def test_a_table_without_requests_draws_an_empty_curve(records: pd.DataFrame) -> None:
    figure = latency_cdf({"measured 1": records.iloc[:0], "predicted": records}, "tpot_s")
    assert [len(curve.x) for curve in figure.data] == [0, 2]


def test_targets_are_lines_named_when_they_differ(records: pd.DataFrame) -> None:
    def texts(targets: dict[str, float | None]) -> list[str]:
        layout = latency_cdf({"predicted": records}, "ttft_s", targets).layout
        return [note.text for note in layout.annotations]

    assert texts({"chat": 2.0, "code": 2.0}) == ["target"]
    assert texts({"chat": 2.0, "code": 1.0}) == ["chat", "code"]
    assert texts({"chat": None, "code": 1000.0}) == []


def test_medians_are_marked_with_their_intervals(records: pd.DataFrame) -> None:
    """At the percentile's height, bars from low to high; what has no interval is not marked."""
    group = Group(
        name="chat",
        figures={"ttft_s": {"p50": 0.02, "p99": 0.03}},
        intervals={"ttft_s": {"p50": [0.01, 0.05]}},
    )
    quick = records.assign(first_token_s=records["arrival_s"] + 0.1)
    figure = latency_cdf({"predicted": quick}, "ttft_s", estimates={"predicted": group})
    curve, mark = figure.data
    assert (list(mark.x), list(mark.y)) == ([pytest.approx(20)], [50])
    assert list(mark.error_x.array) == [pytest.approx(30)]
    assert list(mark.error_x.arrayminus) == [pytest.approx(10)]
    assert mark.marker.color == curve.line.color
    plain = latency_cdf({"predicted": quick}, "tpot_s", estimates={"predicted": group})
    assert len(plain.data) == 1


def test_a_series_has_a_panel_a_column() -> None:
    """Each with its unit; shares in percent; without a capacity there is no share."""
    series = pd.DataFrame(
        {
            "time_s": [0.0, 1.0],
            "queued": [0.0, 2.0],
            "running": [1.0, 1.0],
            "kv_use": [0.5, 0.25],
            "tokens_per_s": [10.0, 20.0],
        }
    )
    figure = series_over_time(series)
    assert [list(panel.y) for panel in figure.data] == [[0, 2], [1, 1], [50, 25], [10, 20]]
    assert [note.text for note in figure.layout.annotations] == [
        "Waiting [requests]",
        "Running [requests]",
        "KV cache in use [%]",
        "Generated [tokens/s]",
    ]
    assert figure.layout.xaxis4.title.text == "Time [s]"
    assert len(series_over_time(series.drop(columns="kv_use")).data) == 3


def test_running_counts_arrivals_less_finishes_without_the_refused(records: pd.DataFrame) -> None:
    curve = running_over_time({"predicted": records}).data[0]
    assert list(zip(curve.x, curve.y, strict=True)) == [
        (0, 1),
        (1, 2),
        (2, 3),
        (3, 2),
        (4, 1),
        (5, 0),
    ]


def test_a_name_looks_the_same_in_every_chart(records: pd.DataFrame) -> None:
    tables = {"measured 1": records, "measured 2": records, "predicted": records}
    looks = [
        [(curve.name, curve.line.color, curve.line.dash) for curve in figure.data]
        for figure in (latency_cdf(tables, "ttft_s"), running_over_time(tables))
    ]
    assert looks[0] == looks[1]
    assert [dash for _, _, dash in looks[0]] == ["solid", "solid", "dash"]
    assert len({colour for _, colour, _ in looks[0]}) == 3


def test_long_runs_are_thinned_but_keep_their_ends(records: pd.DataFrame) -> None:
    served = records.iloc[:3]
    many = pd.concat([served] * 2000, ignore_index=True)
    curve = latency_cdf({"predicted": many}, "ttft_s").data[0]
    assert len(curve.x) <= MOST_POINTS
    assert curve.y[-1] == 100
    assert np.all(np.diff(curve.x) >= 0)


def test_errors_are_in_percent_beside_the_spread(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    figure = errors(compare_replications([records, slower], predicting(records)))
    by_name = {trace.name: trace for trace in figure.data}
    where = list(by_name["error, close"].y).index("TTFT mean")
    assert by_name["error, close"].x[where] == pytest.approx(100 * (2 / 2.25 - 1))
    assert "± run-to-run spread" in by_name
    assert figure.layout.shapes[0].x1 == pytest.approx(15)


@pytest.mark.parametrize("share", [0.1, 0.5])
def test_whiskers_reach_over_zero_where_the_figure_was_hit(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting, share: float
) -> None:
    """They are low and high over measured, minus one: of 2.5 s, 1.8 s is 28 % short."""
    comparison = compare_replications([slower], predicting(records, share))
    figure = errors(comparison)
    crosses = {}
    for trace in figure.data:
        bars = zip(trace.x, trace.error_x.arrayminus, trace.error_x.array, strict=True)
        for name, (error, below, above) in zip(trace.y, bars, strict=True):
            crosses[name] = error - below <= 0 <= error + above
    keys = zip(comparison["metric"], comparison["statistic"], comparison["hit"], strict=True)
    assert crosses == {figure_name(metric, statistic): hit for metric, statistic, hit in keys}
    left, right = figure.layout.xaxis.range
    assert left == pytest.approx(110 * (comparison["low"] / comparison["measured"] - 1).min())
    assert right > 100 * (comparison["high"] / comparison["measured"] - 1).max()


def test_figures_that_are_off_have_another_symbol(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting
) -> None:
    figure = errors(compare_replications([slower], predicting(records)))
    symbols = {trace.name: trace.marker.symbol for trace in figure.data}
    assert symbols["error, off"] == "x"
    assert "± run-to-run spread" not in symbols


def test_a_comparison_read_from_json_draws_too(
    records: pd.DataFrame, predicting: Predicting
) -> None:
    comparison = compare_replications([records], predicting(records))
    read = pd.DataFrame(json.loads(comparison.to_json(orient="records")))
    assert [trace.name for trace in errors(read).data] == ["error, close"]
    assert {row[4] for row in comparison_rows(read)} == {"–"}


def test_without_plotly_the_command_to_install_it_is_named() -> None:
    """A None in sys.modules makes the import fail as if plotly were not installed."""
    code = (
        "import sys; sys.modules['plotly'] = None\n"
        "from moesim.errors import MoesimError\n"
        "try:\n    import moesim.views.charts\n"
        "except MoesimError as wrong:\n    print(wrong)\n"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'moesim[dashboard]'" in run.stdout


def test_tables_need_no_plotly() -> None:
    code = "import sys; sys.modules['plotly'] = None\nimport moesim.views.tables\n"
    subprocess.run([sys.executable, "-c", code], check=True)
