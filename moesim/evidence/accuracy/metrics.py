"""The figures that tables report, by the many names they have.

A name is a rate (`output_tokens_per_s`, of which some are per GPU), or a latency with a statistic
before or after it (`mean_ttft_ms`, `e2e_p99_ms`). TPOT is a request's time after its first token
over the tokens after the first; tables that give a mean ITL without its gaps mean the same.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.evidence.accuracy.names import UnknownRowError, nearest

RATES = MappingProxyType(
    {
        "output_tokens_per_s": "output_tokens",
        "output_throughput": "output_tokens",
        "output_tokens_per_s_per_gpu": "output_tokens",
        "total_tokens_per_s": "all_tokens",
        "requests_per_s": "requests",
        "samples_per_s": "requests",
    }
)
"""Rates by name, and what they count."""

LATENCIES = MappingProxyType(
    {
        "ttft": "ttft_s",
        "first_token_latency": "ttft_s",
        "tpot": "tpot_s",
        "itl": "tpot_s",
        "e2e": "turnaround_s",
        "e2e_latency": "turnaround_s",
        "batch_latency": "span_s",
    }
)
"""Latencies by name, and what they are of a request, or of the run."""

STATISTICS = MappingProxyType(
    {"mean": "mean", "avg": "mean", "median": "p50"}
    | {name: name for name in ("p50", "p90", "p95", "p97", "p99", "p99.9", "p999")}
)
"""Statistics by name."""

UNITS = MappingProxyType({"ms": 1e3, "s": 1.0})


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What was measured: a rate, or a latency's statistic, in the table's unit."""

    kind: Literal["rate", "latency"]
    of: str
    statistic: str = "mean"
    per_second: float = 1.0
    """The unit: how many of it are a second."""
    per_gpu: bool = False


def metric_of(name: str) -> Metric:
    """Return what a metric's name stands for; UnknownRowError if nothing is known of it."""
    if name in RATES:
        return Metric(kind="rate", of=RATES[name], per_gpu=name.endswith("per_gpu"))
    body, _, unit = name.rpartition("_")
    words = body.split("_")
    statistic = "mean"
    for place in (0, -1):
        if words and words[place] in STATISTICS:
            statistic = STATISTICS[words.pop(place)]
            break
    of = LATENCIES.get("_".join(words))
    if of is None or unit not in UNITS:
        known = (*RATES, *(f"mean_{latency}_{each}" for latency in LATENCIES for each in UNITS))
        alike = nearest(name, known, cutoff=0.4)  # `e2e` is like `mean_e2e_s`
        raise UnknownRowError(f"metric {name or '(none)'} is not known{alike}")
    return Metric(kind="latency", of=of, statistic=statistic, per_second=UNITS[unit])


SETTLED = 1 / 3
"""Share of the requests after whose admission a run of several batches has settled."""


def value_of(
    metric: Metric, records: pd.DataFrame, *, replicas: int, devices: int, steady: bool = False
) -> float:
    """Return a metric of a replica's records; rates are those of all replicas, or per device.

    `steady` rates leave out the beginning, when all come at once, and the end, when ever fewer are
    left. NaN where there is no such figure: the time per token of answers of one token.
    """
    span_s = float(records["finish_s"].max() - records["arrival_s"].min())
    if metric.kind == "rate":
        if steady:
            # those that come by a clock do so at their rate from the beginning
            at_once = records["arrival_s"].max() == records["arrival_s"].min()
            records, span_s = _settled(records, SETTLED if at_once else 0.0)
        counted = _counted(metric.of, records)
        return counted / span_s * (1 / devices if metric.per_gpu else replicas)
    if metric.of == "span_s":
        return span_s * metric.per_second
    seconds = _latencies(records)[metric.of]
    seconds = seconds[~np.isnan(seconds)]
    if not len(seconds):
        return float("nan")
    if metric.statistic == "mean":
        return float(seconds.mean()) * metric.per_second
    digits = metric.statistic.removeprefix("p")
    level = 99.9 if digits == "999" else float(digits)
    return float(np.percentile(seconds, level)) * metric.per_second


def _settled(records: pd.DataFrame, beginning: float) -> tuple[pd.DataFrame, float]:
    """Return the requests admitted after a share of them, and the time that took [s].

    What comes in while all places are taken is what goes out.
    """
    ordered = records.sort_values("scheduled_s")
    first = int(len(ordered) * beginning)
    began, ended = (float(ordered["scheduled_s"].iloc[place]) for place in (first, -1))
    if ended <= began:
        return records, float(records["finish_s"].max() - records["arrival_s"].min())
    return ordered.iloc[first:-1], ended - began


def _counted(what: str, records: pd.DataFrame) -> float:
    output = float(records["output_tokens"].sum())
    counts = {
        "output_tokens": output,
        "all_tokens": output + float(records["prompt_tokens"].sum()),
        "requests": float(len(records)),
    }
    return counts[what]


def _latencies(records: pd.DataFrame) -> Mapping[str, NDArray[np.float64]]:
    columns = {
        name: records[name].to_numpy(dtype=float)
        for name in ("arrival_s", "first_token_s", "finish_s", "output_tokens")
    }
    gaps = columns["output_tokens"] - 1
    gaps[gaps == 0] = np.nan
    return {
        "ttft_s": columns["first_token_s"] - columns["arrival_s"],
        "tpot_s": (columns["finish_s"] - columns["first_token_s"]) / gaps,
        "turnaround_s": columns["finish_s"] - columns["arrival_s"],
    }
