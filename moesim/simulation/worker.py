"""A worker: one model at work on a slice, a step at a time, so that others can come in between.

A step is an iteration, or a run of equal ones. The worker says when its next step will end; whoever
holds the clock has it take the step then. Until then nothing has happened: a request that arrives,
or a neighbour who slows it down, changes what the step will be.
"""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from math import inf

from moesim.cost.iteration import Cost
from moesim.simulation.ahead import Steps, run_ahead
from moesim.simulation.course import Course, Stream
from moesim.simulation.crowd import Activity
from moesim.simulation.pressure import press_on
from moesim.simulation.replica import Replica

NOW = -inf
"""A horizon before which nothing ends: the next step is planned anew, none is taken."""


def course_of(replica: Replica, stream: Stream, course: Course, *, horizon_s: float = inf) -> Steps:
    """Run a stream by sums where they hold, by the scheduler elsewhere, as `run_ahead` runs it."""
    if not replica.in_sums:
        return (yield from press_on(replica, stream, course, stay=True, horizon_s=horizon_s))
    while not (yield from run_ahead(replica, stream, course, horizon_s=horizon_s)):
        if (yield from press_on(replica, stream, course, horizon_s=horizon_s)):
            break
    return True


@dataclass(slots=True)
class Worker:
    """A replica's course in steps; `end_s` is when the next one ends, infinity if there is none."""

    replica: Replica
    stream: Stream
    course: Course = field(default_factory=Course)
    end_s: float = inf
    _done: list[int] = field(default_factory=list, init=False, repr=False)
    _steps: Steps = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self.course.closed = False
        self.course.done = self._done
        self._steps = course_of(self.replica, self.stream, self.course, horizon_s=NOW)
        self.end_s = next(self._steps)

    @property
    def now_s(self) -> float:
        """When the next step begins, or the last one ended."""
        return self.course.now_s

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self.course.idle

    @property
    def activity(self) -> Activity:
        """What neighbours notice of it."""
        return Activity.IDLE if self.course.idle else Activity.RUNNING

    @property
    def planned(self) -> bool:
        """Whether the next step is known, or has to be asked for with `plan`."""
        return self.end_s > self.course.now_s

    def plan(self) -> None:
        """Look again at what the next step is: something has changed."""
        self.end_s = self._steps.send(NOW)

    def step(self) -> list[tuple[int, int]]:
        """Take the next step; return the requests that it finished, each as 0 and its index."""
        self.end_s = self._steps.send(self.end_s)
        done = [(0, request) for request in self._done]
        self._done.clear()
        return done

    def stop_by(self, at_s: float) -> None:
        """Have the next step end with the iteration that is under way at a time."""
        self.course.limit_s = at_s
        self.plan()

    def reprice(self, costs: Sequence[Cost]) -> None:
        """Have iterations that have not begun cost something else."""
        (self.course.cost,) = costs
        self.plan()

    def close(self) -> None:
        """Sum up; nothing more arrives."""
        self.course.closed = True
        with suppress(StopIteration):
            self._steps.send(NOW)
            raise AssertionError(f"{self.replica.name} has something left to do")
