"""Models on shares of one device, served for real: an engine each, all at once.

What the simulator calls `mps`: compute is divided, memory and bandwidth are everybody's. On a CPU
each engine has a process and cores of its own, on CUDA a thread and SMs of its own
(`engine.slices`). Every share loads its model, says how long a small batch takes while the others
wait and while they do the same, and serves its own tenants from a common beginning.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from calibration.clients import Clients, Prompts
from calibration.probe import probe_s
from calibration.serving import engine_config, named_requests, warm_up
from calibration.sharing import LateClock
from engine.model.checkpoint import load_decoder
from engine.serve.engine import Engine, EngineConfig
from engine.slices.at_once import Gate, at_once
from engine.slices.here import parts_of
from engine.slices.part import Part
from moesim.cost.profile import Profile
from moesim.deployment import Mps
from moesim.requests import draw_requests
from moesim.scenario import Scenario
from moesim.serving.records import Ledger
from moesim.simulation.deploy import drafted_of
from moesim.simulation.inputs import load_inputs


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What one share serves, `place` being its number; it can be sent to another process."""

    place: int
    count: int
    model: str
    folder: Path
    scenario: Scenario
    profile: Profile
    blocks: int
    device: torch.device
    seed: int
    run: int
    clock: Callable[[], LateClock] = LateClock


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What one share served, and how long a small batch took there before [s]."""

    records: pd.DataFrame
    alone_s: float
    """While the other shares waited."""
    beside_s: float
    """While they computed the same."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Around:
    """What was measured around a real run on shares: means over them."""

    probe_s: float
    stretch: float
    """How many times as long a small batch took beside busy neighbours as alone."""


def realised(scenario: Scenario, device: torch.device) -> tuple[Scenario, dict[str, Part]]:
    """Return a scenario with the shares that its models get on this host, in whole units.

    It is what is predicted. Served is what was asked for: whole groups of SMs are less than that.
    """
    deployment = scenario.deployment
    assert isinstance(deployment, Mps)  # noqa: S101 was checked
    parts = dict(zip(scenario.models, parts_of(_shares(deployment, scenario), device), strict=True))
    percent = {name: 100 * float(part.share) for name, part in parts.items()}
    told = deployment.model_copy(update={"sm_percent": percent})
    return scenario.model_copy(update={"deployment": told}), parts


def blocks_of(scenario: Scenario, profiles: Mapping[str, Profile]) -> list[int]:
    """Return the KV blocks of each model, as the simulator lays them out."""
    drafts = drafted_of(scenario, load_inputs(scenario, profiles))[0].drafts
    memory = drafts[0].memory
    if memory is not None:
        memory.require_fit()
    return [draft.blocks[0] for draft in drafts]


def serve_on_shares(
    scenario: Scenario,
    profiles: Mapping[str, Profile],
    folders: Mapping[str, Path],
    device: torch.device,
    *,
    seed: int,
    run: int,
    clock: Callable[[], LateClock] = LateClock,
) -> tuple[pd.DataFrame, Around]:
    """Serve a workload once in real time; return the records and what was measured before."""
    deployment = scenario.deployment
    assert isinstance(deployment, Mps)  # noqa: S101 was checked
    jobs = [
        Job(
            place=place,
            count=len(folders),
            model=name,
            folder=folders[name],
            scenario=scenario,
            profile=profiles[name],
            blocks=blocks,
            device=device,
            seed=seed,
            run=run,
            clock=clock,
        )
        for place, (name, blocks) in enumerate(
            zip(scenario.models, blocks_of(scenario, profiles), strict=True)
        )
    ]
    served = at_once(_shares(deployment, scenario), device, serve_share, jobs)
    records = pd.concat([each.records for each in served if len(each.records)])
    around = Around(
        probe_s=float(np.mean([each.alone_s for each in served])),
        stretch=float(np.mean([each.beside_s / each.alone_s for each in served])),
    )
    return records.sort_values(["arrival_s", "request_id"], ignore_index=True), around


def serve_share(job: Job, gate: Gate) -> Served:
    """Serve one model on the share that this process, or stream, has."""
    clock = job.clock()
    config = engine_config(job.scenario, job.profile, job.run)
    config = replace(config, num_blocks=job.blocks, graphs=False)
    engine = _opened(config, job, gate)
    warm_up(engine)
    alone_s, beside_s = _probes(engine, job, gate)
    frame = draw_requests(job.scenario, job.seed)
    clients = Clients(
        named_requests(frame[frame["model"] == job.model], job.scenario, config.block_size),
        (),
        Prompts(job.profile.spec.vocab_size, config.block_size, (job.seed, job.run, job.place)),
        until_s=job.scenario.duration_s,
    )
    engine.ledger, engine.clock = Ledger(), clock
    gate.wait()
    clock.begin()
    return Served(records=engine.serve(clients), alone_s=alone_s, beside_s=beside_s)


def _opened(config: EngineConfig, job: Job, gate: Gate) -> Engine:
    """Open an engine while the other shares wait.

    On CUDA it captures graphs to choose its experts' style, which allocations of another thread
    would spoil.
    """
    opened: list[Engine] = []
    for turn in range(job.count):
        gate.wait()
        if turn == job.place:
            opened.append(Engine(load_decoder(job.folder, job.device), config))
    gate.wait()
    return opened[0]


def _probes(engine: Engine, job: Job, gate: Gate) -> tuple[float, float]:
    """Return how long a small batch takes alone, one share after the other, and beside all [s]."""
    alone_s = 0.0
    for turn in range(job.count):
        gate.wait()
        if turn == job.place:
            alone_s = probe_s(engine)
    gate.wait()
    return alone_s, probe_s(engine)


def _shares(deployment: Mps, scenario: Scenario) -> list[Fraction]:
    """Return each model's share, of which floats keep no more than a millionth."""
    return [
        Fraction(deployment.sm_percent[name] / 100).limit_denominator(10**6)
        for name in scenario.models
    ]
