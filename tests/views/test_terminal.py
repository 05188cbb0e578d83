"""A run on the terminal: what fits, what is said, and names made harmless."""

from collections.abc import Callable
from typing import Any

import pandas as pd
import pytest

from moesim.evidence.compare import compare_replications
from moesim.scenario import scenario_from
from moesim.simulation.replications import replicate
from moesim.views.terminal import show_comparison, show_metrics

Show = Callable[..., list[str]]
Predicting = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def metrics(tiny_scenario: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """Return the metrics of two tenants with intervals, far above capacity."""
    content = tiny_scenario() | {"duration_s": 100.0}
    chat = content["tenants"]["chat"] | {"arrivals": {"kind": "poisson", "rate_per_s": 6.0}}
    content["tenants"] = {"chat": chat, "[b]\x1b[31m a long and hostile name, indeed": chat}
    return replicate(scenario_from(content), replications=6).metrics()


@pytest.fixture
def show(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Show metrics on a terminal of some width and return its lines."""

    def lines(metrics: dict[str, Any], width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        show_metrics(metrics, 1.5)
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.fixture
def compared(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Show:
    """Show a comparison on a terminal of some width and return its lines."""

    def lines(comparison: pd.DataFrame, width: int) -> list[str]:
        monkeypatch.setenv("COLUMNS", str(width))
        show_comparison(comparison)
        return capsys.readouterr().out.splitlines()

    return lines


@pytest.mark.parametrize(
    ("width", "heads"),
    [
        (80, ["p50 p90 p99", "offered/s tokens/s goodput/s in SLO [%]"]),
        (100, ["mean p50 p90 p99", "offered/s requests/s tokens/s goodput/s in SLO [%]"]),
    ],
)
def test_tables_fit_the_terminal(
    metrics: dict[str, Any], show: Show, width: int, heads: list[str]
) -> None:
    """With as many columns as there is room for, all numbers whole."""
    lines = show(metrics, width)
    rules = [number for number, line in enumerate(lines) if line.startswith("─")]
    assert [" ".join(lines[number - 1].split()) for number in rules] == heads
    tables = lines[: [number for number, line in enumerate(lines) if not line][1]]
    assert max(map(len, tables)) <= width
    latencies = [line for line in tables if line.lstrip().startswith(("TTFT", "ITL"))]
    assert len(latencies) == 6
    assert all(line.count("]") == len(heads[0].split()) + 1 for line in latencies)


def test_a_cell_is_the_median_and_its_interval(metrics: dict[str, Any], show: Show) -> None:
    """In a unit that stands in front."""
    metrics = metrics | {"tenants": {"chat": _with(metrics["overall"], 0.0123456)}}
    metrics["intervals"] = metrics["intervals"] | {
        "tenants": {"chat": _with(metrics["intervals"]["overall"], [0.01, 0.0987])}
    }
    (line,) = (line for line in show(metrics, 80) if line.startswith(" TPOT"))
    assert line.split() == ["TPOT", "[ms]", *["12.3", "[10.0,", "98.7]"] * 3]


def _with(figures: dict[str, Any], tpot_s: Any) -> dict[str, Any]:
    return figures | {"tpot_s": dict.fromkeys(figures["tpot_s"], tpot_s)}


def test_what_else_is_said(metrics: dict[str, Any], show: Show) -> None:
    """Fairness, how the queue grows, what an interval is, and how many runs there were."""
    text = "\n".join(show(metrics, 80))
    for words in (
        "fairness between tenants (Jain's index, 1 is even): ",
        "above capacity: the queue grows by",
        "6 runs simulated in 1.50 s",
        "median [low, high] over 5 runs, arrivals, lengths, profile redrawn: 67 % of single runs",
    ):
        assert words in text
    assert "refused" not in text


def test_refused_requests_are_told_by_tenant(metrics: dict[str, Any], show: Show) -> None:
    """Only of whom any was."""
    figures = metrics["tenants"] | {"chat": metrics["tenants"]["chat"] | {"refused": 1234}}
    (line,) = (x for x in show(metrics | {"tenants": figures}, 80) if x.startswith("refused"))
    assert line == "refused: chat 1,234 [0, 0]"


def test_why_requests_are_refused_is_told(metrics: dict[str, Any], show: Show) -> None:
    """Below how many were, and instead of everything else where all were."""
    some = show(metrics | {"refusal": "empty \x1b prompt"}, 80)
    assert "refused most often: empty ? prompt" in some
    none = metrics["overall"] | {"completed": 0, "refused": 1234, "span_s": None}
    lines = show(metrics | {"overall": none, "refusal": "empty prompt"}, 80)
    assert "nothing was served, every request was refused: empty prompt" in lines
    assert not any("TTFT" in line or "tokens/s" in line for line in lines)


def test_a_scenario_that_refuses_everything(
    tiny_scenario: Callable[[], dict[str, Any]], show: Show
) -> None:
    """From end to end: prompts of 70 tokens for a model of 64."""
    content = tiny_scenario()
    content["tenants"]["chat"]["prompt_tokens"] = {"kind": "fixed", "tokens": 70}
    content["tenants"]["chat"]["output_tokens"] = {"kind": "fixed", "tokens": 2}
    name, why, size = show(replicate(scenario_from(content)).metrics(), 80)
    assert name == "tiny"
    assert why.endswith(": prompt 70 + output 2 tokens exceed the model's maximum of 64")
    assert "requests over 0 s" in size


def test_measured_beside_predicted(
    records: pd.DataFrame, slower: pd.DataFrame, predicting: Predicting, compared: Show
) -> None:
    """A row a figure; where it is too wide for 80 columns nothing is cut."""
    head, _, mean, *rest = compared(
        compare_replications([records, slower], predicting(records)), 80
    )
    assert head.split() == ["figure", "measured", "predicted", "error", "spread", "close", "hit"]
    assert " ".join(mean.split()) == ("TTFT mean 2.25 s 2.00 [1.80, 2.20] -11.1 % 22.2 % close no")
    assert "…" not in "".join(rest)
    assert rest[-1].endswith(" of 17 real ones lie in the predicted 90 % interval.")


def test_what_the_demo_compares_fits_80_columns(
    records: pd.DataFrame, predicting: Predicting, compared: Show
) -> None:
    """Durations below a second and some hundred tokens a second."""
    times = ("arrival_s", "scheduled_s", "first_token_s", "finish_s")
    fast = records.assign(**{name: records[name] / 99 for name in times})
    lines = compared(compare_replications([fast, fast], predicting(fast)), 80)
    table = lines[: lines.index("")]
    assert len(table) == 2 + 17
    assert max(map(len, table)) <= 80


def test_nothing_to_compare_is_a_sentence(
    records: pd.DataFrame, predicting: Predicting, compared: Show
) -> None:
    nothing = compare_replications([records.iloc[:0]], predicting(records))
    assert compared(nothing, 80) == ["Nothing to compare: no request completed."]


def test_the_share_that_agrees_is_told_unless_all_do(metrics: dict[str, Any], show: Show) -> None:
    steady = {"kind": "steady", "sentence": "steady after 3 s"}
    some = metrics | {"steady": steady | {"agreed": 0.8}}
    assert "steady after 3 s (so in 80 % of the runs)" in show(some, 80)
    assert "steady after 3 s" in show(metrics | {"steady": steady | {"agreed": 1.0}}, 80)


def test_many_replicas_are_a_range(metrics: dict[str, Any], show: Show) -> None:
    """Six are listed, seven are not."""
    used = {f"m/{n}": 0.1 * n for n in range(1, 7)}
    few, many = (metrics | {"utilisation": u} for u in (used, used | {"m/7": 0.7}))
    assert "m/6 60.0 %" in next(x for x in show(few, 80) if x.startswith("utilisation"))
    assert "utilisation: 7 replicas, 10 to 70 %" in show(many, 80)


def test_reconfigurations_are_told_where_there_are_any(metrics: dict[str, Any], show: Show) -> None:
    """By replica, with their share of the time; of many replicas the sum and the range."""
    assert not [line for line in show(metrics, 80) if line.startswith("reconfigurations")]
    loads = {f"m/{n}": {"count": n, "share_of_time": n / 100} for n in range(4)}
    (told,) = (
        line
        for line in show(metrics | {"reconfigurations": loads}, 200)
        if line.startswith("reconfigurations")
    )
    assert told == (
        "reconfigurations: m/1 1 (1.0 % of the time), m/2 2 (2.0 % of the time), "
        "m/3 3 (3.0 % of the time)"
    )
    many = {f"m/{n}": {"count": n, "share_of_time": n / 100} for n in range(9)}
    assert "reconfigurations: 36 on 8 replicas, 1.0 to 8.0 % of the time" in show(
        metrics | {"reconfigurations": many}, 200
    )


def test_what_is_known_of_quality_is_told(metrics: dict[str, Any], show: Show) -> None:
    """Its sentence as it is; nothing where no curve is named."""
    known = metrics | {"quality": {"sentence": "quality: perplexity 5 [bold]; measured: here"}}
    assert "quality: perplexity 5 [bold]; measured: here" in show(known, 100)
    assert not [line for line in show(metrics, 100) if line.startswith("quality")]


def test_names_cannot_paint_the_terminal(metrics: dict[str, Any], show: Show) -> None:
    text = "\n".join(show(metrics, 100))
    assert "\x1b" not in text
    assert "[b]?[31m a long" in text
