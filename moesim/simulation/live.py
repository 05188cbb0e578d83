"""A replica that others can reach at any time: a simpy process that jumps, and is woken.

It sleeps through a pass of equal iterations. Whoever arrives meanwhile and could enter interrupts
it, and it wakes at the end of the iteration under way, as a server does.
"""

from collections.abc import Generator

import numpy as np
import pandas as pd
import simpy

from moesim.requests import COLUMNS, Request
from moesim.simulation.course import Course, Stream, iterations_until
from moesim.simulation.drive import Drive, Pass
from moesim.simulation.replica import Replica, Served, Usage, records_of

Waiting = Generator[simpy.Event, None, None]


class Jumper:
    """Serves requests as they are handed in, several iterations at a time."""

    def __init__(self, env: simpy.Environment, replica: Replica) -> None:
        self._env = env
        self._replica = replica
        self._stream = Stream(replica.cache.block_size, priorities=replica.priorities)
        self._course = Course()
        self._drive = Drive(replica, self._stream, self._course)
        self._received: list[Request] = []
        self._accepted: list[int] = []
        self._done: dict[int, simpy.Event] = {}
        self._inbox: list[int] = []
        self._woken = env.event()
        self._asleep = False
        self._process = env.process(self._serve())

    @property
    def load(self) -> int:
        """Requests in care, running or waiting."""
        scheduler = self._drive.scheduler
        return len(scheduler.running) + len(scheduler.waiting) + len(self._inbox)

    def receive(self, request: Request) -> simpy.Event:
        """Take in a request that arrives now; the event happens when it is done."""
        done = self._env.event()
        self._received.append(request)
        if self._replica.refusal(request.prompt_tokens, request.output_tokens):
            return done.succeed()
        index = self._stream.add(request)
        self._accepted.append(len(self._received) - 1)
        self._done[index] = done
        self._inbox.append(index)
        if self._asleep and self._drive.takes_arrivals:
            self._asleep = False
            self._process.interrupt()
        elif not self._woken.triggered:
            self._woken.succeed()
        return done

    def served(self) -> Served:
        """Return what became of the requests."""
        self._drive.leave()
        names = ("request_id", *COLUMNS)
        rows = [[getattr(request, name) for name in names] for request in self._received]
        requests = pd.DataFrame(rows, columns=list(names))
        refused = np.ones(len(requests), dtype=bool)
        refused[self._accepted] = False
        ids = requests["request_id"].to_numpy(dtype=np.int64)
        return Served(
            records=records_of(self._replica, requests, refused, self._stream),
            log=self._course.log(ids[self._accepted]),
            usage=Usage.of(self._replica, self._course),
            basis=self._replica.cost.basis(),
            copies=tuple(self._course.copies),
        )

    def _serve(self) -> Waiting:
        while True:
            self._take_in()
            if self._drive.scheduler.idle:
                self._woken = self._env.event()
                yield self._woken
                self._course.now_s = self._env.now
                continue
            step = self._drive.plan()
            iterations = step.most
            if iterations == 1:
                yield self._env.timeout(step.duration_s(1))
            else:
                iterations = yield from self._sleep(step)
            for sequence in self._drive.finish(step, iterations, self._env.now):
                self._done.pop(sequence.request_id).succeed()
            yield self._env.timeout(0)  # who arrives at this very moment is in time

    def _take_in(self) -> None:
        for index in self._inbox:
            self._drive.submit(index)
        self._inbox.clear()

    def _sleep(self, step: Pass) -> Generator[simpy.Event, None, int]:
        """Sleep through a pass, or to the end of the iteration in which somebody arrives."""
        begun_s = self._env.now
        self._asleep = True
        try:
            yield self._env.timeout(step.duration_s(step.most))
        except simpy.Interrupt:
            passed_s = self._env.now - begun_s
            iterations = iterations_until(passed_s, step.base_s, step.growth_s, step.most)
            yield self._env.timeout(max(0.0, begun_s + step.duration_s(iterations) - self._env.now))
            return iterations
        finally:
            self._asleep = False
        return step.most
