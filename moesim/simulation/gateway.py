"""A gateway: classifies prompts, one after the other, and sends each to an expert model.

What it classifies by is not simulated: each prompt falls into a cluster with the probability that
the clusters were measured to have. It takes prompts in order of arrival, each for `classify_s`.
"""

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pandas as pd

from moesim.requests import Request


class Gateway:
    """A queue of prompts before expert models; `shares` of the prompts, by model."""

    def __init__(
        self, shares: Mapping[str, float], *, classify_s: float, rng: np.random.Generator
    ) -> None:
        total = sum(shares.values())
        self._models = list(shares)
        self._ends = np.cumsum([share / total for share in shares.values()])
        self._classify_s = classify_s
        self._free_s = 0.0
        self._rng = rng

    def sent(self, request: Request) -> Request:
        """Return a request as it is sent on: to which model, after how long."""
        self._free_s = max(self._free_s, request.arrival_s) + self._classify_s
        model = self._drawn(self._rng.random())
        return replace(request, model=model, delay_s=self._free_s - request.arrival_s)

    def all_sent(self, requests: pd.DataFrame) -> pd.DataFrame:
        """Return a frame of requests, in order of arrival, as they are sent on."""
        arrival_s = requests["arrival_s"].to_numpy(dtype=np.float64)
        draws = self._rng.random(len(requests))
        place = np.minimum(np.searchsorted(self._ends, draws, side="right"), len(self._models) - 1)
        # A queue with equal services: done_i = s + max(arrival_i, done_(i-1)), unrolled.
        count = np.arange(len(requests))
        begun_s = np.maximum.accumulate(arrival_s - self._classify_s * count)
        done_s = begun_s + self._classify_s * (count + 1)
        return requests.assign(
            model=np.array(self._models, dtype=object)[place], delay_s=done_s - arrival_s
        )

    def _drawn(self, draw: float) -> str:
        place = int(np.searchsorted(self._ends, draw, side="right"))
        return self._models[min(place, len(self._models) - 1)]
