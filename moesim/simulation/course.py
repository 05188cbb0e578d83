"""The course of one replica: its requests in columns, its clock, who runs, and its log.

Columns of plain lists rather than an object a request: what is simulated by the hundred thousand a
second must not be allocated one by one.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import inf, sqrt

import numpy as np
from numpy.typing import NDArray

from moesim.cost.iteration import Cost
from moesim.requests import Request
from moesim.serving.columns import Columns
from moesim.serving.iterations import Iterations, iterations_from
from moesim.serving.sequences import Sequence

Copy = tuple[float, float, int]
"""Blocks copied between device and host memory: start [s], duration [s], blocks."""


@dataclass(slots=True)
class Stream:
    """The requests of one replica in order of arrival, and what became of each.

    `arrival_s` ends with infinity, so that there is always a next arrival. `total` are the tokens
    in the KV cache when a request's last one is computed, `blocks` their blocks and `most_blocks`
    the most that one needs. The columns
    `tenant` and `prefix` are empty where nobody asks for them. All is `settled` when the last one
    is served.
    """

    block_size: int
    arrival_s: list[float] = field(default_factory=lambda: [inf])
    prompt: list[int] = field(default_factory=list)
    output: list[int] = field(default_factory=list)
    total: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    tenant: list[str] = field(default_factory=list)
    prefix: list[tuple[int, ...]] = field(default_factory=list)
    priorities: Mapping[str, int] = field(default_factory=dict)
    scheduled_s: list[float] = field(default_factory=list)
    first_token_s: list[float] = field(default_factory=list)
    finish_s: list[float] = field(default_factory=list)
    preemptions: dict[int, int] = field(default_factory=dict)
    swaps: dict[int, int] = field(default_factory=dict)
    cached_tokens: dict[int, int] = field(default_factory=dict)
    most_blocks: int = 0
    settled: bool = False
    _arrays: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        requests: Columns,
        block_size: int,
        *,
        tenants: bool = False,
        prefixes: bool = False,
        priorities: Mapping[str, int] | None = None,
    ) -> "Stream":
        """Take requests in columns (`arrival_s`, `prompt_tokens`, `output_tokens`).

        Where there is a column `delay_s` they arrive here so much later.
        """
        prompt, output = requests["prompt_tokens"], requests["output_tokens"]
        alike = None not in map(requests.value, ("prompt_tokens", "output_tokens"))
        total = prompt + output - 1
        blocks = -(-total // block_size)
        count = len(requests)
        arrival_s = requests["arrival_s"].astype(np.float64, copy=False)
        if "delay_s" in requests:
            arrival_s = arrival_s + requests["delay_s"]
        return cls(
            block_size=block_size,
            arrival_s=[*arrival_s.tolist(), inf],
            prompt=_listed(prompt, alike=alike),
            output=_listed(output, alike=alike),
            total=_listed(total, alike=alike),
            blocks=_listed(blocks, alike=alike),
            tenant=requests["tenant"].tolist() if tenants else [],
            prefix=requests["prefix"].tolist() if prefixes else [],
            priorities=priorities or {},
            scheduled_s=[0.0] * count,
            first_token_s=[0.0] * count,
            finish_s=[0.0] * count,
            most_blocks=int(blocks.max(initial=0)),
            _arrays={"prompt": prompt.astype(float), "output": output.astype(float)},
        )

    def add(self, request: Request) -> int:
        """Take in a request that arrives now, and return its index."""
        index = len(self)
        self._arrays.clear()
        self.arrival_s.insert(index, request.reaches_s)
        self.prompt.append(request.prompt_tokens)
        self.output.append(request.output_tokens)
        total = request.prompt_tokens + request.output_tokens - 1
        self.total.append(total)
        self.blocks.append(-(-total // self.block_size))
        self.most_blocks = max(self.most_blocks, self.blocks[-1])
        self.tenant.append(request.tenant)
        self.prefix.append(request.prefix)
        for times in (self.scheduled_s, self.first_token_s, self.finish_s):
            times.append(0.0)
        return index

    def sequence(self, index: int) -> Sequence:
        """Return the scheduler's view of a request that has not begun."""
        sequence = Sequence(index, self.prompt[index], self.output[index])
        if self.tenant:
            sequence.tenant = self.tenant[index]
            sequence.priority = self.priorities.get(sequence.tenant, 0)
        if self.prefix:
            sequence.prefix = self.prefix[index]
        return sequence

    def column(self, name: str) -> NDArray[np.float64] | list[float]:
        """Return a column of numbers: as an array, once, where it will not change any more."""
        if name not in self._arrays:
            values: list[float] = getattr(self, name)
            if not self.settled:
                return values
            self._arrays[name] = np.fromiter(values, float, len(values))
        return self._arrays[name]

    def __len__(self) -> int:
        return len(self.prompt)


def _listed(sizes: NDArray[np.int64], *, alike: bool) -> list[int]:
    """Return sizes as a list, of one number where they are alike."""
    listed: list[int] = sizes[:1].tolist() * len(sizes) if alike else sizes.tolist()
    return listed


@dataclass(slots=True)
class Course:
    """Where a replica stands: the clock, who runs, how many of the stream have been admitted.

    `runs` are its log, the columns of `moesim.serving.iterations` in parts of (7, R); `late` are
    the gaps longer than an iteration, by the stream's index.

    What others have to do with it: `closed` says that all of the stream is known, `done` takes the
    indices of who finishes, `limit_s` ends a run of equal iterations at the first boundary from
    there on, `cost` stands in for the replica's own, `stops` has the scheduler asked for a step
    only when the step before has been dealt with. `ran` is told the beginning, the tokens and the
    number of equal iterations that were taken, `most` says how many of so many tokens a step may
    have. `idle` tells that nothing runs and nothing waits; `loads` are the reconfigurations that
    the model needed (start, duration).
    """

    now_s: float = 0.0
    running: list[Sequence] = field(default_factory=list)
    admitted: int = 0
    iterations: int = 0
    busy_s: float = 0.0
    batched_tokens: int = 0
    peak_running: int = 0
    runs: list[NDArray[np.float64]] = field(default_factory=list)
    late: list[tuple[int, float, float]] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)
    closed: bool = True
    done: list[int] | None = None
    limit_s: float = inf
    cost: Cost | None = None
    stops: bool = False
    ran: Callable[[float, int, int], None] | None = None
    most: Callable[[int], int] | None = None
    idle: bool = False
    loads: list[tuple[float, float]] = field(default_factory=list)

    def log(self, request_ids: NDArray[np.int64]) -> Iterations:
        """Return the log of all iterations; `request_ids` are those of the stream's requests."""
        runs = self.runs or [np.empty((7, 0))]
        table = runs[0] if len(runs) == 1 else np.concatenate(runs, axis=1)
        late = [(int(request_ids[index]), since, until) for index, since, until in self.late]
        return iterations_from(table, late)


def iterations_until(left_s: float, base_s: float, growth_s: float, most: int) -> int:
    """Return after how many iterations `left_s` seconds have passed, at least 1, at most `most`.

    Iteration j (from 0) lasts `base_s + growth_s * j`, so n of them n base + growth n (n - 1) / 2.
    """
    half = growth_s / 2
    b = base_s - half
    if most * (b + half * most) <= left_s:
        return most
    root = (sqrt(b * b + 4 * half * left_s) - b) / (2 * half) if half else left_s / base_s
    # The root is exact but for rounding; settle on the first boundary that is not too early.
    n = max(1, int(root))
    while n < most and n * (b + half * n) < left_s:
        n += 1
    while n > 1 and (n - 1) * (b + half * (n - 1)) >= left_s:
        n -= 1
    return n
