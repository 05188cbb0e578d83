"""The report: one file, nothing fetched, nothing unescaped, every figure in it."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.evidence.compare import compare_replications
from moesim.views.report import write_report
from moesim.views.tables import comparison_rows, headline


@pytest.fixture
def comparison(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Callable[..., dict[str, Any]]
) -> pd.DataFrame:
    return compare_replications([records, slower], predicting(records))


@pytest.fixture
def report(
    tmp_path: Path, records: pd.DataFrame, slower: pd.DataFrame, comparison: pd.DataFrame
) -> str:
    path = tmp_path / "new" / "report.html"
    write_report(
        path,
        title="Demo <script>alert(1)</script>",
        comparison=comparison,
        measured=[records, slower],
        predicted=records,
        facts={"Host & more": "two <b>cores</b>"},
        notes=["a < b"],
    )
    assert [entry.name for entry in path.parent.iterdir()] == ["report.html"]
    return path.read_text()


def without_scripts(html: str) -> str:
    return re.sub(r"<script\b[^>]*>.*?</script>", "", html, flags=re.DOTALL)


def test_nothing_is_fetched(report: str) -> None:
    assert not re.search(r"<script\b[^>]*\bsrc\b", report)
    rest = without_scripts(report)
    for fetching in ("http://", "https://", "src=", "<link", "@import", "url("):
        assert fetching not in rest


def test_plotly_is_inlined_once(report: str) -> None:
    assert report.count("* plotly.js v") == 1
    assert report.count("Plotly.newPlot(") >= 5


def test_text_is_escaped(report: str) -> None:
    assert "alert(1)</script>" not in report
    rest = without_scripts(report)
    assert "Demo &lt;script&gt;" in rest
    assert "<dt>Host &amp; more</dt><dd>two &lt;b&gt;cores&lt;/b&gt;</dd>" in rest
    assert "<li>a &lt; b</li>" in rest


def test_headline_rows_and_terms_are_there(report: str, comparison: pd.DataFrame) -> None:
    assert headline(comparison) in report
    for row in comparison_rows(comparison):
        assert "".join(f"<td>{cell}</td>" for cell in row) in report
    for term in ("TTFT", "TPOT", "Turnaround", "Median [low, high]", "Hit"):
        assert f"<dt>{term}</dt>" in report


def test_only_what_is_off_is_marked(report: str, comparison: pd.DataFrame) -> None:
    """And not what was missed."""
    off = int((~comparison["close"]).sum())
    assert report.count('<tr class="off">') == off
    assert off < int((~comparison["hit"]).sum())


def test_the_intervals_are_marked_on_the_predicted_curves(report: str) -> None:
    """One set of marks on each of the three."""
    assert report.count("median [low, high]\\u003c\\u002fextra") == 3


def test_the_same_input_gives_the_same_file(
    tmp_path: Path, records: pd.DataFrame, slower: pd.DataFrame, comparison: pd.DataFrame
) -> None:
    texts = []
    for name in ("a.html", "b.html"):
        write_report(
            tmp_path / name,
            title="Demo",
            comparison=comparison,
            measured=[slower],
            predicted=records,
            facts={},
            notes=[],
        )
        texts.append((tmp_path / name).read_text())
    assert texts[0] == texts[1]
