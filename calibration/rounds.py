"""Rounds over a grid: every point once in a new order, until the budget is spent.

Once every point has been measured often enough, and as long as the budget has as many rounds for
more, sizes are added where the curve bends. Points that were added before an interruption are known
by their samples.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from calibration.bends import refinement
from calibration.grid import Grid, Point
from calibration.operations import measure
from calibration.partial import Partial
from engine.serve.engine import Engine
from moesim.commands import Reporter

FEWEST_ROUNDS = 5
"""How often every point is measured at least: quartiles of fewer are no quartiles."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rounds:
    """What is measured in rounds, with which engine, and for how long."""

    engine: Engine
    grid: Grid
    mixed: list[Point]
    """Measured beside the grid; kept out of its tables."""
    partial: Partial
    budget_s: float
    started: float
    """When the measurement began, on the clock that tells its time [s]."""
    rng: np.random.Generator
    progress: Reporter
    clock: Callable[[], float] = time.perf_counter
    """Tells the time [s]."""
    measured: Callable[[Engine, Point, np.random.Generator], dict[str, float]] = measure
    """Runs one batch."""

    def run(self) -> list[Point]:
        """Measure until another round would overrun the budget; return the grid at the end."""
        points = self._points()
        first, visits = self.clock(), 0
        while True:
            visits += self._round([*points, *self.mixed])
            self.partial.spent_s = self.clock() - self.started
            self.partial.save()
            if self.partial.rounds < FEWEST_ROUNDS:
                continue
            left = int((self.budget_s - self.partial.spent_s) * visits / (self.clock() - first))
            every = len(points) + len(self.mixed)
            if left < every:
                return points
            points += refinement(
                self.grid, points, self.partial.samples, left // FEWEST_ROUNDS - every
            )

    def _points(self) -> list[Point]:
        """Return the grid to begin with, and what was added to it before an interruption."""
        points = self.grid.points()
        known = {point.key for point in [*points, *self.mixed]}
        return points + [Point.of(key) for key in self.partial.samples if key not in known]

    def _round(self, todo: list[Point]) -> int:
        """Measure every point once, in any order; return how many."""
        doing = f"measuring {len(todo)} batches, round {self.partial.longest + 1}"
        for index in self.rng.permutation(len(todo)):
            self.progress(min(0.99, (self.clock() - self.started) / self.budget_s), doing)
            point = todo[index]
            self.partial.add(point.key, self.measured(self.engine, point, self.rng))
        return len(todo)
