"""One real run of a scenario: its engine, its clients, the wall clock."""

import numpy as np
import pandas as pd

from calibration.clients import Clients, Prompts
from calibration.grid import Part, Point
from calibration.operations import measure
from calibration.probe import probe_s
from engine.model.decoder import Decoder
from engine.serve.clock import WallClock
from engine.serve.engine import Engine, EngineConfig
from engine.serve.sampling import Sampling
from moesim.commands import Reporter
from moesim.cost.profile import Profile
from moesim.requests import Request, draw_requests, requests_from
from moesim.scenario import Scenario
from moesim.serving.records import Ledger
from moesim.simulation.builder import limits_of
from moesim.simulation.prefixes import with_block_names
from moesim.simulation.users import users_of


def engine_config(scenario: Scenario, profile: Profile, run: int = 0) -> EngineConfig:
    """Return the engine that a scenario describes; runs differ in the tokens sampled."""
    deployment, tenants = scenario.deployment, scenario.tenants
    order = deployment.scheduler.order
    return EngineConfig(
        limits=limits_of(scenario.deployment.scheduler, profile.spec, profile.kv.block_size),
        num_blocks=deployment.kv_blocks or profile.kv.num_blocks,
        block_size=profile.kv.block_size,
        order=order,
        # Under another order all are equally urgent, also when somebody must be preempted.
        priorities={n: t.priority for n, t in tenants.items()} if order == "priority" else {},
        weights={name: tenant.weight for name, tenant in tenants.items()},
        prefix_caching=deployment.scheduler.prefix_caching,
        sampling=Sampling(temperature=1.0, seed=run),
    )


def drawn_requests(scenario: Scenario, block_size: int, seed: int) -> list[Request]:
    """Draw the requests that no user asks, named as the simulator names their blocks."""
    return named_requests(draw_requests(scenario, seed), scenario, block_size)


def named_requests(frame: pd.DataFrame, scenario: Scenario, block_size: int) -> list[Request]:
    """Return requests of a frame, their blocks named where prompts may share them."""
    if scenario.deployment.scheduler.prefix_caching:
        return requests_from(with_block_names(frame, scenario, block_size))
    return requests_from(frame.drop(columns="prefix", errors="ignore"))


def clients_of(
    scenario: Scenario, *, vocabulary: int, block_size: int, seed: int, run: int = 0
) -> Clients:
    """Return everybody who sends the requests of a run; runs differ in the prompts' tokens."""
    return Clients(
        drawn_requests(scenario, block_size, seed),
        users_of(scenario, block_size, seed),
        Prompts(vocabulary, block_size, (seed, run)),
        until_s=scenario.duration_s,
    )


def serve_for_real(
    scenario: Scenario,
    profile: Profile,
    decoder: Decoder,
    progress: Reporter,
    *,
    title: str,
    seed: int,
    run: int,
) -> tuple[pd.DataFrame, float]:
    """Serve a workload once in real time.

    Returns the records, and the probe's duration around the run [s].
    """
    engine = Engine(decoder, engine_config(scenario, profile, run))
    warm_up(engine)
    clients = clients_of(
        scenario,
        vocabulary=decoder.spec.vocab_size,
        block_size=profile.kv.block_size,
        seed=seed,
        run=run,
    )
    before_s = probe_s(engine)
    engine.ledger, engine.clock = Ledger(), WallClock()
    records = engine.serve(
        clients, lambda now_s: progress(min(1.0, now_s / scenario.duration_s), title)
    )
    # Users number their requests after all others', whenever they ask.
    in_order = records.sort_values(["arrival_s", "request_id"], ignore_index=True)
    return in_order, (before_s + probe_s(engine)) / 2


def warm_up(engine: Engine) -> None:
    """Touch every code path once, so that the first request does not pay for it."""
    rng = np.random.default_rng(0)
    limits = engine.config.limits
    size = min(32, limits.max_batched_tokens - 1)
    parts = (Part(1, 8), Part(size, 0)) if size > 1 else (Part(1, 8),)
    for _ in range(10):
        measure(engine, Point(parts[: limits.max_num_seqs]), rng)
