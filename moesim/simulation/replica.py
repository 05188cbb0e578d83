"""A replica: one model on one slice, and what it made of its requests."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.cost.iteration import Cost
from moesim.requests import Request
from moesim.serving.columns import Array, Columns
from moesim.serving.iterations import Floats, Iterations
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.queues import queue_of
from moesim.serving.records import COLUMNS, COMPLETED, REFUSED
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Batch, Sequence
from moesim.simulation.course import Copy, Course, Stream


@dataclass(frozen=True, slots=True, kw_only=True)
class Replica:
    """What a replica is made of.

    `order` is its queue's, one of `moesim.serving.queues.ORDERS`, with the tenants' `priorities`
    and `weights`. Copying a preempted block to host memory or back takes `swap_block_s`.
    """

    name: str
    limits: Limits
    cache: KvCache
    cost: Cost
    order: str = "fcfs"
    priorities: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    swap_block_s: float = 0.0

    def scheduler(self) -> Scheduler:
        """Return a scheduler with nobody in it."""
        return Scheduler(self.limits, self.cache, queue_of(self.order, self.weights))

    def sequence_of(self, request: Request) -> Sequence:
        """Return the scheduler's view of a request."""
        return Sequence(
            request.request_id,
            request.prompt_tokens,
            request.output_tokens,
            tenant=request.tenant,
            priority=self.priorities.get(request.tenant, 0),
            prefix=request.prefix if self.keeps_prefixes else (),
        )

    def iteration_s(self, batch: Batch, cost: Cost | None = None) -> float:
        """Return the duration of one iteration, copies to and from host memory included [s].

        `cost` stands in for the replica's own.
        """
        return (cost or self.cost).iteration_s(batch) + batch.swapped_blocks * self.swap_block_s

    def refusal(self, prompt_tokens: int, output_tokens: int) -> str | None:
        """Say why a request can never be served here, or None if it can."""
        return refusal(prompt_tokens, output_tokens, self.limits, self.cache)

    @property
    def keeps_prefixes(self) -> bool:
        """Whether prompts that begin alike share blocks."""
        return isinstance(self.cache, PrefixCache)

    @property
    def in_sums(self) -> bool:
        """Whether its rules are those that running ahead has sums for.

        Every decode gets its token in every iteration, and prompts enter in order of arrival.
        """
        limits = self.limits
        return (
            limits.policy.mixed
            and limits.max_num_seqs < limits.max_batched_tokens
            and self.order == "fcfs"
            and not self.keeps_prefixes
        )


@dataclass(slots=True)
class Usage:
    """What a replica did over a run."""

    replica: str
    iterations: int = 0
    busy_s: float = 0.0
    batched_tokens: int = 0
    peak_running: int = 0
    kv_blocks: int = 0
    kv_tokens: int = 0
    reconfigurations: int = 0
    reconfiguring_s: float = 0.0

    @classmethod
    def of(cls, replica: Replica, course: Course) -> "Usage":
        """Sum up a course."""
        return cls(
            replica=replica.name,
            iterations=course.iterations,
            busy_s=course.busy_s,
            batched_tokens=course.batched_tokens,
            peak_running=course.peak_running,
            kv_blocks=replica.cache.num_blocks,
            kv_tokens=replica.cache.num_blocks * replica.cache.block_size,
            reconfigurations=len(course.loads),
            reconfiguring_s=sum(duration_s for _, duration_s in course.loads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """What a replica made of its requests; `table` are their records."""

    table: Columns
    log: Iterations
    usage: Usage
    basis: dict[str, str]
    copies: tuple[Copy, ...] = ()
    loads: tuple[tuple[float, float], ...] = ()

    @property
    def records(self) -> pd.DataFrame:
        """One row a request, the columns of `moesim.serving.records`."""
        return self.table.frame


def refused_of(replica: Replica, requests: Columns) -> NDArray[np.bool]:
    """Say for each request whether it can never be served; the rules are `refusal`'s."""
    limits, cache = replica.limits, replica.cache
    longest = min(limits.max_model_len, cache.num_blocks * cache.block_size + 1)
    if not limits.policy.chunked:
        longest = min(longest, limits.max_batched_tokens)
    prompt, output = requests["prompt_tokens"], requests["output_tokens"]
    suspects: NDArray[np.bool] = (prompt < 1) | (output < 1) | (prompt + output > longest)
    for index in np.flatnonzero(suspects):
        suspects[index] = replica.refusal(int(prompt[index]), int(output[index])) is not None
    return suspects


def records_of(
    replica: Replica, requests: Columns, refused: NDArray[np.bool], stream: Stream
) -> Columns:
    """Lay the stream's outcome out as a record table, refused requests among the others."""
    places = np.flatnonzero(~refused)
    outcome: dict[str, Array | str | int] = {
        "replica": replica.name,
        "expert_misses": 0,
        "outcome": COMPLETED,
        "detail": "",
    }
    for name in ("scheduled_s", "first_token_s", "finish_s"):
        outcome[name] = _at(places, np.asarray(stream.column(name)), len(refused))
    for name in ("preemptions", "cached_tokens", "swaps"):
        counted: dict[int, int] = getattr(stream, name)
        outcome[name] = _counts(places, counted, len(refused)) if counted else 0
    if len(places) < len(refused):
        outcome["outcome"] = np.where(refused, REFUSED, COMPLETED).astype(object)
        outcome["detail"] = _details(replica, requests, refused)
    return requests.assign(**outcome).only(COLUMNS)


def _at(places: NDArray[np.intp], stamps: Floats, count: int) -> Floats:
    """Return stamps at their places among `count`, NaN elsewhere."""
    if len(stamps) == count:
        return stamps
    found = np.full(count, np.nan)
    found[places] = stamps
    return found


def _counts(places: NDArray[np.intp], counted: Mapping[int, int], count: int) -> Array:
    """Return counts of some requests at their places among `count`, 0 elsewhere."""
    found = np.zeros(count, dtype=np.int64)
    for request, value in counted.items():
        found[places[request]] = value
    return found


def _details(replica: Replica, requests: Columns, refused: NDArray[np.bool]) -> NDArray[np.object_]:
    """Say of each refused request why it is."""
    prompt, output = requests["prompt_tokens"], requests["output_tokens"]
    details = np.full(len(refused), "", dtype=object)
    for index in np.flatnonzero(refused):
        details[index] = replica.refusal(int(prompt[index]), int(output[index]))
    return details
