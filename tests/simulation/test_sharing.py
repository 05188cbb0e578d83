"""Deployments of every kind keep their promises: bytes, time and requests, whatever is drawn.

Models are tiny and devices invented, slow enough that loads, swaps and iterations take about as
long as requests are apart.
"""

import json
from collections.abc import Mapping
from collections.abc import Sequence as Row
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.cost.laden import LadenCost
from moesim.scenario import Scenario, scenario_from
from moesim.serving.policies import POLICIES
from moesim.serving.records import COMPLETED, REFUSED
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.serving.turns import POLICIES as TURNS
from moesim.simulation.deploy import stations_of
from moesim.simulation.dispatch import DISPATCHERS
from moesim.simulation.inputs import load_inputs
from moesim.simulation.misses import copied
from moesim.simulation.run import Result, simulate
from moesim.simulation.station import Station
from moesim.units import GIB

Content = dict[str, Any]

MODEL = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 256,
    "max_position_embeddings": 512,
    "dtype": "float32",
}
EXPERT_BYTES = 3 * 64 * 128 * 4

ALL_REDUCE = {
    "short": {"latency_s": 1e-4, "bytes_per_s": 1e7},
    "long": {"latency_s": 3e-4, "bytes_per_s": 2e7},
    "typical_error": 0.0,
}

DEVICE = {
    "name": "slow",
    "kind": "cuda",
    "memory_bytes": 80 * GIB,
    "memory_bandwidth_bytes_per_s": 1e8,
    "bf16_flop_per_s": 2e9,
    "sms": 108,
    "mig": "a100-80gb",
    "pcie_pinned_bytes_per_s": 2e7,
    "nvlink_bytes_per_s": 1e9,
    "all_reduce": {2: ALL_REDUCE, 4: ALL_REDUCE},
    "source": "invented",
}
RATES = ("memory_bandwidth_bytes_per_s", "bf16_flop_per_s", "pcie_pinned_bytes_per_s")

INSTANCES = ["4g.40gb", "2g.20gb", "1g.10gb"]
LONE = (
    "dedicated",
    "tensor_parallel",
    "expert_parallel",
    "mig",
    "mps",
    "time_shared",
    "offloaded",
    "consolidated",
)
KINDS = (*LONE, "expert_router")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> "Maker":
    """Return what makes scenarios of the tiny models on invented devices."""
    return Maker(tmp_path_factory.mktemp("sharing"))


class Maker:
    """Writes the model and device files that scenarios refer to."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "model.json").write_text(json.dumps(MODEL))

    def scenario(
        self,
        deployment: Content,
        tenants: Content,
        *,
        models: str = "ab",
        duration_s: float = 2.0,
        **device: float,
    ) -> Scenario:
        """Build a scenario; by keyword the device differs from `DEVICE`."""
        model = {"architecture": str(self._folder / "model.json"), "profile": "roofline"}
        return scenario_from(
            {
                "name": "sharing",
                "duration_s": duration_s,
                "models": dict.fromkeys(models, model),
                "tenants": tenants,
                "hardware": {"device": self._device(device), "count": 64},
                "deployment": deployment,
            }
        )

    def _device(self, changes: Mapping[str, float]) -> str:
        text = yaml.safe_dump(DEVICE | changes)
        path = self._folder / f"{abs(hash(text))}.yaml"
        path.write_text(text)
        return str(path)


def fixed(tokens: int) -> Content:
    return {"kind": "fixed", "tokens": tokens}


def poisson(rate_per_s: float) -> Content:
    return {"kind": "poisson", "rate_per_s": rate_per_s}


def tenant(model: str, arrivals: Content, prompt: Content, output: Content) -> Content:
    return {
        "model": model,
        "arrivals": arrivals,
        "prompt_tokens": prompt,
        "output_tokens": output,
    }


def two_streams(rate_per_s: float = 4.0, *, models: str = "ab") -> Content:
    """Return a stream to each of two models, or two to one."""
    each = (models[0], models[-1])
    return {
        name: tenant(model, poisson(rate_per_s), fixed(20), fixed(8))
        for name, model in zip(("first", "second"), each, strict=True)
    }


# What can be drawn ---------------------------------------------------------------------------

lengths = st.fixed_dictionaries(
    {
        "kind": st.just("lognormal"),
        "mean": st.sampled_from([1.0, 8.0, 25.0]),
        "cv": st.sampled_from([0.3, 1.0]),
        "max": st.just(80),
    }
)
open_arrivals = st.sampled_from([poisson(4.0), poisson(8.0), poisson(20.0)]) | st.just(
    {"kind": "weibull", "rate_per_s": 6.0, "cv": 1.5}
)
user_arrivals = st.fixed_dictionaries(
    {
        "kind": st.just("users"),
        "count": st.sampled_from([1, 4, 9]),
        "think_s": st.sampled_from([0.05, 0.3]),
    }
)
offloading = st.fixed_dictionaries(
    {
        "resident": st.sampled_from([0.0, 0.3, 0.6, 0.9, "fit"]),
        "cache": st.sampled_from(["pinned", "lru", "lru-by-layer"]),
    },
    optional={
        "load_gb_per_s": st.sampled_from([0.005, 0.05]),
        "load_latency_s": st.just(0.001),
        "cpu_s_per_token_expert": st.just(0.002),
        "overlap": st.just(True),
    },
)


def schedulers(orders: Row[str]) -> st.SearchStrategy[Content]:
    return st.fixed_dictionaries(
        {
            "policy": st.sampled_from(list(POLICIES)),
            "order": st.sampled_from(orders),
            "max_num_seqs": st.sampled_from([1, 2, 4, 16]),
            "max_batched_tokens": st.sampled_from([17, 64, 200]),
        },
        optional={"floor_s": st.sampled_from([0.001, 0.03])},
    )


def placed(kind: str, *, layouts: bool) -> dict[str, st.SearchStrategy[Any]]:
    """Return the fields of a kind that has two models, or one of which the other is no part."""
    turns: dict[str, st.SearchStrategy[Any]] = {
        "turns": st.sampled_from(sorted(TURNS)),
        "quantum_s": st.sampled_from([0.03, 0.3]),
    }
    maybe = {"experts": st.none() | offloading}
    overhead_s = st.sampled_from([0.0, 0.02])
    where: dict[str, st.SearchStrategy[Any]] = {"replicas": st.integers(1, 2)}
    if layouts:
        where = {"layout": st.just(INSTANCES)}
    return {
        "dedicated": {"replicas": st.integers(1, 3), **maybe},
        "tensor_parallel": {"tensor_parallel": st.sampled_from([2, 4])},
        "expert_parallel": {"expert_parallel": st.sampled_from([2, 4])},
        "mig": {"layout": st.sampled_from([INSTANCES, ["3g.40gb", "3g.40gb"]]), **maybe},
        "mps": {"sm_percent": st.just({"a": 60, "b": 40}), **maybe},
        "time_shared": {**turns, **where, **maybe, "load_overhead_s": overhead_s},
        "offloaded": {**turns, **where, "experts": offloading},
        "consolidated": {
            **turns,
            **where,
            "experts": offloading,
            "ratio": st.sampled_from([0.0, 0.5, 1.0]),
            "non_expert_sets": st.sampled_from(["one", "all"]),
            "swap_overhead_s": overhead_s,
        },
    }[kind]


def simple(
    kind: str,
    *,
    orders: Row[str] = ("fcfs", "fair"),
    kv_blocks: Row[int] = (2000,),
    layouts: bool = False,
) -> st.SearchStrategy[Content]:
    """Any deployment of a kind, of the models a and b."""
    return st.fixed_dictionaries(
        {
            "kind": st.just(kind),
            "kv_blocks": st.sampled_from(kv_blocks),
            "dispatcher": st.sampled_from(sorted(DISPATCHERS)),
            "scheduler": schedulers(orders),
            **placed(kind, layouts=layouts),
        }
    )


def routers(**how: Any) -> st.SearchStrategy[Content]:
    """Any gateway before models with deployments of their own."""
    kinds = [kind for kind in LONE if kind not in {"mps", "mig"}]
    parts = st.one_of([simple(kind, **how) for kind in kinds])
    return st.fixed_dictionaries(
        {
            "kind": st.just("expert_router"),
            "gateway": st.fixed_dictionaries(
                {
                    "name": st.just("gateway"),
                    "classify_s": st.sampled_from([0.003, 0.1]),
                    "shares": st.sampled_from([{"a": 1, "b": 1}, {"a": 5, "b": 1}]),
                }
            ),
            "experts": st.fixed_dictionaries({"a": parts, "b": parts}),
        }
    )


def deployments(kind: str, **how: Any) -> st.SearchStrategy[Content]:
    return routers(**how) if kind == "expert_router" else simple(kind, **how)


def streams(deployment: Content, arrivals: Row[Content], length: Row[Content]) -> Content:
    """Return a tenant for each arrival process, asking a, b and a again, or the gateway."""
    asked = ["gateway"] * 3 if deployment["kind"] == "expert_router" else ["a", "b", "a"]
    return {
        f"tenant {place}": tenant(asked[place], process, length[0], length[1])
        | {"priority": place, "weight": 1 + place}
        for place, process in enumerate(arrivals)
    }


# Accounting ----------------------------------------------------------------------------------


def accounted(result: Result, scenario: Scenario) -> None:
    """Demand that everybody who came is served in order of time, or refused with a reason."""
    records = result.records
    assert records["request_id"].is_unique
    assert set(records["outcome"]) <= {COMPLETED, REFUSED}
    done = records[records["outcome"] == COMPLETED]
    for sooner, later in (
        ("arrival_s", "scheduled_s"),
        ("scheduled_s", "first_token_s"),
        ("first_token_s", "finish_s"),
    ):
        assert (done[sooner] <= done[later] + 1e-9).all()
    refused = records[records["outcome"] == REFUSED]
    assert (refused["detail"] != "").all()
    for log in result.logs.values():
        assert (np.diff(log.start_s) > -1e-9).all()
    tokens = sum(
        int((log.sequences * log.iterations).sum()) + len(log.late.until_s)
        for log in result.logs.values()
    )
    assert tokens == (done["output_tokens"] - 1).sum()


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=12)
@given(data=st.data(), seed=st.integers(0, 99))
def test_everybody_is_served_or_refused(made: Maker, kind: str, data: st.DataObject, seed: int):
    """Any order and turns, users beside open streams, blocks that run out or never suffice."""
    deployment = data.draw(
        deployments(kind, orders=("fcfs", "priority", "fair"), kv_blocks=(3, 8, 40, 2000))
    )
    arrivals = data.draw(st.tuples(open_arrivals, user_arrivals | open_arrivals))
    length = data.draw(st.tuples(lengths, lengths))
    scenario = made.scenario(deployment, streams(deployment, arrivals, length))
    result = simulate(scenario, seed=seed)
    accounted(result, scenario)
    asking = [t for t in scenario.tenants.values() if t.arrivals.kind != "users"]
    if len(asking) == 2:
        other = made.scenario({"kind": "dedicated", "kv_blocks": 2000}, _directly(scenario))
        assert len(result.records) == len(simulate(other, seed=seed).records)


def _directly(scenario: Scenario) -> Content:
    """Return the same streams, all to model a."""
    return {
        name: one.model_dump(mode="json") | {"model": "a"} for name, one in scenario.tenants.items()
    }


@pytest.mark.parametrize("layouts", [False, True], ids=["devices", "instances"])
@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=15)
@given(data=st.data(), seed=st.integers(0, 99))
def test_jumping_equals_stepping(
    made: Maker, kind: str, layouts: bool, data: st.DataObject, seed: int
) -> None:
    """Any deployment, turns, dispatcher, tenants with weights, and users on whole devices."""
    deployment = data.draw(deployments(kind, layouts=layouts))
    others = open_arrivals if layouts else open_arrivals | user_arrivals
    arrivals = data.draw(st.tuples(open_arrivals, others, others))
    length = data.draw(st.tuples(lengths, lengths))
    scenario = made.scenario(
        deployment, streams(deployment, arrivals, length), duration_s=data.draw(st.floats(1.5, 3))
    )
    jumped, stepped = (simulate(scenario, seed=seed, stepwise=way) for way in (False, True))
    bound = 1e-9 * max(1.0, float(stepped.records["finish_s"].max()))
    pd.testing.assert_frame_equal(jumped.records, stepped.records, rtol=0, atol=bound)
    for replica, loads in jumped.loads.items():
        ours, theirs = (np.array(part).reshape(-1, 2) for part in (loads, stepped.loads[replica]))
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=bound)


# More hardware -------------------------------------------------------------------------------


def stations(scenario: Scenario) -> list[Station]:
    return stations_of(scenario, load_inputs(scenario))


def durations(station: Station) -> list[float]:
    """Return what iterations of many shapes and reconfigurations take on a station [s]."""
    found: list[float] = []
    for replica in station.replicas:
        limits = replica.limits
        for decodes in range(limits.max_num_seqs):
            for prompt in (0, 5, limits.max_batched_tokens - decodes):
                if decodes + prompt <= limits.max_batched_tokens and decodes + prompt:
                    found.append(replica.cost.iteration_s(batch(decodes, prompt)))
    return found + list(station.rules.reconfigure_s if station.rules else ())


def batch(decodes: int, prompt: int) -> Batch:
    """Return sequences of 40 tokens that decode, and a prompt of so many."""
    chunks = []
    for place in range(decodes):
        sequence = Sequence(place, prompt_tokens=40, output_tokens=9, computed=40, generated=1)
        chunks.append(Chunk(sequence, 1, 40))
    if prompt:
        chunks.append(Chunk(Sequence(99, prompt_tokens=prompt, output_tokens=9), prompt, 0))
    return Batch(chunks)


@pytest.mark.parametrize("kind", LONE)
@settings(max_examples=10)
@given(
    data=st.data(),
    field=st.sampled_from(RATES),
    factor=st.floats(1.01, 20),
    layouts=st.booleans(),
)
def test_a_faster_device_makes_nothing_slower(
    made: Maker, kind: str, data: st.DataObject, field: str, factor: float, layouts: bool
) -> None:
    """No iteration and no reconfiguration takes longer, neighbours asleep."""
    deployment = data.draw(simple(kind, layouts=layouts))
    tenants = two_streams()
    before, after = (
        stations(made.scenario(deployment, tenants, **{field: value}))
        for value in (DEVICE[field], DEVICE[field] * factor)
    )
    for slow, fast in zip(before, after, strict=True):
        was, now = np.array(durations(slow)), np.array(durations(fast))
        assert (now <= was * (1 + 1e-12)).all()


ANOMALY = 0.2
"""By what share a faster device may worsen the mean turnaround of some twenty requests or more."""


@pytest.mark.parametrize("kind", ["dedicated", "mig", "time_shared", "offloaded", "consolidated"])
@settings(max_examples=8)
@given(data=st.data(), factor=st.sampled_from([1.1, 1.5, 3.0]), seed=st.integers(0, 99))
def test_a_faster_device_answers_sooner_on_average(
    made: Maker, kind: str, data: st.DataObject, factor: float, seed: int
) -> None:
    """But for batching anomalies, over the same stream under the same policy."""
    deployment = data.draw(simple(kind, orders=("fcfs",)))
    arrivals, length = data.draw(st.tuples(open_arrivals, open_arrivals)), data.draw(lengths)
    tenants = {
        name: tenant(name, process, length, length)
        for name, process in zip("ab", arrivals, strict=True)
    }
    slow, fast = (
        simulate(made.scenario(deployment, tenants, duration_s=5.0, **faster(by)), seed=seed)
        for by in (1.0, factor)
    )
    assert mean_turnaround_s(fast) <= mean_turnaround_s(slow) * (1 + ANOMALY)


def faster(factor: float) -> dict[str, float]:
    """Return a device that does everything so many times as fast."""
    return {field: DEVICE[field] * factor for field in RATES}


def mean_turnaround_s(result: Result) -> float:
    """Return the mean over who was served [s]; 0 where all were refused."""
    turnaround_s = (result.records["finish_s"] - result.records["arrival_s"]).dropna()
    return float(turnaround_s.mean()) if len(turnaround_s) else 0.0


def test_a_faster_device_can_answer_later(made: Maker) -> None:
    """A batching anomaly: 10 % faster, and the mean turnaround of three requests is 15 % longer.

    The slower device is still busy with the first request to model a when the next one comes, so
    that both are served before models are changed, once. The faster one has just finished: it
    changes to b, and has to change back. Scheduling has such anomalies wherever decisions depend on
    what is there when something ends (Graham, Bell System Technical Journal 45(9), 1966).
    """
    deployment = {"kind": "time_shared", "turns": "drain", "kv_blocks": 2000}
    gap_s = 0.112  # between the requests to a, longer than the faster device serves one
    tenants = {
        name: tenant(name, {"kind": "constant", "rate_per_s": rate}, fixed(20), fixed(8))
        for name, rate in (("a", 1 / gap_s), ("b", 1 / (1.5 * gap_s)))
    }
    slow, fast = (
        simulate(made.scenario(deployment, tenants, duration_s=1.6 * gap_s, **faster(by)))
        for by in (1.0, 1.1)
    )
    assert len(slow.records) == len(fast.records) == 3
    assert [sum(map(len, result.loads.values())) for result in (slow, fast)] == [1, 2]
    assert mean_turnaround_s(fast) > 1.1 * mean_turnaround_s(slow)


@settings(max_examples=15)
@given(
    kind=st.sampled_from(["dedicated", "offloaded", "consolidated"]),
    gib=st.sampled_from([0.0015, 0.002, 0.003]),
    more=st.floats(1.0, 2.0),
    cache=st.sampled_from(["pinned", "lfu"]),
    ratio=st.sampled_from([0.0, 0.5, 1.0]),
)
def test_more_memory_only_adds_residency(
    made: Maker, kind: str, gib: float, more: float, cache: str, ratio: float
) -> None:
    """What has no room is copied: never more of it with more room, whatever an iteration holds."""
    deployment = {
        "kind": kind,
        "kv_blocks": 8,
        "experts": {"resident": "fit", "cache": cache},
        "scheduler": {"max_num_seqs": 4, "max_batched_tokens": 32},
    }
    if kind == "consolidated":
        deployment["ratio"] = ratio
    before, after = (
        stations(made.scenario(deployment, two_streams(), memory_bytes=int(size * GIB)))
        for size in (gib, gib * more)
    )
    for small, large in zip(before, after, strict=True):
        for was, now in zip(small.replicas, large.replicas, strict=True):
            assert (copies_of(now.cost) <= copies_of(was.cost) + 1e-9).all()


def copies_of(cost: object) -> np.ndarray:
    """Return the copies of iterations of 0, 1, ... tokens; none where all experts are resident."""
    if isinstance(cost, LadenCost) and cost.copies is not None:
        return cost.copies
    return np.zeros(1)


def test_a_small_device_does_miss_experts(made: Maker) -> None:
    """The sizes above are such that memory decides."""
    deployment = {
        "kind": "offloaded",
        "kv_blocks": 8,
        "scheduler": {"max_num_seqs": 4, "max_batched_tokens": 32},
    }
    missed = [
        copies_of(station.replicas[0].cost).max()
        for size in (0.0015, 0.003)
        for station in stations(
            made.scenario(deployment, two_streams(), memory_bytes=int(size * GIB))
        )
    ]
    assert missed[0] > missed[1] > 0


# What must be the same -----------------------------------------------------------------------

EQUAL = ["request_id", "tenant", "arrival_s", "scheduled_s", "first_token_s", "finish_s", "outcome"]


def assert_alike(ours: pd.DataFrame, theirs: pd.DataFrame) -> None:
    """Demand the same course of all requests, whichever model or replica served them."""
    pd.testing.assert_frame_equal(ours[EQUAL], theirs[EQUAL], rtol=0, atol=1e-9)


@settings(max_examples=15)
@given(experts=offloading, ratio=st.floats(0, 1), sets=st.sampled_from(["one", "all"]))
def test_one_variant_shares_with_nobody(
    made: Maker, experts: Content, ratio: float, sets: str
) -> None:
    """Consolidated alone, a model is what it is on a device of its own."""
    tenants = two_streams(models="a")
    own = {"experts": experts, "kv_blocks": 60}
    alone = {"kind": "consolidated", "ratio": ratio, "non_expert_sets": sets, **own}
    first, second = (
        simulate(made.scenario(deployment, tenants, models="a")).records
        for deployment in (alone, {"kind": "dedicated", **own})
    )
    assert_alike(first, second)


def test_the_largest_instance_is_the_device_less_ten_sms(made: Maker) -> None:
    """7g.80gb of an A100 has all of the bandwidth, and 98 of 108 SMs: a share that MPS can give."""
    tenants = two_streams(models="a")
    mig = {"kind": "mig", "layout": ["7g.80gb"], "kv_blocks": 60}
    mps = {"kind": "mps", "sm_percent": {"a": 100 * 98 / 108}, "kv_blocks": 60}
    whole = {"kind": "dedicated", "kv_blocks": 60}
    instance, share, device = (
        simulate(made.scenario(deployment, tenants, models="a")).records
        for deployment in (mig, mps, whole)
    )
    assert_alike(instance, share)
    assert (instance["finish_s"] > device["finish_s"]).all()


def test_the_largest_instance_of_an_h100_is_the_device(made: Maker) -> None:
    """It has all 132 SMs."""
    tenants = two_streams(models="a")
    mig = {"kind": "mig", "layout": ["7g.80gb"], "kv_blocks": 60}
    whole = {"kind": "dedicated", "kv_blocks": 60}
    instance, device = (
        simulate(made.scenario(deployment, tenants, models="a", mig="h100-80gb", sms=132)).records
        for deployment in (mig, whole)
    )
    assert_alike(instance, device)


ONE_AT_A_TIME = {"max_num_seqs": 1, "max_batched_tokens": 32}


@settings(max_examples=10)
@given(resident=st.sampled_from([0.4, 0.8, 1.0]), rate=st.floats(0.5, 4), seed=st.integers(0, 99))
def test_equal_variants_that_share_all_are_one_model(
    made: Maker, resident: float, rate: float, seed: int
) -> None:
    """At ratio 1, all sets resident, one at a time: the two streams as one."""
    own = {"experts": {"resident": resident}, "kv_blocks": 60, "scheduler": ONE_AT_A_TIME}
    both = {"kind": "consolidated", "ratio": 1.0, "non_expert_sets": "all", **own}
    shared = simulate(made.scenario(both, two_streams(rate)), seed=seed).records
    one = made.scenario({"kind": "dedicated", **own}, two_streams(rate, models="a"), models="a")
    assert_alike(shared, simulate(one, seed=seed).records)


@settings(max_examples=10)
@given(swap_s=st.sampled_from([0.0, 0.05, 0.4]), rate=st.floats(0.5, 3), seed=st.integers(0, 99))
def test_swaps_are_added_between_requests(
    made: Maker, swap_s: float, rate: float, seed: int
) -> None:
    """A queue by hand: who asks the other model than the last begins a swap later."""
    own = {"experts": {"resident": 0.8}, "kv_blocks": 60, "scheduler": ONE_AT_A_TIME}
    shared = {"kind": "consolidated", "ratio": 1.0, **own}
    resident = made.scenario(shared | {"non_expert_sets": "all"}, two_streams(rate))
    served = simulate(resident, seed=seed).records
    service_s = (served["finish_s"] - served["scheduled_s"]).to_numpy()
    swapping = made.scenario(
        shared | {"swap_gb_per_s": 1e5, "swap_overhead_s": swap_s}, two_streams(rate)
    )
    (station,) = stations(swapping)
    assert station.rules is not None
    result = simulate(swapping, seed=seed)
    free_s, loaded = 0.0, "a"
    for row, service in zip(result.records.itertuples(), service_s, strict=True):
        begin_s = max(free_s, row.arrival_s)
        if row.model != loaded:
            begin_s, loaded = begin_s + station.rules.reconfigure_s[0], row.model
        free_s = begin_s + service
        assert row.scheduled_s == pytest.approx(begin_s, abs=1e-9)
        assert row.finish_s == pytest.approx(free_s, abs=1e-9)


# One link ------------------------------------------------------------------------------------


@settings(max_examples=25)
@given(
    kind=st.sampled_from(["mig", "mps", "offloaded"]),
    layout=st.sampled_from([INSTANCES, ["3g.40gb", "3g.40gb"], ["1g.10gb"] * 7]),
    resident=st.sampled_from([0.0, 0.3, 0.7]),
    rate=st.floats(1, 20),
    prompt=st.sampled_from([1, 20, 60]),
    output=st.sampled_from([1, 8, 30]),
    seed=st.integers(0, 99),
)
def test_neighbours_copy_no_more_than_the_link_carries(
    made: Maker,
    kind: str,
    layout: list[str],
    resident: float,
    rate: float,
    prompt: int,
    output: int,
    seed: int,
) -> None:
    """Expected copies of all instances, over the time in which at least one computes or copies."""
    deployment: Content = {"kind": kind, "kv_blocks": 200, "experts": {"resident": resident}}
    deployment |= {"sm_percent": {"a": 60, "b": 40}} if kind == "mps" else {"layout": layout}
    tenants = {
        name: tenant(name, poisson(rate), fixed(prompt), fixed(output)) for name in ("a", "b")
    }
    scenario = made.scenario(deployment, tenants)
    result = simulate(scenario, seed=seed)
    tables = {
        replica.name: copies_of(replica.cost)
        for station in stations(scenario)
        for replica in station.replicas
    }
    count = sum(copied(log, tables[name]).sum() for name, log in result.logs.items())
    assert count * EXPERT_BYTES <= DEVICE["pcie_pinned_bytes_per_s"] * busy_s(result) * (1 + 1e-9)


def busy_s(result: Result) -> float:
    """Return for how long at least one replica runs an iteration [s]."""
    spans = sorted(
        (start, start + first * steps + growth * steps * (steps - 1) / 2)
        for log in result.logs.values()
        for start, first, growth, steps in zip(
            log.start_s, log.first_s, log.growth_s, log.iterations, strict=True
        )
    )
    total = until = 0.0
    for start, end in spans:
        total += max(0.0, end - max(start, until))
        until = max(until, end)
    return total
