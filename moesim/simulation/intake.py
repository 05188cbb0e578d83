"""A replica's intake: the requests that came to it, those it refused, and the table of them all.

Requests are either known from the start, a table of them, or they come one by one.
"""

import numpy as np
from numpy.typing import NDArray

from moesim.requests import COLUMNS, Request
from moesim.serving.columns import Columns, Table
from moesim.simulation.course import Course, Stream
from moesim.simulation.replica import Replica, Served, Usage, records_of, refused_of


class Intake:
    """What a replica is asked; `stream` are the requests that it accepted."""

    def __init__(self, replica: Replica, requests: Table | None = None) -> None:
        self._replica = replica
        self._requests = None if requests is None else Columns.of(requests)
        self._came: list[Request] = []
        self._accepted: list[int] = []
        size, priorities = replica.cache.block_size, replica.priorities
        if self._requests is None:
            self.stream = Stream(size, priorities=priorities)
            return
        self._refused = refused_of(replica, self._requests)
        known = self._requests
        self.stream = Stream.of(
            known.take(~self._refused) if self._refused.any() else known,
            size,
            tenants=replica.order != "fcfs",
            prefixes=replica.keeps_prefixes and "prefix" in known,
            priorities=priorities,
        )

    def receive(self, request: Request) -> int | None:
        """Take in a request that arrives now; return its index, None if it is refused."""
        self._came.append(request)
        if self._replica.refusal(request.prompt_tokens, request.output_tokens):
            return None
        self._accepted.append(len(self._came) - 1)
        return self.stream.add(request)

    def served(self, course: Course) -> Served:
        """Return what became of the requests over a course."""
        requests, refused = self._all()
        replica, ids = self._replica, requests["request_id"]
        return Served(
            table=records_of(replica, requests, refused, self.stream),
            log=course.log(ids if not refused.any() else ids[~refused]),
            usage=Usage.of(replica, course),
            basis=replica.cost.basis(),
            copies=tuple(course.copies),
            loads=tuple(course.loads),
        )

    def _all(self) -> tuple[Columns, NDArray[np.bool]]:
        """Return every request, and which of them were refused."""
        if self._requests is not None:
            return self._requests, self._refused
        names = ("request_id", *COLUMNS)
        kinds = {"tenant": object, "model": object, "arrival_s": float}
        came = {
            name: np.array([getattr(each, name) for each in self._came], kinds.get(name, np.int64))
            for name in names
        }
        refused = np.ones(len(self._came), dtype=bool)
        refused[self._accepted] = False
        return Columns(len(self._came), came), refused
