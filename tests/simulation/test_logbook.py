"""A log written afterwards: a course of two requests worked out by hand.

Iterations last 1 s and 0.1 s for every cached token of a decode; prompts of 2 tokens take a second
more.

| iteration | at [s] | who | lasts [s] | cached |
|---|---|---|---|---|
| 0 | 1.0 | 0 enters | 2.0 | 0 |
| 1 | 3.0 | 0 decodes | 1.2 | 2 |
| 2 | 4.2 | 0 decodes, 1 enters | 2.3 | 3 |
| 3 | 6.5 | 0 has finished, 1 decodes | 1.2 | 2 |
| 4, 5 | 7.7 | 1 decodes on its own | 1.3, 1.4 | 3, 4 |
"""

from dataclasses import dataclass

import numpy as np
import pytest

from moesim.cost.iteration import Cost, Tables
from moesim.serving.columns import Columns
from moesim.simulation.course import Stream
from moesim.simulation.logbook import Notes, Piece, taken_up, written


class Priced(Cost):
    """A second an iteration, times a factor, and 0.1 s a cached token."""

    def __init__(self, factor: float = 1.0) -> None:
        lines = [(factor, 0.1)] * 5
        super().__init__(Tables([], [], [], lines, lines, lines))

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return nothing: no prompt is priced here."""
        raise AssertionError

    def basis(self) -> dict[str, str]:
        """Return nothing."""
        return {}


@dataclass
class World:
    """A stream of requests of 2 tokens in, and what was noted while it was served."""

    stream: Stream
    notes: Notes


@pytest.fixture
def world() -> World:
    """Return the course of the module's table, up to iteration 6."""
    requests = {"arrival_s": np.zeros(2), "prompt_tokens": np.full(2, 2)}
    stream = Stream.of(Columns(2, {**requests, "output_tokens": np.array([3, 5])}), 16)
    stream.scheduled_s, stream.first_token_s = [1.0, 4.2], [3.0, 6.5]
    stream.finish_s = [6.5, 10.4]
    return World(stream, Notes(0, 0.0, [(0.0, Priced())], {}, entered=[0.0, 2.0]))


def test_runs_begin_where_the_batch_changes(world: World) -> None:
    """The idle second before the first request is no run."""
    runs, entering = written(world.notes, world.stream, 6.0)
    start_s, first_s, growth_s, iterations, decodes, tokens, context = runs
    assert start_s == pytest.approx([1.0, 3.0, 4.2, 6.5])
    assert first_s == pytest.approx([2.0, 1.2, 2.3, 1.2])
    assert growth_s == pytest.approx([0.0, 0.1, 0.0, 0.1])
    assert iterations.tolist() == [1, 1, 1, 3]
    assert decodes.tolist() == [0, 1, 1, 1]
    assert tokens.tolist() == [2, 1, 3, 1]
    assert context.tolist() == [0, 2, 3, 2]
    assert entering.tolist() == [1, 0, 1, 0]


def test_a_course_is_told_in_two_parts(world: World) -> None:
    """Who decodes when the second part begins completed its prompt before its iteration 0."""
    whole, _ = written(world.notes, world.stream, 6.0)
    rest = Notes(2, 6.5, [(0.0, Priced())], {1: -1.0})
    runs, _ = written(rest, world.stream, 3.0)
    assert runs[:, 0] == pytest.approx(whole[:, 3])
    assert runs.shape == (7, 1)


def test_a_prompt_in_pieces_is_told_by_its_notes(world: World) -> None:
    """Request 1 in two pieces, a token each: the second completes it."""
    world.notes.pieces = [Piece(1.0, 3.0, 4.2, 2, 0), Piece(2.0, 4.2, 6.5, 2, 1)]
    runs, entering = written(world.notes, world.stream, 6.0)
    _, first_s, growth_s, _, decodes, tokens, context = runs
    assert first_s == pytest.approx([2.0, 1.2, 2.3, 1.2])
    assert growth_s == pytest.approx([0.0, 0.0, 0.0, 0.1])
    assert tokens.tolist() == [2, 2, 2, 1]
    assert context.tolist() == [0, 2, 4, 2]
    assert (decodes.tolist(), entering.tolist()) == ([0, 1, 1, 1], [1, 0, 1, 0])


def test_another_price_begins_a_run(world: World) -> None:
    """Twice as much from iteration 4 on."""
    world.notes.reprice(4.0, 7.7, Priced(2.0))
    runs, _ = written(world.notes, world.stream, 6.0)
    start_s, first_s, _, iterations, *_ = runs
    assert start_s == pytest.approx([1.0, 3.0, 4.2, 6.5, 7.7])
    assert first_s == pytest.approx([2.0, 1.2, 2.3, 1.2, 2.3])
    assert iterations.tolist() == [1, 1, 1, 1, 2]


def test_a_pause_makes_a_gap_late(world: World) -> None:
    """Two seconds between iterations 3 and 4, of which request 1 had the last token before."""
    world.notes.pause(4.0, 7.7, 9.7, [1])
    world.stream.finish_s[1] = 12.4
    late: list[tuple[int, float, float]] = []
    runs, _ = written(world.notes, world.stream, 6.0)
    start_s, first_s, _, iterations, decodes, _, context = taken_up(runs, world.notes.pauses, late)
    assert late == [(1, 7.7, pytest.approx(11.0))]
    assert start_s == pytest.approx([1.0, 3.0, 4.2, 6.5, 9.7, 11.0])
    assert first_s[3:] == pytest.approx([1.2, 1.3, 1.4])
    assert iterations[3:].tolist() == [1, 1, 1]
    assert (decodes[3:].tolist(), context[3:].tolist()) == ([1, 0, 1], [2, 3, 4])


def test_nothing_ran(world: World) -> None:
    """A course that was interrupted before its first iteration has no runs."""
    runs, entering = written(Notes(0, 0.0, [(0.0, Priced())], {}), world.stream, 0.0)
    assert runs.shape == (7, 0)
    assert not entering.size
