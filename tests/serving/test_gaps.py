"""Statistics of progressions against the same gaps written out one by one.

A run of 3 iterations of 2 sequences that last 1, 2 and 3 s, and a late gap of 10 s, are the gaps
1 1 2 2 3 3 10: mean 22/7, median 2, and p90 lies 0.4 of the way from 3 to 10.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving import gaps as narrowing
from moesim.serving.gaps import PERCENTILES, Gaps, all_gaps, joined, statistics, tenant_gaps
from moesim.serving.iterations import Floats, Iterations, iterations_of
from moesim.serving.metrics import STATISTICS

Rows = list[tuple[float, float, int, int]]


def _gaps(rows: Rows) -> Gaps:
    first, growth, iterations, weight = np.array(rows, dtype=float).reshape(-1, 4).T
    return Gaps(
        first_s=first,
        growth_s=growth,
        iterations=iterations.astype(np.int64),
        weight=weight.astype(np.int64),
    )


def _written_out(gaps: Gaps) -> Floats:
    columns = zip(gaps.first_s, gaps.growth_s, gaps.iterations, gaps.weight, strict=True)
    parts = [np.repeat(first + growth * np.arange(n), w) for first, growth, n, w in columns]
    return np.concatenate([np.empty(0), *parts])


def _expected(values: Floats) -> dict[str, float]:
    percentiles = np.percentile(values, list(PERCENTILES.values())).tolist()
    return {
        "mean": values.mean(),
        **dict(zip(PERCENTILES, percentiles, strict=True)),
        "max": values.max(),
    }


@pytest.fixture
def log() -> Iterations:
    """Return the log of the module's example."""
    return iterations_of([(5.0, 1.0, 1.0, 3, 2, 2, 20)], [(7, 1.0, 11.0)])


def test_a_case_by_hand(log: Iterations) -> None:
    """Seven gaps; the late one is the longest."""
    found = statistics(all_gaps([log]))
    assert found["mean"] == pytest.approx(22 / 7)
    assert (found["p50"], found["max"]) == (2, 10)
    assert found["p90"] == pytest.approx(3 + 0.4 * 7)


def test_the_names_are_those_of_other_latencies() -> None:
    """And the longest gap, which a reader sees as a stutter."""
    assert tuple(statistics(_gaps([]))) == (*STATISTICS, "max")


@pytest.mark.parametrize("rows", [[], [(1.0, 0.1, 3, 0)], [(1.0, 0.1, 0, 4)]])
def test_without_gaps_there_is_no_figure(rows: Rows) -> None:
    """No run, only runs in which nobody got a second token, or runs of nothing."""
    assert set(statistics(_gaps(rows)).values()) == {None}


def test_replicas_are_joined(log: Iterations) -> None:
    """Twice the same log: twice the gaps, the same mean."""
    both = all_gaps([log, log])
    assert both.count == 14
    assert statistics(both)["mean"] == pytest.approx(22 / 7)


seconds = st.floats(0.0, 2.0) | st.sampled_from([0.5, 1.0, 1.5])
steps = st.sampled_from([0.0, 1e-18, 1e-9, 0.25, 0.5]) | st.floats(0.0, 0.1)
rows = st.lists(st.tuples(seconds, steps, st.integers(0, 30), st.integers(0, 5)), max_size=30)


@given(rows, st.sampled_from([1, 2, 7, 40]), st.sampled_from([4, 64]))
def test_narrowing_finds_what_writing_out_finds(rows: Rows, few: int, sample: int) -> None:
    """However few values may be written out, and however coarse the sample."""
    gaps = _gaps(rows)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(narrowing, "FEW", few)
        patch.setattr(narrowing, "SAMPLE", sample)
        found = statistics(gaps)
    if gaps.count:
        assert found == pytest.approx(_expected(_written_out(gaps)), rel=1e-12, abs=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("growth", [0.0, 1e-4, -1e-6])
def test_a_long_log(seed: int, growth: float) -> None:
    """Twenty thousand runs of all sizes of batch, with the constants as they are."""
    rng = np.random.default_rng(seed)
    sequences = rng.integers(0, 9, 20_000)
    gaps = Gaps(
        first_s=0.02 + sequences * 1e-3 + rng.lognormal(-7, 1, 20_000),
        growth_s=growth * sequences,
        iterations=rng.integers(1, 12, 20_000),
        weight=sequences,
    )
    assert statistics(gaps) == pytest.approx(_expected(_written_out(gaps)), rel=1e-12)


def test_percentiles_are_gaps_that_occurred() -> None:
    """Of 80,901 gaps every percentile is one of them, to the last bit."""
    gaps = _gaps([(0.1 * row, 0.1 / 3, 101, 1) for row in range(1, 802)])
    values = np.sort(_written_out(gaps))
    found = statistics(gaps)
    for name, percent in PERCENTILES.items():
        assert found[name] == values[809 * percent]


def test_one_gap_many_times() -> None:
    """A hundred thousand runs of the same duration, which nothing divides."""
    found = statistics(_gaps([(0.25, 0.0, 30, 3)] * 100_000))
    assert found == dict.fromkeys((*STATISTICS, "max"), 0.25)


def test_a_percentile_at_the_edge_of_ties() -> None:
    """Half the gaps are 1 s, half 2 s, 200,000 in all: the median lies between."""
    found = statistics(_gaps([(1.0, 0.0, 1, 1), (2.0, 0.0, 1, 1)] * 100_000))
    assert (found["p50"], found["p90"]) == (1.5, 2.0)


arrivals = st.integers(0, 30).map(lambda tick: tick / 20)
requests = st.lists(st.tuples(arrivals, st.integers(1, 20), st.integers(1, 20)), min_size=1)


@given(requests)
def test_tenants_have_the_gaps_of_their_requests(
    serve: Callable[[Any], Any], requests: list[tuple[float, int, int]]
) -> None:
    """One by one they are those between the tokens of the brute-force world, also late ones."""
    world = serve(requests)
    whole = world.records.groupby("tenant")
    parts = {tenant: tenant_gaps(world.log, mine) for tenant, mine in whole}
    for tenant, mine in whole:
        expected = np.sort(world.gaps(mine["request_id"]))
        found = np.sort(_written_out(parts[tenant]))
        np.testing.assert_allclose(found, expected, rtol=1e-9)
    assert joined(parts.values()).count == all_gaps([world.log]).count == world.log.gaps


def test_the_world_preempts_and_passes_over(serve: Callable[[Any], Any]) -> None:
    """Else the test above would say less than it seems to."""
    world = serve([(0.0, 8, 20)] * 4)
    assert world.records["preemptions"].sum() > 0
    assert len(world.log.late.request_id) > 0
    assert world.log.iterations.max() > 1


def test_an_unfinished_request_gets_tokens_to_the_end(serve: Callable[[Any], Any]) -> None:
    """Its finish is not known, its first token is; one without a first token has no gaps."""
    world = serve([(0.0, 2, 9), (0.0, 2, 9)])
    cut = world.records.assign(finish_s=np.nan)
    assert tenant_gaps(world.log, cut).count == world.log.gaps
    assert tenant_gaps(world.log, cut.assign(first_token_s=np.nan)).count == 0
