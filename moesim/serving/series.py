"""What a run looks like over time: queue, batch, KV cache and token rates, interval by interval.

The span from the first arrival to the last finish is cut into intervals of one length. A row tells
of one interval: rates are counts within it over its length, levels are means over it rather than
samples. So the rows add up: rates to all that was produced, and the mean of `queued + running` to
the requests' time in the system over the span (Little 1961).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.serving.iterations import Floats, Integers, Iterations
from moesim.serving.records import REFUSED

COLUMNS = (
    "time_s",
    "queued",
    "running",
    "kv_tokens",
    "tokens_per_s",
    "prompt_tokens_per_s",
    "arrivals_per_s",
)

ON_TIME = 1e-6
"""Iterations by which rounding may make a token seem late."""


def time_series(
    records: pd.DataFrame,
    logs: Mapping[str, Iterations],
    capacity_tokens: Mapping[str, int] | None = None,
    points: int = 200,
) -> pd.DataFrame:
    """Return `points` rows of `COLUMNS`, and `kv_use` where the replicas' capacities are given.

    `time_s` is an interval's beginning; `queued` requests have arrived and were never scheduled,
    `running` ones were scheduled and are not finished, preempted ones among them; `kv_tokens` is
    the context cached on all replicas, taken to grow evenly within a run; `tokens_per_s`
    counts each token when its iteration ends; `prompt_tokens_per_s` are tokens computed other than
    a request's newest, so prompts, and all that preempted requests compute again, evenly within a
    run; `arrivals_per_s` counts refused requests too. A run in which nothing finished has no rows.
    """
    edges = _edges(records, points)
    if not edges.size:
        return pd.DataFrame(columns=[*COLUMNS, *(["kv_use"] if capacity_tokens else [])])
    step_s = edges[1] - edges[0]
    kv_tokens = _sum_over(logs, _cached_token_seconds, edges) / step_s
    columns = {
        "time_s": edges[:-1],
        **_levels(records, edges),
        "kv_tokens": kv_tokens,
        "tokens_per_s": _output_tokens(records, logs, edges) / step_s,
        "prompt_tokens_per_s": _sum_over(logs, _prompt_tokens, edges) / step_s,
        "arrivals_per_s": np.histogram(records["arrival_s"], edges)[0] / step_s,
    }
    if capacity_tokens:
        columns["kv_use"] = kv_tokens / sum(capacity_tokens.values())
    return pd.DataFrame(columns)


def _edges(records: pd.DataFrame, points: int) -> Floats:
    """Return the times between the intervals, (points + 1,), or none where nothing finished."""
    finish = records["finish_s"].to_numpy(dtype=float)
    if np.isnan(finish).all():
        return np.empty(0)
    first, last = float(records["arrival_s"].min()), float(np.nanmax(finish))
    return np.linspace(first, last, points + 1) if last > first else np.empty(0)


def _levels(records: pd.DataFrame, edges: Floats) -> dict[str, Floats]:
    """Return how many requests were queued and running, on average over each interval."""
    served = records[records["outcome"] != REFUSED]
    arrived, scheduled, finished = (
        _seconds_since(served[name].to_numpy(dtype=float) - edges[0], edges - edges[0])
        for name in ("arrival_s", "scheduled_s", "finish_s")
    )
    step_s = edges[1] - edges[0]
    levels = {"queued": arrived - scheduled, "running": scheduled - finished}
    # Rounding must not show as a negative number of requests.
    return {name: np.maximum(0.0, np.diff(area) / step_s) for name, area in levels.items()}


def _seconds_since(times_s: Floats, edges: Floats) -> Floats:
    """Sum up, at each edge, the time that has passed since those `times_s` before it."""
    ordered = np.sort(times_s[~np.isnan(times_s)])
    passed = np.searchsorted(ordered, edges, side="right")
    return passed * edges - _before(ordered)[passed]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Places:
    """Where some times lie in a log: `into_s` seconds into the run `row`, at most its duration."""

    row: Integers
    into_s: Floats

    @classmethod
    def of(cls, edges: Floats, log: Iterations) -> "_Places":
        row = np.maximum(0, np.searchsorted(log.start_s, edges, side="right") - 1)
        into_s = np.clip(edges - log.start_s[row], 0.0, log.duration_s[row])
        return cls(row=row, into_s=into_s)


Measure = Callable[[Iterations, _Places], Floats]
"""Something that accumulates: how much of it there has been at each place."""


def _sum_over(logs: Mapping[str, Iterations], measure: Measure, edges: Floats) -> Floats:
    """Return how much of something the replicas did in each interval, together."""
    parts = [np.diff(measure(log, _Places.of(edges, log))) for log in logs.values() if len(log)]
    return sum(parts, np.zeros(len(edges) - 1))


def _cached_token_seconds(log: Iterations, at: _Places) -> Floats:
    """Every token that enters the model stays in the cache at least until the run ends."""
    grown, duration_s = log.tokens * log.iterations, log.duration_s
    whole = (log.context + grown / 2) * duration_s
    per_s = grown[at.row] / duration_s[at.row]
    return _before(whole)[at.row] + (log.context[at.row] + per_s * at.into_s / 2) * at.into_s


def _prompt_tokens(log: Iterations, at: _Places) -> Floats:
    prompt = (log.tokens - log.sequences) * log.iterations - log.late_ended
    return _before(prompt)[at.row] + prompt[at.row] * at.into_s / log.duration_s[at.row]


def _regular_tokens(log: Iterations, at: _Places) -> Floats:
    tokens = log.iterations * log.sequences
    return _before(tokens)[at.row] + log.sequences[at.row] * _completed(log, at)


def _completed(log: Iterations, at: _Places) -> Floats:
    """Return how many iterations of its run have ended at each place.

    The n that solves `into = first n + growth n (n - 1) / 2`, in the form of the quadratic formula
    that does not cancel, and that holds without growth too.
    """
    growth = log.growth_s[at.row]
    base = log.first_s[at.row] - growth / 2
    root = np.sqrt(np.maximum(0.0, base * base + 2 * growth * at.into_s))
    steps = np.zeros(len(at.row))
    np.divide(2 * at.into_s, base + root, out=steps, where=at.into_s > 0)
    return np.minimum(np.floor(steps + ON_TIME), log.iterations[at.row])


def _output_tokens(records: pd.DataFrame, logs: Mapping[str, Iterations], edges: Floats) -> Floats:
    """Count in each interval first tokens, those that follow at once, and those that came late."""
    singles = [records["first_token_s"].to_numpy(dtype=float)]
    singles += [log.late.until_s for log in logs.values()]
    times = np.sort(np.concatenate(singles))
    counted = np.diff(np.searchsorted(times, edges, side="right"))
    return _sum_over(logs, _regular_tokens, edges) + counted


def _before(amounts: NDArray[np.float64] | NDArray[np.int64]) -> Floats:
    """Return how much there has been before each of some amounts, and after the last."""
    return np.concatenate([[0.0], np.cumsum(amounts)])
