"""Figures worked out by hand from four requests.

| request | tenant | arrival | first token | finish | output | TTFT | TPOT | turnaround |
|---|---|---|---|---|---|---|---|---|
| 0 | chat | 0 | 1 | 3 | 3 | 1 | 1 | 3 |
| 1 | chat | 1 | 3 | 3 | 1 | 2 | - | 2 |
| 2 | code | 2 | 5 | 11 | 4 | 3 | 2 | 9 |
| 3 | code | 12 | refused | | 7 | | | |

The span is from 0, the first arrival, to 11, the last finish.
"""

import pandas as pd
import pytest

from moesim.serving.metrics import LATENCIES, STATISTICS, SloTargets, summarise, with_latencies
from moesim.serving.records import COMPLETED, REFUSED, UNFINISHED, Record, records_frame


def _record(
    number: int, tenant: str, arrival: float, first: float, finish: float, output: int
) -> Record:
    return Record(
        request_id=number,
        tenant=tenant,
        model="m",
        replica="m/0",
        arrival_s=arrival,
        first_token_s=first,
        finish_s=finish,
        prompt_tokens=5,
        output_tokens=output,
        preemptions=number,
        outcome=COMPLETED,
    )


@pytest.fixture
def records() -> pd.DataFrame:
    """Return the four requests of the module's table."""
    refused = Record(request_id=3, tenant="code", model="m", replica="m/0", arrival_s=12)
    refused.outcome, refused.output_tokens = REFUSED, 7
    return records_frame(
        [
            _record(0, "chat", 0, 1, 3, 3),
            _record(1, "chat", 1, 3, 3, 1),
            _record(2, "code", 2, 5, 11, 4),
            refused,
        ]
    )


def test_latencies_of_each_request(records: pd.DataFrame) -> None:
    """The refused one has none, and one token has no time between tokens."""
    done = with_latencies(records)
    assert done["ttft_s"].tolist() == [1, 2, 3]
    assert done["turnaround_s"].tolist() == [3, 2, 9]
    assert done["tpot_s"].dropna().tolist() == [1, 2]
    assert done["tpot_s"].isna().tolist() == [False, True, False]


def test_statistics(records: pd.DataFrame) -> None:
    """Percentiles of 1, 2, 3 lie linearly between them: p90 is 2.8."""
    overall = summarise(records)["overall"]
    ttft = {"mean": 2, "p50": 2, "p90": 2.8, "p95": 2.9, "p99": 2.98}
    assert overall["ttft_s"] == pytest.approx(ttft)
    tpot = {"mean": 1.5, "p50": 1.5, "p90": 1.9, "p95": 1.95, "p99": 1.99}
    assert overall["tpot_s"] == pytest.approx(tpot)
    assert overall["turnaround_s"]["mean"] == pytest.approx(14 / 3)


def test_rates_are_over_the_span(records: pd.DataFrame) -> None:
    """Three requests and eight tokens in 11 s; a refused request adds to neither."""
    overall = summarise(records)["overall"]
    assert overall["span_s"] == 11
    assert overall["throughput_rps"] == pytest.approx(3 / 11)
    assert overall["output_tokens_per_s"] == pytest.approx(8 / 11)


def test_counts(records: pd.DataFrame) -> None:
    """Four came, three were served, one was refused, 0 + 1 + 2 preemptions."""
    overall = summarise(records)["overall"]
    assert overall["requests"] == 4
    assert (overall["completed"], overall["refused"], overall["preemptions"]) == (3, 1, 3)


def test_goodput_counts_who_met_every_target_of_its_tenant(records: pd.DataFrame) -> None:
    """Chat wants a first token within 1 s: request 0 just meets it. Code has no target."""
    slos = {"chat": SloTargets(ttft_s=1), "code": SloTargets()}
    summary = summarise(records, slos)
    assert summary["overall"]["goodput_rps"] == pytest.approx(2 / 11)
    # Of four requests one was refused: it met no target either.
    assert summary["overall"]["slo_attainment"] == pytest.approx(2 / 4)
    assert summary["tenants"]["chat"]["slo_attainment"] == 0.5
    for figure in ("slo_attainment", "goodput_rps"):
        assert summary["tenants"]["code"][figure] is None


@pytest.mark.parametrize(
    ("targets", "good"),
    [
        (SloTargets(tpot_s=1.5), 2),
        (SloTargets(turnaround_s=2), 1),
        (SloTargets(ttft_s=2, turnaround_s=2.5), 1),
        (SloTargets(ttft_s=0.5), 0),
    ],
)
def test_targets_are_met_together(records: pd.DataFrame, targets: SloTargets, good: int) -> None:
    """A one-token answer cannot miss a target on the time between tokens."""
    overall = summarise(records, {"chat": targets, "code": targets})["overall"]
    assert overall["goodput_rps"] == pytest.approx(good / 11)


def test_without_targets_nothing_is_good_or_bad(records: pd.DataFrame) -> None:
    """A share of 1 would read as if targets were met."""
    for slos in (None, {"chat": SloTargets()}, {"nobody": SloTargets(ttft_s=1)}):
        overall = summarise(records, slos)["overall"]
        assert overall["goodput_rps"] is None
        assert overall["slo_attainment"] is None


def test_what_was_offered_is_over_the_arrivals(records: pd.DataFrame) -> None:
    """Three more after the first within 12 s, served or not; one alone is no rate."""
    assert summarise(records)["overall"]["offered_rps"] == 3 / 12
    assert summarise(records)["tenants"]["chat"]["offered_rps"] == 1
    assert summarise(records.iloc[:1])["overall"]["offered_rps"] is None


def test_tenants_share_the_span(records: pd.DataFrame) -> None:
    """Their rates add up to the whole."""
    summary = summarise(records, dict.fromkeys(("chat", "code"), SloTargets(ttft_s=1)))
    assert set(summary["tenants"]) == {"chat", "code"}
    for rate in ("throughput_rps", "output_tokens_per_s", "goodput_rps"):
        parts = [tenant[rate] for tenant in summary["tenants"].values()]
        assert sum(parts) == pytest.approx(summary["overall"][rate])


@pytest.mark.parametrize("outcome", [REFUSED, UNFINISHED])
def test_where_nobody_is_served_no_figure_exists(outcome: str) -> None:
    """None, not zero and not NaN; the counts are still there."""
    record = Record(request_id=0, tenant="t", model="m", replica="m/0", arrival_s=0)
    record.outcome = outcome
    overall = summarise(records_frame([record]), {"t": SloTargets(ttft_s=1)})["overall"]
    for name in LATENCIES:
        assert overall[name] == dict.fromkeys(STATISTICS)
    assert overall["slo_attainment"] == 0
    for name in ("throughput_rps", "output_tokens_per_s", "goodput_rps"):
        assert overall[name] is None
    assert (overall["requests"], overall["completed"]) == (1, 0)


def test_one_token_answers_have_no_tpot(records: pd.DataFrame) -> None:
    """Only request 1: its TTFT is a figure, its TPOT is none."""
    overall = summarise(records.iloc[1:2])["overall"]
    assert overall["tpot_s"]["mean"] is None
    assert overall["ttft_s"]["mean"] == 2
