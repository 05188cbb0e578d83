"""The course of one replica: its requests in columns, its clock, and who runs.

Columns of plain lists rather than an object a request: what is simulated by the hundred thousand a
second must not be allocated one by one.
"""

from dataclasses import dataclass, field
from math import inf, sqrt

import numpy as np
import pandas as pd

from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Sequence


@dataclass(slots=True)
class Stream:
    """The requests of one replica in order of arrival, and what became of each.

    `arrival_s` ends with infinity, so that there is always a next arrival. `blocks` are the KV
    blocks that a request holds when its last token is computed.
    """

    arrival_s: list[float]
    prompt: list[int]
    output: list[int]
    blocks: list[int]
    scheduled_s: list[float] = field(init=False)
    first_token_s: list[float] = field(init=False)
    finish_s: list[float] = field(init=False)
    preemptions: dict[int, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        count = len(self.prompt)
        self.scheduled_s = [0.0] * count
        self.first_token_s = [0.0] * count
        self.finish_s = [0.0] * count

    @classmethod
    def of(cls, requests: pd.DataFrame, cache: KvCache) -> "Stream":
        """Take the requests of a frame (`arrival_s`, `prompt_tokens`, `output_tokens`)."""
        prompt = requests["prompt_tokens"].to_numpy()
        output = requests["output_tokens"].to_numpy()
        blocks = -(-(prompt + output - 1) // cache.block_size)
        arrival_s = requests["arrival_s"].to_numpy(dtype=np.float64).tolist()
        return cls([*arrival_s, inf], prompt.tolist(), output.tolist(), blocks.tolist())

    def sequence(self, index: int) -> Sequence:
        """Return the scheduler's view of a request that has not begun."""
        return Sequence(index, self.prompt[index], self.output[index])

    def __len__(self) -> int:
        return len(self.prompt)


@dataclass(slots=True)
class Course:
    """Where a replica stands: the clock, who runs, how many of the stream have been admitted."""

    now_s: float = 0.0
    running: list[Sequence] = field(default_factory=list)
    admitted: int = 0
    iterations: int = 0
    busy_s: float = 0.0
    batched_tokens: int = 0
    peak_running: int = 0


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
