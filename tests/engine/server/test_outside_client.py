"""The comparison with a public load generator's report, on a report worked out by hand."""

from importlib import import_module
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"

RECORDS = pd.DataFrame(
    {
        "arrival_s": [0.0, 1.0, 2.0],
        "first_token_s": [0.010, 1.020, 2.030],
        "finish_s": [0.040, 1.060, 2.030],
        "prompt_tokens": [5, 6, 7],
        "output_tokens": [4, 3, 1],
        "outcome": ["completed"] * 3,
    }
)
"""TTFT 10, 20, 30 ms; latency 40, 60, 30 ms; three gaps of 10 ms and two of 20 ms."""


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(BENCHMARKS)
    return import_module("outside_client")


def part(count: int, total: float, mean: float, values: tuple[float, ...]) -> dict[str, Any]:
    """Return one figure as guidellm writes it; `values` are its p50, p90, p95 and p99."""
    names = ("p50", "p90", "p95", "p99")
    percentiles = dict(zip(names, values, strict=True))
    return {"count": count, "total_sum": total, "mean": mean, "percentiles": percentiles}


def report(later_ms: float = 0.0, output_tokens: float = 8.0) -> dict[str, Any]:
    """Return what guidellm reports of the same, its stamps `later_ms` behind."""
    none = (0.0,) * 4
    first = tuple(value + later_ms for value in (20.0, 30.0, 30.0, 30.0))
    last = tuple((value + later_ms) / 1e3 for value in (40.0, 60.0, 60.0, 60.0))
    return {
        "time_to_first_token_ms": part(3, 60.0, 20.0 + later_ms, first),
        "inter_token_latency_ms": part(5, 70.0, 14.0, (10.0, 20.0, 20.0, 20.0)),
        "request_latency": part(3, 0.13, (130 / 3 + later_ms) / 1e3, last),
        "prompt_token_count": part(3, 17.999999, 6.0, none),
        "output_token_count": part(3, output_tokens, output_tokens / 3, none),
    }


def test_equal_tables_agree(benchmark: Any) -> None:
    """Every figure of the engine is the one worked out above."""
    table = benchmark.beside(report(), RECORDS)
    assert table["difference"].abs().max() == pytest.approx(0, abs=1e-9)
    assert len(table) == 3 + 3 * 5
    assert benchmark.disagreements(table) == []


def test_an_iteration_late_is_within_the_resolution(benchmark: Any) -> None:
    """The mean gap is 14 ms."""
    assert benchmark.disagreements(benchmark.beside(report(13.9), RECORDS)) == []
    late = benchmark.disagreements(benchmark.beside(report(14.1), RECORDS))
    assert [line.split()[0] for line in late] == ["TTFT", "latency"]
    early = benchmark.disagreements(benchmark.beside(report(-0.1), RECORDS))
    assert [line.split()[0] for line in early] == ["TTFT", "latency"]


def test_a_lost_token_is_noticed(benchmark: Any) -> None:
    """By its count."""
    table = benchmark.beside(report(output_tokens=7.0), RECORDS)
    assert benchmark.disagreements(table) == ["output tokens differ"]
