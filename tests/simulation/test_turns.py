"""Models that have a slice in turns, followed by hand."""

from collections.abc import Callable, Sequence
from typing import Any

import pandas as pd
import pytest

from moesim.cost.affine import AffineCost, AffineParameters
from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Limits
from moesim.simulation.replica import Replica, Served
from moesim.simulation.station import Station, serve_alone
from moesim.simulation.stepwise import step_through
from moesim.simulation.turns import Rules

LIMITS = Limits(max_num_seqs=8, max_batched_tokens=64, max_model_len=256)
SECOND = AffineParameters(fixed_s=1.0, mixed_s=0.0, token_s=0.0, context_s=0.0, pair_s=0.0)
"""Every iteration takes a second."""

Rows = Sequence[tuple[float, int]]
"""Arrival [s] and output tokens of requests with one prompt token."""

Way = Callable[[Station, list[pd.DataFrame]], list[Served]]


def replica(name: str) -> Replica:
    cost = AffineCost(SECOND, max_batched_tokens=64, max_num_seqs=8)
    return Replica(name=name, limits=LIMITS, cache=KvCache(100, 16), cost=cost)


def frame(model: str, rows: Rows) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "request_id": range(len(rows)),
            "tenant": model,
            "model": model,
            "arrival_s": [arrival_s for arrival_s, _ in rows],
            "prompt_tokens": 1,
            "output_tokens": [output for _, output in rows],
        }
    )


@pytest.fixture(params=[serve_alone, step_through], ids=["jumping", "stepping"])
def served(request: pytest.FixtureRequest) -> Callable[..., list[Served]]:
    """Serve two models whose loading takes 10 and 20 s, one way or the other."""
    way: Way = request.param

    def serve(a: Rows, b: Rows, policy: str = "fcfs", **rules: Any) -> list[Served]:
        station = Station(
            replicas=(replica("a/0"), replica("b/0")),
            models=("a", "b"),
            rules=Rules(
                policy=policy, **{"quantum_s": 1.0, "reconfigure_s": (10.0, 20.0), **rules}
            ),
        )
        return way(station, [frame("a", a), frame("b", b)])

    return serve


def finished(part: Served) -> list[float]:
    return part.records["finish_s"].tolist()


def test_a_change_of_model_is_a_reconfiguration(served: Callable[..., list[Served]]) -> None:
    """A's 3 tokens take 3 s; b is loaded from 3 to 23 s and has its 2 tokens by 25 s."""
    a, b = served([(0.0, 3)], [(1.0, 2)])
    assert (finished(a), finished(b)) == ([3.0], [25.0])
    assert (a.loads, b.loads) == ((), ((3.0, 20.0),))
    assert (b.usage.reconfigurations, b.usage.reconfiguring_s, b.usage.busy_s) == (1, 20.0, 2.0)


def test_a_loaded_model_waits_loaded(served: Callable[..., list[Served]]) -> None:
    """After a long pause b is still there, and a is not."""
    a, b = served([(200.0, 1)], [(0.0, 1), (100.0, 1)])
    assert (finished(b), finished(a)) == ([21.0, 101.0], [211.0])


def test_first_come_first_served_batches_within_a_turn(
    served: Callable[..., list[Served]],
) -> None:
    """A's second request came after b's, but joins a's batch: its third does not get that far.

    a runs from 0 to 4 s, both its early requests in it; b, the oldest then, is loaded until 24 s;
    a's third request has a loaded again from 26 to 36 s.
    """
    a, b = served([(0.0, 4), (2.0, 2), (5.0, 1)], [(1.0, 2)])
    assert (finished(a), finished(b)) == ([4.0, 4.0, 37.0], [26.0])


def test_an_interrupted_answer_has_one_long_gap(served: Callable[..., list[Served]]) -> None:
    """A quantum of 2 s takes the device from a after two tokens; its third comes after both loads.

    b: loaded 2 to 22 s, done at 24 s. a: loaded 24 to 34 s, done at 36 s, having waited 33 s for a
    token.
    """
    a, b = served([(0.0, 4)], [(1.0, 2)], policy="quantum", quantum_s=2.0)
    assert (finished(a), finished(b)) == ([36.0], [24.0])
    gaps = a.log.late.until_s - a.log.late.since_s
    assert gaps.tolist() == [33.0]
    assert a.log.gaps == 3


def test_draining_keeps_the_model_for_who_comes(served: Callable[..., list[Served]]) -> None:
    """A has something to do until 6 s; only then b has its turn."""
    a, b = served([(0.0, 3), (2.5, 3)], [(1.0, 1)], policy="drain")
    assert (finished(a), finished(b)) == ([3.0, 6.0], [27.0])


def test_the_longest_queue_takes_over_when_a_request_is_done(
    served: Callable[..., list[Served]],
) -> None:
    """At 2 s one of a's is done and b has two waiting against a's one."""
    rows = [(0.0, 2), (0.0, 9)]
    a, b = served(rows, [(0.5, 1), (0.5, 1)], policy="longest_queue")
    assert finished(b) == [23.0, 23.0]
    assert finished(a) == [2.0, 23.0 + 10.0 + 7.0]
