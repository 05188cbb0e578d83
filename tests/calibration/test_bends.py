"""Sizes are added where the curve bends, and nowhere where it is straight or noise."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from calibration.bends import Row, gaps, refinement, rows_of
from calibration.grid import Grid, Part, Point
from calibration.operations import cells_of
from calibration.partial import Partial
from calibration.rounds import FEWEST_ROUNDS, Rounds
from moesim.facts.catalog import load_model
from moesim.serving.scheduling import Limits

GRID = Grid(
    spec=load_model("demo-moe"),
    limits=Limits(max_num_seqs=8, max_batched_tokens=1024, max_model_len=2048),
    kv_tokens=100_000,
    block_size=16,
)


def knee(tokens: int) -> float:
    """Return what takes a second up to 300 tokens and goes with the tokens from there on [s]."""
    return max(1.0, tokens / 300)


class World:
    """An engine whose iterations take what a curve says, on a clock of its own."""

    def __init__(self, curve: Callable[[int], float], noise: float = 0.0) -> None:
        self.curve, self.noise, self.time_s = curve, noise, 0.0

    def measured(self, engine: object, point: Point, rng: np.random.Generator) -> dict[str, float]:
        self.time_s += 1.0
        seconds = self.curve(point.tokens) * float(rng.lognormal(0, self.noise))
        return {**dict.fromkeys(cells_of(point), 0.0), "projections": seconds, "iteration": seconds}

    def run(self, out: Path, budget_s: float, tell: Callable[..., None] = print) -> list[Point]:
        partial = Partial.open(out, {})
        return Rounds(
            engine=None,  # type: ignore[arg-type]
            grid=GRID,
            mixed=[Point((Part(1, 5), Part(9, 0)))],
            partial=partial,
            budget_s=budget_s,
            started=self.time_s - partial.spent_s,
            rng=np.random.default_rng(0),
            progress=tell,
            clock=lambda: self.time_s,
            measured=self.measured,
        ).run()


def quiet(fraction: float, doing: str) -> None:
    """Report nothing."""


def chunk_sizes(points: list[Point]) -> set[int]:
    return {point.tokens for point in points if point.chunked}


BEGIN = chunk_sizes(GRID.points())


def test_a_straight_line_needs_no_more() -> None:
    """Flat and sloping alike."""
    for slope in (0.0, 0.5):
        assert not gaps([Row(size, 1 + slope * size, 0.0) for size in (1, 2, 4, 8, 16)])


def test_sizes_side_by_side_have_none_between() -> None:
    """However much the curve bends there."""
    assert not gaps([Row(1, 1.0, 0.0), Row(2, 5.0, 0.0), Row(3, 1.0, 0.0)])


def test_a_bend_within_the_noise_is_none() -> None:
    """Off by half at the middle; whether that is the curve or the host nobody can say."""
    assert gaps([Row(1, 1.0, 0.15), Row(5, 3.0, 0.15), Row(9, 2.0, 0.15)])
    assert not gaps([Row(1, 1.0, 0.18), Row(5, 3.0, 0.1), Row(9, 2.0, 0.1)])


def test_the_error_of_a_median_is_that_of_normal_samples() -> None:
    """A thousand medians of 50 samples each scatter as their rows say."""
    rng = np.random.default_rng(0)
    point = Point((Part(4, 9),), 2)
    said, medians = [], []
    for _ in range(1000):
        taken = rng.normal(1.0, 0.1, 50).tolist()
        samples = {point.key: {"projections": taken, "iteration": taken}}
        (row,) = rows_of([point], samples)[True]
        said.append(row.error)
        medians.append(row.seconds)
    assert np.mean(said) == pytest.approx(np.std(medians), rel=0.1)


def test_the_budget_is_spent_around_the_knee(tmp_path: Path) -> None:
    """Of gaps 128-256, 256-512 and 512-1024 the middles, then closer to 300 and nowhere else."""
    every = len(GRID.points()) + 1
    added = chunk_sizes(World(knee).run(tmp_path / "p", 60 * every, quiet)) - BEGIN
    assert {192, 384} <= added
    assert min(added) >= 128
    assert all(any(abs(size - other) <= 64 for size in added) for other in (270, 330))


def test_what_was_added_makes_the_line_better(tmp_path: Path) -> None:
    """The straight lines through all sizes: the worst error anywhere is a third of what it was."""

    def worst(sizes: set[int]) -> float:
        xs, asked = sorted(sizes), np.arange(4, 1025)
        truth = np.array([knee(int(tokens)) for tokens in asked])
        lines = np.interp(asked, xs, [knee(size) for size in xs])
        return float(np.abs(lines / truth - 1).max())

    every = len(GRID.points()) + 1
    found = chunk_sizes(World(knee).run(tmp_path / "p", 60 * every, quiet))
    assert worst(found) < worst(BEGIN) / 3


def test_without_time_for_more_nothing_is_added(tmp_path: Path) -> None:
    """Two times the fewest rounds, less one batch, has no room for as many of a larger grid."""
    every = len(GRID.points()) + 1
    world = World(knee)
    budget_s = 2.0 * FEWEST_ROUNDS * every - 1
    assert chunk_sizes(world.run(tmp_path / "p", budget_s, quiet)) == BEGIN
    assert world.time_s <= budget_s


@pytest.mark.parametrize("rounds", [11, 15, 30, 80])
def test_the_budget_is_kept_and_every_size_measured_often(tmp_path: Path, rounds: int) -> None:
    """However much is added, the last round ends in time."""
    every = len(GRID.points()) + 1
    world, out = World(knee, noise=0.02), tmp_path / "p"
    points = world.run(out, rounds * every, quiet)
    assert world.time_s <= rounds * every
    samples = Partial.open(out, {}).samples
    assert {point.key for point in points} < set(samples)
    assert all(len(taken["iteration"]) >= FEWEST_ROUNDS for taken in samples.values())


def test_what_was_added_is_taken_up_again(tmp_path: Path) -> None:
    """Interrupted after sizes were added, it goes on with them."""
    every = len(GRID.points()) + 1
    out = tmp_path / "p"

    def interrupt(fraction: float, doing: str) -> None:
        if not doing.startswith(f"measuring {every} ") and doing.endswith("round 8"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        World(knee).run(out, 60 * every, interrupt)
    kept = {Point.of(key).tokens for key in Partial.open(out, {}).samples}
    assert {192, 384} <= kept
    assert {192, 384} <= chunk_sizes(World(knee).run(out, 12 * every, quiet))


def test_no_more_points_than_there_is_room_for() -> None:
    """Whole rows of three, the worst first."""
    samples = {
        point.key: {"projections": [knee(point.tokens)], "experts": [0.0], "iteration": [1.0]}
        | ({"attention_prefill": [0.0]} if point.chunked else {})
        for point in GRID.points()
    }
    for most in (-1, 0, 2, 3, 5, 6, 100):
        more = refinement(GRID, GRID.points(), samples, most)
        assert len(more) == min(max(most, 0) // 3 * 3, 9)
    assert chunk_sizes(refinement(GRID, GRID.points(), samples, 6)) == {192, 384}
