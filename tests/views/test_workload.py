"""A workload on the terminal and in charts: the numbers, their units, and names made harmless."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.traffic.statistics import describe
from moesim.traffic.traces import Trace
from moesim.views.workload import (
    MOST_CURVES,
    STEPS,
    client_rates_over_time,
    client_shares,
    figures_of,
    length_cdf,
    rate_over_time,
    write_page,
)
from moesim.views.workload_terminal import HEIGHT, in_time, printable, rate_plot, show_workload


def _trace(**changes: Any) -> Trace:
    columns = {
        "arrival_s": [0.0, 60, 120, 7200],
        "prompt_tokens": [10, 100, 1000, 0],
        "output_tokens": [1, 2, 3, 4],
        "tenant": ["chat", "chat", "code", "chat"],
        "prefix": [(1, 2), (1, 3), (), (9,)],
    }
    frame = pd.DataFrame(columns | changes)
    return Trace(frame=frame, format="bailian", prefix_block=16)


def _shown(capsys: pytest.CaptureFixture[str], trace: Trace) -> str:
    show_workload(describe(trace), "file.csv")
    return capsys.readouterr().out


def test_the_summary_names_what_a_planner_asks_for(capsys: pytest.CaptureFixture[str]) -> None:
    """Each line with its unit."""
    text = _shown(capsys, _trace())
    for words in (
        "file.csv: bailian, 4 requests in 2 h",
        "requests/s over 100 s from 0 s on",
        "CV of gaps 1.38",
        "1 prompts, 0 outputs; the simulator refuses these",
        "20.0 % of 5 prompt blocks (16 tokens) came before",
        "75.0 %",
    ):
        assert words in text


def test_everything_fits_a_narrow_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Also lengths of six digits and a tenant's long name."""
    trace = _trace(prompt_tokens=[126_195] * 4, tenant=["n" * 100, "b", "b", "c"])
    assert max(map(len, _shown(capsys, trace).splitlines())) <= 90


def test_many_tenants_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    """Twenty: fifteen are named."""
    n = 20
    frame = pd.DataFrame(
        {
            "arrival_s": np.arange(float(n)),
            "prompt_tokens": 1,
            "output_tokens": 1,
            "tenant": [f"t{i}" for i in range(n)],
        }
    )
    text = _shown(capsys, Trace(frame=frame, format="plain"))
    assert "and 5 more: --json lists all" in text
    assert "t14" in text
    assert "t15" not in text


def test_names_cannot_paint_the_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    """Neither escape sequences nor markup of the library that prints."""
    text = _shown(capsys, _trace(tenant=["\x1b[31mred", "[red]x[/red]", "", "a\nb"]))
    assert "\x1b" not in text
    assert "[red]x[/red]" in text
    assert "a?b" in text
    assert printable("tab\there") == "tab?here"


def test_one_request_has_no_plot(capsys: pytest.CaptureFixture[str]) -> None:
    """Its rate is unknown, which is said and not divided."""
    trace = Trace(frame=_trace().frame.iloc[:1], format="plain")
    text = _shown(capsys, trace)
    assert "mean rate     – requests/s" in text
    assert "┤" not in text


def test_a_plot_has_its_scale_and_its_units() -> None:
    """Four steps of 30 s at 0, 1, 2, 4 a second: a column each, full at the top for the last."""
    lines = rate_plot([0, 1, 2, 4], 30.0)
    assert lines[0] == "requests/s"
    assert [line[-4:] for line in lines[1 : HEIGHT + 1]] == [
        "   █", "   █", "   █", "  ██", " ▄██", " ███",
    ]  # fmt: skip
    assert lines[1].startswith("4.00 ┤")
    assert lines[4].startswith("2.00 ┤")
    assert lines[HEIGHT + 1] == "   0 └────"
    assert lines[-1].split() == ["0", "60", "s", "2", "min"]


def test_a_silent_plot_is_none() -> None:
    """Nothing to draw."""
    assert rate_plot([], 0.0) == []
    assert rate_plot([0.0, 0.0], 1.0) == []


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (5400, "90 min"),
        (86_400, "24 h"),
        (1e6, "11.6 d"),
    ],
)
def test_times_are_told_in_the_unit_that_reads_best(seconds: float, text: str) -> None:
    assert in_time(seconds) == text


def test_the_rate_is_drawn_in_equal_steps() -> None:
    """300 steps of 48 s, the time axis in hours from two hours on."""
    figure = rate_over_time(_trace(arrival_s=[0.0, 60, 120, 14_400]).frame)
    curve = figure.data[0]
    assert len(curve.x) == STEPS
    assert np.sum(curve.y) * 14_400 / STEPS == pytest.approx(4)
    assert figure.layout.xaxis.title.text == "Time [h]"
    assert figure.layout.yaxis.title.text == "Requests [1/s], steps of 48 s"


def test_zeros_count_but_are_not_on_a_logarithmic_axis() -> None:
    """Of 0, 10, 100, 1000 half are at or below 10."""
    curve = length_cdf({"Prompts": np.array([10, 100, 1000, 0])}).data[0]
    assert list(curve.x) == [10, 100, 1000]
    assert list(curve.y) == [50, 75, 100]


CLIENTS = pd.DataFrame(
    {
        "client": [str(n) for n in range(9)],
        "start_s": 0.0,
        "end_s": 600.0,
        "rate_per_s": np.arange(9.0),
        "cv": 1.0,
        "family": "Gamma",
    }
)


def test_only_the_busiest_clients_are_drawn() -> None:
    """The others would hide them."""
    names = [curve.name for curve in client_rates_over_time(CLIENTS).data]
    assert names == [f"client {n}" for n in (8, 7, 6, 5, 4)]
    assert len(names) == MOST_CURVES


def test_shares_add_up() -> None:
    """Three quarters by the first, all by both."""
    figure = client_shares(pd.DataFrame({"client": ["a", "b"], "rate_per_s": [3.0, 1.0]}))
    assert list(figure.data[0].y) == [75, 100]


LENGTHS = pd.DataFrame(
    {"client": ["a"], "start_s": [0.0], "prompt_tokens": [(1, 2)], "output_tokens": [(3, 4)]}
)


@pytest.mark.parametrize(
    ("kind", "table", "figures"),
    [
        ("plain", _trace().frame, 2),
        ("servegen-trace", CLIENTS, 1),
        ("servegen-rates", CLIENTS, 1),
        ("servegen-lengths", LENGTHS, 2),
    ],
)
def test_every_chart_names_its_axes(kind: str, table: pd.DataFrame, figures: int) -> None:
    found = figures_of(kind, table)
    assert len(found) == figures
    for figure in found:
        assert figure.layout.title.text
        assert figure.layout.xaxis.title.text
        assert figure.layout.yaxis.title.text


def test_the_page_is_whole_and_its_names_harmless(tmp_path: Path) -> None:
    """One script, as many charts as figures; a file's name is text."""
    path = tmp_path / "page.html"
    write_page(path, "<b>.csv", {"format": "plain"}, _trace().frame)
    text = path.read_text()
    assert "<b>.csv" not in text
    assert "&lt;b&gt;.csv" in text
    assert text.count('class="chart"') == 2
    with pytest.raises(ScenarioError, match="is a folder"):
        write_page(tmp_path, "x", {"format": "plain"}, _trace().frame)


def test_without_plotly_the_remedy_is_named() -> None:
    """As for every chart."""
    program = (
        "import sys; sys.modules['plotly'] = None; sys.modules['plotly.graph_objects'] = None\n"
        "import moesim.views.workload"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert "charts need plotly: pip install 'moesim[dashboard]'" in done.stderr
