"""The engine is the simulator: on predicted time, its records and its log equal to the last bit."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest

from calibration.clients import Clients
from calibration.serving import clients_of, engine_config
from engine.model.checkpoint import random_decoder
from engine.model.decoder import Decoder
from engine.serve.engine import Engine, EngineConfig
from engine.serve.traffic import Arrival, Traffic
from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile, load_profile
from moesim.facts.models import ModelSpec
from moesim.scenario import Scenario, scenario_from
from moesim.serving.iterations import Iterations
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS
from moesim.serving.records import Record
from moesim.serving.sequences import Batch
from moesim.simulation.run import Result, simulate

VOCABULARY = 16
SWAP_GB_PER_S = 2.0

RECOMPUTE: dict[str, Any] = {}
PREFIXES = {"prefix_caching": True}
SWAP = {"preemption": "swap", "swap_gib": 0.01, "swap_gb_per_s": SWAP_GB_PER_S}
WAYS = {"recompute": RECOMPUTE, "prefixes": PREFIXES, "swap": SWAP}
"""What a scheduler may do about memory."""

PREEMPTING = [name for name, policy in POLICIES.items() if policy.preempts]

OPEN = {"kind": "gamma", "rate_per_s": 25, "cv": 2}
USERS = {"kind": "users", "count": 6, "think_s": 0.2}


class CostClock:
    """Virtual time: an iteration takes what the cost model says, copies what the link says."""

    def __init__(self, cost: CostModel, swap_block_s: float) -> None:
        self.cost = cost
        self.swap_block_s = swap_block_s
        self.time_s = 0.0

    def now(self) -> float:
        return self.time_s

    def wait_until(self, moment_s: float) -> None:
        self.time_s = moment_s

    def ran(self, batch: Batch) -> None:
        copying_s = batch.swapped_blocks * self.swap_block_s
        self.time_s += self.cost.iteration_s(batch) + copying_s


@pytest.fixture(scope="module")
def profile() -> Profile:
    return load_profile("demo-cpu")


@pytest.fixture(scope="module")
def thin_decoder() -> Decoder:
    """Return a decoder that accepts the demo model's lengths and is quick to run."""
    spec = ModelSpec(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=1,
        num_key_value_heads=1,
        head_dim=8,
        num_local_experts=2,
        num_experts_per_tok=1,
        vocab_size=VOCABULARY,
        max_position_embeddings=1024,
        dtype="float32",
    )
    return random_decoder(spec, seed=0)


def scenario_of(
    arrivals: dict[str, Any], *, kv_blocks: int | None, seqs: int = 8, **scheduler: Any
) -> Scenario:
    """Return two busy seconds of two tenants of different rank, each with its system prompt."""
    lengths = {"kind": "lognormal", "mean": 40, "cv": 0.6, "max": 110}
    tenant = {
        "model": "demo",
        "prompt_tokens": lengths,
        "output_tokens": {**lengths, "mean": 16, "max": 40},
    }
    chat = {**tenant, "arrivals": arrivals, "weight": 3, "shared_prefix_tokens": 24}
    steady = {"kind": "constant", "rate_per_s": 8}
    batch = {**tenant, "arrivals": steady, "priority": 2, "shared_prefix_tokens": 40}
    limits = {"max_num_seqs": seqs, "max_batched_tokens": 160}
    return scenario_from(
        {
            "name": "equal",
            "duration_s": 2.0,
            "models": {"demo": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {"batch": batch, "chat": chat},
            "hardware": {"device": "cpu-2core"},
            "deployment": {
                "kind": "dedicated",
                "kv_blocks": kv_blocks,
                "scheduler": {**limits, **scheduler},
            },
        }
    )


def engine_for(
    scenario: Scenario, profile: Profile, decoder: Decoder, config: EngineConfig | None = None
) -> Engine:
    """Return the engine that a scenario describes, on predicted time."""
    config = config or engine_config(scenario, profile)
    cost = CostModel(
        profile,
        max_batched_tokens=config.limits.max_batched_tokens,
        max_num_seqs=config.limits.max_num_seqs,
    )
    block_bytes = config.block_size * profile.spec.kv_bytes_per_token
    return Engine(decoder, config, CostClock(cost, block_bytes / SWAP_GB_PER_S / 1e9))


def clients_for(scenario: Scenario, profile: Profile) -> Clients:
    block_size = profile.kv.block_size
    return clients_of(scenario, vocabulary=VOCABULARY, block_size=block_size, seed=0)


def demand_the_same(engine: Engine, traffic: Traffic, simulated: Result) -> None:
    """Serve on predicted time; the records and the log are the stepping simulator's."""
    records = engine.serve(traffic).sort_values(["arrival_s", "request_id"], ignore_index=True)
    assert records.equals(simulated.records)
    ours, theirs = engine.ledger.log(), simulated.logs["demo/0"]
    assert columns_of(ours) == columns_of(theirs)
    assert columns_of(ours.late) == columns_of(theirs.late)


def columns_of(table: Any) -> dict[str, list[float]]:
    """Return the columns of a log or of its late gaps."""
    columns = {field.name: getattr(table, field.name) for field in fields(table)}
    return {name: list(c) for name, c in columns.items() if isinstance(c, np.ndarray)}


CASES = [
    pytest.param(policy, order, way, id=f"{policy}-{order}-{way}")
    for policy in POLICIES
    for order in ORDERS
    for way in WAYS
    if way != "swap" or policy in PREEMPTING
]


@pytest.mark.parametrize(("policy", "order", "way"), CASES)
def test_engine_on_predicted_time_is_the_simulator(
    profile: Profile, thin_decoder: Decoder, policy: str, order: str, way: str
) -> None:
    """Under every policy, order and way to find memory, where memory is short."""
    scenario = scenario_of(OPEN, kv_blocks=10, policy=policy, order=order, **WAYS[way])
    simulated = simulate(scenario, {"demo": profile}, stepwise=True)
    engine = engine_for(scenario, profile, thin_decoder)
    demand_the_same(engine, clients_for(scenario, profile), simulated)
    records = simulated.records
    assert bool(records["preemptions"].sum()) == (policy in PREEMPTING)
    assert bool(records["cached_tokens"].sum()) == (way == "prefixes")


@pytest.mark.parametrize("policy", ["chunked_prefill", "prefill_priority"])
def test_with_memory_for_all(profile: Profile, thin_decoder: Decoder, policy: str) -> None:
    """As most scenarios are."""
    scenario = scenario_of(OPEN, kv_blocks=None, policy=policy)
    simulated = simulate(scenario, {"demo": profile}, stepwise=True)
    engine = engine_for(scenario, profile, thin_decoder)
    demand_the_same(engine, clients_for(scenario, profile), simulated)


@pytest.mark.parametrize("policy", POLICIES)
def test_users_wait_for_the_engine_as_for_the_simulator(
    profile: Profile, thin_decoder: Decoder, policy: str
) -> None:
    """In a closed loop beside open traffic, some asking for more than there is room for."""
    scenario = scenario_of(USERS, kv_blocks=5, policy=policy, **PREFIXES)
    simulated = simulate(scenario, {"demo": profile}, stepwise=True)
    engine = engine_for(scenario, profile, thin_decoder)
    demand_the_same(engine, clients_for(scenario, profile), simulated)
    asked = simulated.records[simulated.records["tenant"] == "chat"]
    assert len(asked) > USERS["count"]
    assert set(asked["outcome"]) == {"completed", "refused"}


class Unnamed:
    """Traffic whose prompts come without names."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic
        self.next_s: Callable[[], float] = traffic.next_s
        self.done: Callable[[Record], None] = traffic.done

    def take(self) -> Arrival:
        return replace(self._traffic.take(), names=None)


@pytest.mark.parametrize("policy", POLICIES)
def test_prompts_that_begin_alike_need_no_names(
    profile: Profile, thin_decoder: Decoder, policy: str
) -> None:
    """Hashes of tokens find what the names of the simulator say, as long as nothing is evicted."""
    scenario = scenario_of(OPEN, kv_blocks=None, policy=policy, **PREFIXES)
    simulated = simulate(scenario, {"demo": profile}, stepwise=True)
    engine = engine_for(scenario, profile, thin_decoder)
    demand_the_same(engine, Unnamed(clients_for(scenario, profile)), simulated)
    assert simulated.records["cached_tokens"].sum() > 0


def test_the_log_has_every_gap(profile: Profile, thin_decoder: Decoder) -> None:
    """As many gaps as tokens after each request's first, some of them late."""
    scenario = scenario_of(OPEN, kv_blocks=10, **SWAP)
    engine = engine_for(scenario, profile, thin_decoder)
    records = engine.serve(clients_for(scenario, profile))
    log: Iterations = engine.ledger.log()
    assert log.gaps == (records["output_tokens"] - 1).sum()
    assert len(log.late.request_id) > 0
