"""Decodes that the engine replays as graphs are predicted to take what replaying them took.

On a clock of its own every lap takes a millisecond, and a replay of n rows with C tokens of context
in all 4 + n / 4 + C / 100, far less than the laps together.
"""

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from calibration import calibrate as calibrating
from calibration import timing
from calibration.calibrate import Settings, calibrate, predicted_s, uuid_hash_of
from calibration.foresight import foresee
from calibration.grid import Grid, Part, Point, held_out
from calibration.host import Host
from calibration.operations import cells_of, measure
from calibration.plan import Plan
from engine.model.experts.choosing import use_experts
from engine.serve.engine import Engine
from engine.serve.graphs import DecodeGraphs, graph_sizes
from engine.serve.inputs import Flat
from moesim.cost.profile import REPLAY, Profile, load_profile
from moesim.facts.catalog import load_model
from moesim.scenario import scenario_from
from moesim.serving.scheduling import Limits

SIZES = (1, 2, 4)
LAP_S = 1e-3


def replay_s(rows: int, context: float) -> float:
    """Return what a replay takes, and the one lap around it [s]."""
    return LAP_S + 1e-3 * (4 + rows / 4 + context / 100)


class Clock:
    """Moves on by a lap whenever it is read."""

    def __init__(self) -> None:
        self.now_s = 0.0

    def __call__(self) -> float:
        self.now_s += LAP_S
        return self.now_s


def replaying(settings: Settings, clock: Clock) -> Engine:
    """Return an engine that pads its decodes to graphs, each of which takes its time."""
    engine = calibrating.engine_for(settings)
    use_experts(engine.runner.decoder, "dense")  # which a graph holds
    engine.runner.capture(SIZES)
    graphs = engine.runner._graphs
    assert isinstance(graphs, DecodeGraphs)
    replay = graphs.run

    def timed(batch: Flat) -> object:
        size = next(size for size in SIZES if size >= len(batch.decodes))
        filling = (size - len(batch.decodes)) * batch.lengths[0]
        clock.now_s += replay_s(size, sum(batch.lengths) + filling) - LAP_S
        return replay(batch)

    graphs.run = timed  # type: ignore[method-assign, assignment]
    return engine


@pytest.fixture(scope="module")
def made(
    settings: Settings, host: Host, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Profile, Engine]:
    """Profile such an engine; return what came of it, and one more of the kind."""
    clock = Clock()
    with pytest.MonkeyPatch.context() as patch:
        engine, other = replaying(settings, clock), replaying(settings, clock)
        patch.setattr(calibrating, "engine_for", lambda settings: engine)
        patch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
        out = tmp_path_factory.mktemp("replays") / "profile.json"
        calibrate(replace(settings, budget_s=0.01), out, host)
        return load_profile(out), other


def decodes(count: int, context: int, *, replayed: bool = True) -> Point:
    return Point((Part(1, context),) * count, replayed=replayed)


@pytest.mark.parametrize("count", SIZES)
def test_what_was_replayed_is_predicted(made: tuple[Profile, Engine], count: int) -> None:
    """At both measured contexts of every captured size, and between them."""
    profile, _ = made
    measured = [at[1] / count - 1 for at in places(profile) if at[0] == count]
    assert len(measured) == 2
    for context in (*measured, sum(measured) // 2):
        wanted = replay_s(count, count * (context + 1))
        assert predicted_s(profile, decodes(count, int(context))) == pytest.approx(wanted)


def test_decodes_between_two_sizes_are_padded(made: tuple[Profile, Engine]) -> None:
    """Three run in the graph of four, whose filling attends as they do."""
    profile, _ = made
    assert predicted_s(profile, decodes(3, 20)) == pytest.approx(replay_s(4, 4 * 21))


def test_the_runner_takes_what_is_predicted(
    made: tuple[Profile, Engine], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Served as the engine serves, alone and beside a prompt, which is launched lap by lap."""
    profile, engine = made
    rng, clock = np.random.default_rng(0), Clock()
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=clock))
    graphs = engine.runner._graphs
    assert graphs is not None
    taken: list[float] = []
    former = graphs.run

    def noted(batch: Flat) -> object:
        taken.append(replay_s(len(batch.decodes), sum(batch.lengths)))
        return former(batch)

    monkeypatch.setattr(graphs, "run", noted)
    for count in SIZES:
        measure(engine, decodes(count, 9), rng)
        assert predicted_s(profile, decodes(count, 9)) == pytest.approx(taken[-1])
        assert engine.scheduler.idle
        assert engine.runner.free_blocks == engine.config.num_blocks
    launched = measure(engine, decodes(2, 9, replayed=False), rng)
    mixed = Point((Part(1, 9), Part(1, 9), Part(5, 0)))
    assert len(taken) == 2 * len(SIZES)
    assert launched["iteration"] > 2 * taken[3]
    assert predicted_s(profile, mixed) == pytest.approx(measure(engine, mixed, rng)["iteration"])


def test_whole_iterations_held_out_are_served_too(made: tuple[Profile, Engine]) -> None:
    """Decodes alone among them would be launched, and nobody serves them so."""
    profile, engine = made
    limits, kv_tokens = engine.config.limits, 16 * engine.config.num_blocks
    points = held_out(limits, kv_tokens, graphs=SIZES)
    residuals = dict(zip(points, profile.verdict.iteration_residuals, strict=True))
    alone = [point for point in points if point.replayed]
    assert alone
    assert all(abs(residuals[point]) < 1e-4 for point in alone)
    launched = replace(alone[0], replayed=False)
    assert predicted_s(profile.launched(), launched) > 2 * predicted_s(profile, launched)


def test_shares_of_a_device_replay_nothing(made: tuple[Profile, Engine]) -> None:
    """Their engines capture no graph: what is predicted is the sum of operations."""
    profile, engine = made
    content = {
        "name": "shares",
        "duration_s": 1.0,
        "models": {"m": {"architecture": "demo-moe", "profile": "demo-cpu"}},
        "tenants": {
            "t": {
                "model": "m",
                "arrivals": {"kind": "constant", "rate_per_s": 1},
                "prompt_tokens": {"kind": "fixed", "tokens": 4},
                "output_tokens": {"kind": "fixed", "tokens": 4},
            }
        },
        "hardware": {"device": "cpu-2core"},
        "deployment": {"kind": "mps", "sm_percent": {"m": 50}},
    }
    plan = Plan(
        scenario=scenario_from(content),
        profile=profile,
        model="",
        runs=1,
        seed=0,
        device=engine.runner.decoder.device,
    )
    launched = foresee(plan).profiles["m"]
    assert launched.decode_graphs == ()
    assert REPLAY not in launched.operations
    eager_s = predicted_s(launched, decodes(2, 9))
    assert eager_s > 2 * predicted_s(profile, decodes(2, 9))


def places(profile: Profile) -> list[tuple[float, ...]]:
    return [cell.at for cell in profile.operations[REPLAY]]


def test_the_grid_replays_every_size_at_two_contexts() -> None:
    """Within the cache: 640 tokens are 24 for each of 16 decodes besides a block to spare."""
    limits = Limits(max_num_seqs=32, max_batched_tokens=64, max_model_len=300)
    spec, graphs = load_model("demo-moe"), (1, 16, 32)
    grid = Grid(spec=spec, limits=limits, kv_tokens=640, block_size=16, graphs=graphs)
    replayed = [point for point in grid.points() if point.replayed]
    assert [cells_of(point)[REPLAY] for point in replayed] == [
        (1, 17),
        (1, 300),
        (16, 16 * 17),
        (16, 16 * 25),
        (32, 32 * 5),
    ]
    assert [Point.of(point.key) for point in replayed] == replayed
    plain = replace(grid, graphs=()).points()
    assert plain == [point for point in grid.points() if not point.replayed]


def test_held_out_decodes_are_replayed_where_graphs_reach() -> None:
    """Prompts and larger batches are launched, as the engine does."""
    limits = Limits(max_num_seqs=32, max_batched_tokens=64, max_model_len=300)
    found = held_out(limits, 10_000, count=40, graphs=(1, 2, 4))
    alone = [point for point in found if all(part.new_tokens == 1 for part in point.parts)]
    assert {point.replayed for point in alone} == {True, False}
    for point in found:
        assert point.replayed == (point in alone and len(point.parts) <= 4)
    launched = [replace(point, replayed=False) for point in found]
    assert launched == held_out(limits, 10_000, count=40)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_replays(settings: Settings, host: Host, tmp_path: Path) -> None:
    """On a GPU the engine's own graphs are timed, and the profile says on which GPU."""
    there = replace(settings, device=torch.device("cuda"))
    profile = calibrate(there, tmp_path / "profile.json", host)
    assert profile.decode_graphs == graph_sizes(settings.max_num_seqs)
    assert {at[0] for at in places(profile)} == set(profile.decode_graphs)
    assert all(cell.median_s > 0 and cell.repeats >= 5 for cell in profile.operations[REPLAY])
    assert profile.provenance.device_hash == uuid_hash_of(there.device)
