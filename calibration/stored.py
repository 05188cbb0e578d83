"""Experts in a store, timed in the engine's own iterations against the model alone.

Every round measures each batch on all engines, one after the other, so that a slow spell of the
host touches all alike; what is kept is the ratio of medians.

| engine | experts | gives |
|---|---|---|
| plain | the model's own | what the ratios are to |
| pooled, of 1, 2, ... variants | all on the device, more copies with each | `Stored`, complete |
| store with one copy missing | one by one; the missing one has settled in staging | `Stored` |
| store with all copies missing | each is copied before it runs | what an iteration waits for each |
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median

import numpy as np
import torch

from calibration.grid import Grid, Point
from calibration.operations import measure
from calibration.timing import median_and_spread
from engine.serve.engine import Engine, EngineConfig
from engine.variants.family import ALL, Family, Sharing, load_family
from engine.variants.positions import positions_of
from engine.variants.store import Residency
from moesim.cost.profile import ExpertLoad, Stored
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

ROUNDS = 7
ONE_BY_ONE = "loop"
"""The style in which the engine runs experts of which some are absent."""

Tell = Callable[[float, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What was measured, and what could not be."""

    stored: list[Stored]
    loads: list[ExpertLoad]
    notes: list[str]


def measure_stored(
    plain: Engine, folders: Mapping[str, Path], device: torch.device, tell: Tell
) -> Found:
    """Time experts in stores of the variants in `folders`, the first of which `plain` has."""
    spec, config = plain.runner.decoder.spec, plain.config
    whole = Grid(
        spec=spec,
        limits=config.limits,
        kv_tokens=config.num_blocks * config.block_size,
        block_size=config.block_size,
    )
    grid = [point for point in whole.points() if point.distinct is not None]
    opened, notes = _opened(folders, config, device, spec)
    engines = {"plain": plain, **{key: engine for key, (_, engine) in opened.items()}}
    samples = _rounds(engines, grid, tell)
    stored = [
        _stored(samples, key, grid, copies=len(family.store.copies))
        for key, (family, _) in opened.items()
        if key != "absent"
    ]
    loads = []
    if {"absent", "settled"} <= set(opened):
        loads.append(_load(samples, grid, spec, device))
    return Found(stored=stored, loads=loads, notes=notes)


def _opened(
    folders: Mapping[str, Path], config: EngineConfig, device: torch.device, spec: ModelSpec
) -> tuple[dict[str, tuple[Family, Engine]], list[str]]:
    """Open an engine for each kind of store; a note for each that does not fit."""
    names, found, notes = list(folders), dict[str, tuple[Family, Engine]](), list[str]()
    positions = len(positions_of(spec))
    wanted = [(f"pooled {n + 1}", n + 1, 1.0) for n in range(len(names))]
    wanted += [("settled", 1, 1 - 1 / positions), ("absent", 1, 0.0)]
    for key, count, resident in wanted:
        sharing = Sharing(residency=Residency(resident=resident), non_expert_sets=ALL)
        style = config if resident == 1 else replace(config, experts=ONE_BY_ONE, graphs=False)
        try:
            family = load_family({name: folders[name] for name in names[:count]}, sharing, device)
            engine = Engine(family.decoders[names[0]], style)
        except EngineError as wrong:
            notes.append(f"experts in a store, {key}: not measured: {wrong}")
            continue
        found[key] = family, engine
    return found, notes


Samples = dict[tuple[str, str], list[dict[str, float]]]


def _rounds(engines: Mapping[str, Engine], grid: list[Point], tell: Tell) -> Samples:
    """Measure each point on each engine, after a round that is not counted."""
    rng = np.random.default_rng(0)
    samples: Samples = {}
    for turn in range(ROUNDS + 1):
        tell(turn / (ROUNDS + 1), "experts in a store")
        for index in rng.permutation(len(grid)):
            point = grid[index]
            for key, engine in engines.items():
                taken = measure(engine, point, rng)
                if turn:
                    samples.setdefault((key, point.key), []).append(taken)
    return samples


def _stored(samples: Samples, key: str, grid: list[Point], *, copies: int) -> Stored:
    """Return the ratios of an engine's experts to the plain engine's, place by place."""
    pooled: dict[tuple[float, float], list[float]] = {}
    for point in grid:
        own = median(taken["experts"] for taken in samples["plain", point.key])
        its = median(taken["experts"] for taken in samples[key, point.key])
        place = (float(point.tokens), float(point.distinct or 0))
        pooled.setdefault(place, []).append(its / own)
    return Stored(
        copies=copies,
        complete=key.startswith("pooled"),
        factors=[(*place, round(median(ratios), 4)) for place, ratios in sorted(pooled.items())],
    )


def _load(samples: Samples, grid: list[Point], spec: ModelSpec, device: torch.device) -> ExpertLoad:
    """Return what an iteration is longer by for each expert of a layer that has to be brought."""
    each_s = [
        (absent["experts"] - settled["experts"])
        * spec.num_hidden_layers
        / spec.expert_layers
        / (point.distinct or 1)
        for point in grid
        for absent, settled in zip(
            samples["absent", point.key], samples["settled", point.key], strict=True
        )
    ]
    middle_s, spread = median_and_spread(each_s)
    return ExpertLoad(
        memory="pinned" if device.type == "cuda" else "host",
        how="in_iteration",
        expert_bytes=spec.expert_parameters * spec.dtype_bytes,
        in_flight=1,
        median_s=max(middle_s, 1e-9),  # copies that hide entirely cost nothing
        spread=round(max(spread, 0.0), 4),
        repeats=len(each_s),
    )
