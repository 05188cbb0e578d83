"""Whether a run's figures describe a steady state: its warm-up, and whether the queue grows.

The warm-up is what MSER-5 cuts off: of the turnarounds in order of arrival, in batches of five, the
beginning without which the standard error of the mean of the rest is smallest (White 1997; batches:
White, Cobb and Spratt 2000). It looks for it in the first half; a minimum at its very end means
that turnaround still drifts.

An open-loop run is above capacity where, over the second half of its arrivals, the number of
requests in the system grows by more than chance lets it grow at a load of exactly 1, and the queue
never empties. There the number is a random walk (heavy traffic: Kingman 1962), whose standard
deviation after n arrivals is about `cv sqrt(n)`, cv that of the gaps between arrivals and at least
1; three of them are the limit.

What it says of 500 runs each with Poisson arrivals and constant service, [%]:

| load | 200 requests: above, steady | 1000: above, steady | 5000: above, steady |
|---|---|---|---|
| 0.5 | 0, 95 | 0, 99 | 0, 100 |
| 0.8 | 0, 93 | 0, 97 | 0, 99 |
| 0.95 | 0, 85 | 0, 94 | 0, 95 |
| 1.1 | 2, 45 | 13, 6 | 94, 0 |
| 1.3 | 18, 4 | 99, 0 | 100, 0 |

The others are not settled. With exponential service it is less sure: at a load of 0.95 and 200
requests 1 is called above capacity, at 1.1 and 1000 requests 23, and 18 steady.
"""

from dataclasses import asdict, dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from moesim.serving.columns import Columns, Table
from moesim.serving.iterations import Floats
from moesim.serving.records import COMPLETED, REFUSED

Kind = Literal["steady", "above capacity", "not settled", "too short"]

FEWEST = 50
"""Completed requests below which nothing is said."""

BATCH = 5
"""Turnarounds averaged before the warm-up is looked for."""

DRIFTING = 0.9
"""Share of the first half beyond which a warm-up that ends there has not been seen to end."""

CHANCE = 3.0
"""Standard deviations of a critically loaded queue's growth beyond which it is not chance."""

SUSPECT = 1.0
"""As many beyond which it may not be chance: such a run is not called steady."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Steady:
    """The verdict on a run, in a word and in a sentence.

    `warmup_s` and `warmup_requests` are None unless the run is steady; `growth_per_s` is by how
    many requests a second the system filled over the second half of the arrivals, None where that
    is too short to tell.
    """

    kind: Kind
    sentence: str
    warmup_s: float | None = None
    warmup_requests: int | None = None
    growth_per_s: float | None = None

    def as_dict(self) -> dict[str, Any]:
        """Return the fields for JSON."""
        return asdict(self)


def steady_state(records: Table) -> Steady:
    """Judge an open-loop run; refused requests do not count."""
    flow = _Flow.of(records)
    turnaround_s = flow.turnaround_s
    if len(turnaround_s) < FEWEST:
        return Steady(
            kind="too short",
            sentence=f"too short to tell: {len(turnaround_s)} requests completed, "
            f"it takes {FEWEST}",
        )
    growth_per_s = flow.growth / flow.half_s if flow.half_s else 0.0
    excess = flow.excess
    if excess > CHANCE:
        return Steady(
            kind="above capacity",
            sentence=f"above capacity: the queue grows by {growth_per_s:.2g} req/s; "
            f"figures are for the first {2 * flow.half_s:.0f} s only",
            growth_per_s=growth_per_s,
        )
    cut = warmup(turnaround_s)
    if cut is None or excess > SUSPECT:
        doubt = "turnaround still drifts halfway through" if cut is None else "the queue may grow"
        return Steady(
            kind="not settled",
            sentence=f"not settled: {doubt}; run for longer",
            growth_per_s=growth_per_s,
        )
    return _steady(flow, cut, growth_per_s)


def warmup(turnaround_s: Floats) -> int | None:
    """Return how many of the first requests MSER-5 cuts off; None where it finds no end to them.

    Without the first d of m batch means it is their summed squared deviation over (m - d)^2.
    """
    batches = len(turnaround_s) // BATCH
    means = turnaround_s[: batches * BATCH].reshape(-1, BATCH).mean(axis=1)
    # About their mean, so that squares do not drown the deviations.
    means = means - means.mean()
    half = batches // 2
    left = batches - np.arange(half + 1)
    sums = _from_each_on(means)[: half + 1]
    squares = _from_each_on(means * means)[: half + 1]
    cut = int(np.argmin((squares - sums * sums / left) / (left * left)))
    return None if cut > DRIFTING * half else cut * BATCH


def _from_each_on(values: Floats) -> Floats:
    return np.cumsum(values[::-1])[::-1]


def _steady(flow: "_Flow", cut: int, growth_per_s: float) -> Steady:
    arrival_s = flow.arrival_s[flow.completed]
    warmup_s = float(arrival_s[cut] - arrival_s[0]) if cut else 0.0
    return Steady(
        kind="steady",
        sentence=f"steady after {warmup_s:.3g} s" if cut else "steady from the start",
        warmup_s=warmup_s,
        warmup_requests=cut,
        growth_per_s=growth_per_s,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Flow:
    """The requests of a run in order of arrival, (N,) each; what never happened is NaN."""

    arrival_s: Floats
    scheduled_s: Floats
    finish_s: Floats

    @classmethod
    def of(cls, records: Table) -> "_Flow":
        """Take all but refused requests."""
        table = Columns.of(records)
        columns = {
            name: table[name].astype(float, copy=False)
            for name in ("arrival_s", "scheduled_s", "finish_s")
        }
        if table.value("outcome") != COMPLETED:
            counts = np.asarray(table["outcome"] != REFUSED, dtype=bool)
            columns = {name: column[counts] for name, column in columns.items()}
        if (np.diff(columns["arrival_s"]) < 0).any():
            order = np.argsort(columns["arrival_s"], kind="stable")
            columns = {name: column[order] for name, column in columns.items()}
        return cls(**columns)

    @property
    def completed(self) -> NDArray[np.bool]:
        """Whether each request was answered."""
        return ~np.isnan(self.finish_s)

    @property
    def turnaround_s(self) -> Floats:
        """Turnaround of the completed requests [s], in order of arrival."""
        done = self.completed
        return self.finish_s[done] - self.arrival_s[done]

    @property
    def half_s(self) -> float:
        """Half the time in which requests arrive [s]."""
        return float(self.arrival_s[-1] - self.arrival_s[0]) / 2

    @property
    def growth(self) -> int:
        """By how many requests the system filled over the second half of the arrivals."""
        return self._in_system(self.arrival_s[-1]) - self._in_system(
            self.arrival_s[-1] - self.half_s
        )

    @property
    def excess(self) -> float:
        """Growth in standard deviations of what chance does at a load of 1; 0 if queues empty."""
        if not self._always_waiting:
            return 0.0
        late = self.arrival_s[self.arrival_s > self.arrival_s[-1] - self.half_s]
        gaps_s = np.diff(late)
        cv = float(gaps_s.std() / gaps_s.mean()) if gaps_s.sum() > 0 else 1.0
        return self.growth / (max(1.0, cv) * sqrt(max(1, len(late))))

    @property
    def _always_waiting(self) -> bool:
        """Whether the queue never empties in the second half.

        It empties when the k-th request is scheduled before the one after it arrives.
        """
        scheduled_s = np.sort(self.scheduled_s[~np.isnan(self.scheduled_s)], kind="stable")
        following_s = np.append(self.arrival_s, np.inf)[1 : len(scheduled_s) + 1]
        end_s = self.arrival_s[-1]
        empties = (following_s > scheduled_s) & (following_s > end_s - self.half_s)
        return not (empties & (scheduled_s <= end_s)).any()

    def _in_system(self, time_s: float) -> int:
        return int((self.arrival_s <= time_s).sum() - (self.finish_s <= time_s).sum())
