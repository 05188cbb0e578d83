"""Neighbours that share the link to the host and its CPU: by hand, and against a plain queue."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.scenario import Scenario
from moesim.simulation.crowd import Busy
from moesim.simulation.rivals import Rivals
from moesim.simulation.run import Result, simulate
from moesim.simulation.transfer import TICK_S
from tests.simulation.test_sharing import (
    DEVICE,
    EXPERT_BYTES,
    Maker,
    copies_of,
    fixed,
    poisson,
    stations,
    tenant,
)

Content = dict[str, Any]

HALVES = ["3g.40gb", "3g.40gb"]
BYTES_PER_S = DEVICE["pcie_pinned_bytes_per_s"]
"""What the invented device's link carries."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Maker:
    return Maker(tmp_path_factory.mktemp("rivals"))


# Shares by hand ------------------------------------------------------------------------------

ALONE = Busy(running=frozenset({0}))


def test_who_is_busy_stretches_the_others() -> None:
    """Members that need the link for 0.5 and 0.2 of their time, and one that needs it for models.

    On average 0.2 others are on it, or 1 more while a model is copied; the copy finds 0.5 others.
    """
    rivals = Rivals(link_shares=(0.5, 0.2, 0.0), cpu_shares=(0.0, 0.0, 0.0))
    beside_1, beside_2 = Busy(frozenset({0, 1})), Busy(frozenset({0}), frozenset({2}))
    assert [rivals.link_stretch(0, busy) for busy in (ALONE, beside_1, beside_2)] == pytest.approx(
        [1.0, 1.2, 2.0]
    )
    assert rivals.link_stretch(2, beside_2) == pytest.approx(1.5)


def test_two_copies_take_twice_as_long_each() -> None:
    rivals = Rivals(link_shares=(0.9, 0.9, 0.9), cpu_shares=(0.0,) * 3)
    assert rivals.link_stretch(0, Busy(copying=frozenset({0}))) == 1.0
    assert rivals.link_stretch(0, Busy(copying=frozenset({0, 2}))) == 2.0
    assert rivals.link_stretch(2, Busy(copying=frozenset({0, 1, 2}))) == 3.0


def test_who_copies_leaves_the_cpu_alone() -> None:
    """And who computes there finds 0.7 others."""
    rivals = Rivals(link_shares=(0.5, 0.5), cpu_shares=(1.0, 0.7))
    assert rivals.cpu_stretch(0, Busy(frozenset({0, 1}))) == pytest.approx(1.7)
    assert rivals.cpu_stretch(0, Busy(frozenset({0}), frozenset({1}))) == 1.0


# Models copied over one link -----------------------------------------------------------------


def time_shared(layout: list[str], **more: Any) -> Content:
    return {"kind": "time_shared", "layout": layout, "kv_blocks": 200, "turns": "fcfs", **more}


def loads_of(result: Result) -> list[tuple[float, float]]:
    """Return start and duration of every copy that a change of model took, in order."""
    return sorted(load for loads in result.loads.values() for load in loads)


@pytest.mark.parametrize("stepwise", [False, True], ids=["jumping", "stepping"])
def test_changes_of_model_at_once_take_as_many_times_as_long(
    made: Maker, tmp_path: Path, stepwise: bool
) -> None:
    """One request to b for each of n instances at one moment: all load b, n times as long.

    The overhead comes first and is nobody else's affair.
    """
    found = {}
    for count in (1, 2, 3):
        trace = tmp_path / f"{count}.csv"
        rows = ["arrival_s,prompt_tokens,output_tokens", *["0,4,1"] * count]
        trace.write_text("\n".join(rows) + "\n")
        own = {"kind": "trace"}
        tenants = {"b": tenant("b", {"kind": "trace", "path": str(trace)}, own, own)}
        deployment = time_shared(["2g.20gb"] * 3, load_overhead_s=0.25)
        result = simulate(made.scenario(deployment, tenants), stepwise=stepwise)
        found[count] = loads_of(result)
    ((_, alone_s),) = found[1]
    for count, loads in found.items():
        lasting = 0.25 + count * (alone_s - 0.25)
        assert loads == [(0.0, pytest.approx(lasting, abs=TICK_S))] * count


def finishes(copies: list[tuple[float, float]]) -> list[float]:
    """Return when copies end that divide a link evenly: (start, seconds on a link of its own)."""
    left = {place: own_s for place, (_, own_s) in enumerate(copies)}
    ends, now_s = [0.0] * len(copies), 0.0
    while left:
        on = [place for place in left if copies[place][0] <= now_s]
        coming = [start_s for start_s, _ in (copies[place] for place in left) if start_s > now_s]
        next_s = min(coming, default=np.inf)
        if on:
            next_s = min(next_s, now_s + len(on) * min(left[place] for place in on))
        for place in on:
            left[place] -= (next_s - now_s) / len(on)
            if left[place] < 1e-12:
                ends[place] = next_s
                del left[place]
        now_s = next_s
    return ends


@settings(max_examples=15)
@given(
    layout=st.sampled_from([HALVES, ["2g.20gb"] * 3, ["1g.10gb"] * 7]),
    rate=st.sampled_from([2.0, 5.0, 12.0]),
    turns=st.sampled_from(["fcfs", "longest_queue", "quantum", "drain"]),
    stepwise=st.booleans(),
    seed=st.integers(0, 99),
)
def test_copies_of_models_are_a_queue_that_divides_the_link(
    made: Maker, layout: list[str], rate: float, turns: str, stepwise: bool, seed: int
) -> None:
    """From when each begins follows when it ends, and no window has more bytes than its length."""
    tenants = {name: tenant(name, poisson(rate), fixed(8), fixed(4)) for name in "ab"}
    scenario = made.scenario(time_shared(layout, turns=turns), tenants)
    station, *_ = stations(scenario)
    assert station.rules is not None
    own_s = station.rules.copy_s[0]
    loads = loads_of(simulate(scenario, seed=seed, stepwise=stepwise))
    ends_s = [start_s + took_s for start_s, took_s in loads]
    assert ends_s == pytest.approx(
        finishes([(start_s, own_s) for start_s, _ in loads]), abs=len(loads) * TICK_S
    )
    for since_s, _ in loads:
        within = np.array(
            [end for (start, _), end in zip(loads, ends_s, strict=True) if start >= since_s]
        )
        for until_s in within:
            carried_s = own_s * (within <= until_s).sum()
            assert carried_s <= until_s - since_s + len(loads) * TICK_S


# Models and experts over one link ------------------------------------------------------------


class Span(NamedTuple):
    """What a station did: one iteration, or one copy for a change of model."""

    station: int
    start_s: float
    end_s: float
    size: float
    change: bool


def spans_of(result: Result, scenario: Scenario) -> list[Span]:
    """Return all that stations did, in order, with the bytes that they copied."""
    found = []
    for place, station in enumerate(stations(scenario)):
        assert station.rules is not None
        for copy_s, replica in zip(station.rules.copy_s, station.replicas, strict=True):
            log, table = result.logs[replica.name], copies_of(replica.cost)
            for start_s, first_s, growth_s, steps, tokens in zip(
                log.start_s, log.first_s, log.growth_s, log.iterations, log.tokens, strict=True
            ):
                size = table[int(tokens)] * EXPERT_BYTES
                for step in range(int(steps)):
                    end_s = start_s + first_s + growth_s * step
                    found.append(Span(place, start_s, end_s, size, change=False))
                    start_s = end_s
            for start_s, took_s in result.loads[replica.name]:
                end_s = start_s + took_s
                found.append(Span(place, start_s, end_s, copy_s * BYTES_PER_S, change=True))
    return sorted(found, key=lambda span: span.start_s)


def union_s(spans: Sequence[Span]) -> float:
    """Return for how long at least one station did something [s]."""
    total = until_s = 0.0
    for span in spans:
        total += max(0.0, span.end_s - max(span.start_s, until_s))
        until_s = max(until_s, span.end_s)
    return total


@settings(max_examples=20)
@given(
    kind=st.sampled_from(["consolidated", "time_shared"]),
    layout=st.sampled_from([HALVES, ["2g.20gb"] * 3]),
    resident=st.sampled_from([0.0, 0.5]),
    rate=st.sampled_from([5.0, 20.0]),
    prompt=st.sampled_from([1, 20]),
    turns=st.sampled_from(["fcfs", "longest_queue", "quantum", "drain"]),
    seed=st.integers(0, 99),
)
def test_the_link_carries_no_more_than_it_can(
    made: Maker,
    kind: str,
    layout: list[str],
    resident: float,
    rate: float,
    prompt: int,
    turns: str,
    seed: int,
) -> None:
    """Models and experts together, over the time in which anybody does anything.

    Iterations keep the duration that they began with when a neighbour comes or goes. There are
    enough of them here for that to even out.
    """
    deployment = {
        "kind": kind,
        "layout": layout,
        "kv_blocks": 200,
        "turns": turns,
        "quantum_s": 0.1,
        "experts": {"resident": resident},
    }
    if kind == "consolidated":
        deployment["ratio"] = 0.0
    tenants = {name: tenant(name, poisson(rate), fixed(prompt), fixed(6)) for name in "ab"}
    scenario = made.scenario(deployment, tenants)
    spans = spans_of(simulate(scenario, seed=seed), scenario)
    carried = sum(span.size for span in spans)
    assert carried <= BYTES_PER_S * (union_s(spans) + len(spans) * TICK_S)


@pytest.mark.parametrize("seed", range(3))
def test_a_turn_past_its_quantum_is_disturbed_too(made: Maker, seed: int) -> None:
    """Where others wait who are less urgent: jumping must ask what iterations cost all the same."""
    deployment = {
        "kind": "consolidated",
        "layout": ["2g.20gb"] * 3,
        "kv_blocks": 40,
        "turns": "quantum",
        "quantum_s": 0.3,
        "scheduler": {"order": "priority", "max_num_seqs": 16, "max_batched_tokens": 64},
        "ratio": 0.0,
        "experts": {"resident": 0.3},
        "swap_overhead_s": 0.02,
    }
    tenants = {
        str(place): tenant(model, poisson(6.0), fixed(1), fixed(9)) | {"priority": place}
        for place, model in enumerate("aba")
    }
    scenario = made.scenario(deployment, tenants, duration_s=4.0)
    jumped, stepped = (
        simulate(scenario, seed=seed, stepwise=way).records["finish_s"] for way in (False, True)
    )
    assert jumped.to_numpy() == pytest.approx(stepped.to_numpy(), abs=1e-8)


# Experts on one CPU --------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["mig", "mps"])
def test_two_that_compute_experts_on_the_cpu_take_about_twice_as_long(
    made: Maker, kind: str
) -> None:
    """All experts away and computed on the CPU: for 0.94 of the time of one that is alone.

    A token has 2 experts in each of 4 layers. On average its neighbour finds it there for that part
    of its own time; iterations of more tokens are there for longer, and those are what counts.
    """
    cpu_s = 0.05
    experts = {"resident": 0.0, "cpu_s_per_token_expert": cpu_s, "load_gb_per_s": 1e-4}
    deployment: Content = {"kind": kind, "kv_blocks": 200, "experts": experts}
    deployment |= {"sm_percent": {"a": 50, "b": 50}} if kind == "mps" else {"layout": HALVES}
    each = {"kind": "constant", "rate_per_s": 1.0}
    tenants = {name: tenant(name, each, fixed(1), fixed(40)) for name in "ab"}
    gap_s = {
        count: simulate(
            made.scenario(deployment, dict(list(tenants.items())[:count]), duration_s=1.5)
        )
        .logs["a/0"]
        .first_s[-1]
        for count in (1, 2)
    }
    compute_s = gap_s[1] - 8 * cpu_s
    share = 8 * cpu_s / gap_s[1]
    assert share > 0.9
    assert 1 + share < (gap_s[2] - compute_s) / (8 * cpu_s)
    assert gap_s[2] <= 2 * gap_s[1]
