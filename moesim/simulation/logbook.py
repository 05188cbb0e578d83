"""The log of a course that ran ahead, written afterwards from the stamps of its requests.

A loop that logged every run of iterations would spend a third of its time on that. It need not:
the batch changes only when a prompt is computed and when a request finishes. Counted in iterations,
a request whose prompt is computed in iteration e, from 0, decodes from e + 1 on and finishes with
iteration e + o - 1 for o output tokens. Those numbers, in order, are where runs begin; the stamps
of the requests say when; sums over who came and went say with how many tokens and how much context.

Only what no stamp tells is noted in the loop: iterations with part of a prompt, and when a course
was interrupted or its iterations began to cost something else.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cost.iteration import Cost
from moesim.serving.iterations import Floats
from moesim.simulation.course import Stream


class Piece(NamedTuple):
    """An iteration with part of a prompt; `cached` tokens of that were computed before."""

    iteration: float
    start_s: float
    end_s: float
    tokens: float
    cached: float


@dataclass(slots=True)
class Notes:
    """What is noted while a course runs ahead; iterations are counted from its beginning.

    `entered` are the iterations that completed the prompts of requests from `first` on; `running`
    are who decoded before, with the iterations that completed theirs, below 0. `marks` are
    iterations and when they began; `prices` from which on a cost held; `pauses` by the iteration
    that came next since when, and who was decoding.
    """

    first: int
    begun_s: float
    prices: list[tuple[float, Cost]]
    running: dict[int, float]
    entered: list[float] = field(default_factory=list)
    pieces: list[Piece] = field(default_factory=list)
    marks: list[tuple[float, float]] = field(default_factory=list)
    pauses: dict[float, tuple[float, list[int]]] = field(default_factory=dict)

    def pause(self, iteration: float, since_s: float, until_s: float, decoding: list[int]) -> None:
        """Note that the next iteration begins late, and who has waited for it."""
        self.marks.append((iteration, until_s))
        if decoding:
            self.pauses.setdefault(iteration, (since_s, decoding.copy()))

    def reprice(self, iteration: float, now_s: float, cost: Cost) -> None:
        """Note that iterations from the next on cost something else."""
        self.marks.append((iteration, now_s))
        self.prices.append((iteration, cost))


def written(notes: Notes, stream: Stream, iterations: float) -> tuple[Floats, Floats]:
    """Return the runs of a course's first `iterations`, the columns of the log (7, R).

    With them how many prompts each of them completed, (R,).
    """
    page = _Page(notes, stream, iterations)
    return page.runs(), page.entering[:-1]


class _Page:
    """What it takes to write the log: arrays by request, and by run with the end as a last one.

    Requests are those who decoded before and then those who came; `gone` are who has finished.
    `begins` is the iteration that each run begins with; `begin_at`, `gone_at` and `piece_at` are
    the runs that complete somebody's prompt, that begin where somebody has finished, and that
    compute part of a prompt.
    """

    def __init__(self, notes: Notes, stream: Stream, iterations: float) -> None:
        self._notes, self._stream = notes, stream
        self._old = list(notes.running)
        self._new = slice(notes.first, notes.first + len(notes.entered))
        entered = _floats(notes.entered)
        before = [_floats([*notes.running.values()]), entered] if self._old else [entered]
        completed = np.concatenate(before)
        prompt, last = self._of_all("prompt"), completed + self._of_all("output")
        self.gone = last <= iterations
        self.pieces = _table(notes.pieces, len(Piece._fields))
        self.marks = _table(notes.marks, 2)
        parts = self.pieces[0], self.pieces[0] + 1, self.marks[0]
        ends = last[self.gone]
        self.begins = _rising([0.0, iterations], entered, entered + 1, ends, *parts)
        self.begin_at = np.searchsorted(self.begins, entered)
        self.gone_at = np.searchsorted(self.begins, ends)
        self.piece_at = np.searchsorted(self.begins, self.pieces[0])
        self.entering = self._sums(self.begin_at)
        self.prompts = self._sums(self.begin_at, prompt[len(self._old) :])
        self.cached = prompt - completed - 1  # of each request, counted back to iteration 0

    def runs(self) -> Floats:
        """Return the columns of the log, (7, R)."""
        start_s, decodes = self._start_s(), self._decodes()
        context = self._context(decodes)
        tokens = decodes + self.prompts
        tokens[self.piece_at] = self.pieces[3]
        flat, slope = _lines(decodes, self.begins, self._notes.prices)
        first_s, growth_s = flat + slope * context, slope * decodes
        first_s[self.begin_at] = self._of_new("first_token_s") - start_s[self.begin_at]
        first_s[self.piece_at] = self.pieces[2] - self.pieces[1]
        growth_s[self.begin_at] = growth_s[self.piece_at] = 0.0
        steps = self.begins[1:] - self.begins[:-1]
        columns = (start_s, first_s, growth_s, steps, decodes, tokens, context)
        return np.stack([column[: len(steps)] for column in columns])

    def _start_s(self) -> Floats:
        """Return when each run begins, and when the last one ends [s]."""
        start_s = np.empty(len(self.begins))
        # Whoever begins where others ended may do so after a break, so the later stamps come last.
        start_s[0] = self._notes.begun_s
        start_s[self.gone_at] = self._of_all("finish_s")[self.gone]
        start_s[self.begin_at + 1] = self._of_new("first_token_s")
        start_s[self.piece_at + 1] = self.pieces[2]
        start_s[np.searchsorted(self.begins, self.marks[0])] = self.marks[1]
        start_s[self.begin_at] = self._of_new("scheduled_s")
        start_s[self.piece_at] = self.pieces[1]
        return start_s

    def _decodes(self) -> Floats:
        """Return how many requests decode in each run."""
        return _standing(len(self._old), self.entering, self._sums(self.gone_at))

    def _context(self, decodes: Floats) -> Floats:
        """Return the tokens in the cache before each run; each decode adds one an iteration."""
        brought = self.prompts - self.entering * (self.begins + 1)
        taken = self._sums(self.gone_at, self.cached[self.gone])
        held = float(self.cached[: len(self._old)].sum())
        context = decodes * self.begins + _standing(held, brought, taken)
        context[self.piece_at] += self.pieces[4]
        return context

    def _of_new(self, name: str) -> Floats:
        return _taken(self._stream.column(name), [], self._new)

    def _of_all(self, name: str) -> Floats:
        return _taken(self._stream.column(name), self._old, self._new)

    def _sums(self, at: NDArray[np.intp], weights: Floats | None = None) -> Floats:
        """Return for each run the sum of who is there, or of their weights."""
        return np.bincount(at, weights, minlength=len(self.begins)).astype(float, copy=False)


def _taken(column: Row[float] | Floats, old: list[int], new: slice) -> Floats:
    """Return what some requests have in a column: who ran before, and who came since."""
    if isinstance(column, np.ndarray):
        return np.concatenate([column[old], column[new]]) if old else column[new]
    return _floats([*(column[request] for request in old), *column[new]] if old else column[new])


def _floats(values: Row[float]) -> Floats:
    return np.fromiter(values, float, len(values))


def _table(rows: Row[tuple[float, ...]], width: int) -> Floats:
    return np.array(rows, dtype=float).reshape(-1, width).T


def _rising(*parts: Floats | list[float]) -> Floats:
    """Return all numbers, none negative, in order and each once."""
    ordered = np.sort(np.concatenate(parts))
    return np.asarray(ordered[np.append(ordered[1:] != ordered[:-1], True)])


def _standing(before: float, came: Floats, left: Floats) -> Floats:
    """Return the sum over who is there in each run: who came in those before, and has not left."""
    change = -left
    change[0] += before
    change[1:] += came[:-1]
    return np.cumsum(change)


def _lines(
    decodes: Floats, begins: Floats, prices: Row[tuple[float, Cost]]
) -> tuple[Floats, Floats]:
    """Return duration without context and slope over it, of decodes alone, run by run (R,) each."""
    most = int(decodes.max()) + 1
    tables: dict[Cost, int] = {}
    place = [tables.setdefault(cost, len(tables)) for _, cost in prices]
    alone = np.array([cost.tables.decoding[:most] for cost in tables])  # [costs, n, 2]
    size = alone.shape[1]
    which = np.minimum(decodes, size - 1).astype(np.intp)
    if len(tables) > 1:
        since = np.searchsorted([iteration for iteration, _ in prices], begins, side="right")
        which += size * np.array(place)[since - 1]
    flat, slope = alone.reshape(-1, 2).T.copy()
    return flat[which], slope[which]


def taken_up(
    runs: Floats,
    pauses: Mapping[float, tuple[float, list[int]]],
    late: list[tuple[int, float, float]],
) -> Floats:
    """Return the runs (7, R) with the first iteration after each pause apart.

    Its tokens end longer gaps, of everybody who was decoding: those are added to `late`.
    """
    if not pauses:
        return runs
    iterations = sorted(pauses)
    places = np.searchsorted(np.cumsum(runs[3]) - runs[3], iterations)
    for place, iteration in zip(places, iterations, strict=True):
        since_s, requests = pauses[iteration]
        until_s = float(runs[0, place] + runs[1, place])
        late.extend((request, since_s, until_s) for request in requests)
    first = runs[:, places].copy()
    first[3], first[4] = 1.0, 0.0
    # What is left of a run begins an iteration later, that much longer, with that much more.
    runs[0, places] += runs[1, places]
    runs[1, places] += runs[2, places]
    runs[6, places] += runs[4, places]
    runs[3, places] -= 1
    merged = np.insert(runs, places, first, axis=1)
    return np.asarray(merged[:, merged[3] > 0])
