"""What a workload is like, in numbers: rates, burstiness, lengths, tenants, shared prefixes.

Pure functions from tables to plain dictionaries, which are printed, drawn or written as JSON. What
does not exist, such as the rate of a single request, is None.
"""

from collections.abc import Iterable
from itertools import takewhile
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.traffic.servegen import QUANTILES
from moesim.traffic.traces import Trace

Facts = dict[str, Any]
Floats = NDArray[np.float64]

LEVELS = {"p1": 0.01, "p5": 0.05, "p25": 0.25, "p50": 0.5, "p75": 0.75, "p90": 0.9, "p95": 0.95, "p99": 0.99}  # fmt: skip  # noqa: E501

BINS = 72
"""Steps of a rate over time: as many as fit a terminal."""

SHORTEST_SPAN_S = 1e-9
"""Requests within less are at one instant, which has no rate."""

DISPERSION_WINDOWS_S = (1.0, 10.0, 100.0)
FEWEST_WINDOWS, MOST_WINDOWS = 20, 10_000_000
"""A variance over fewer windows says little; more would not fit the memory."""


def describe(trace: Trace) -> Facts:
    """Return what a trace is like."""
    frame = trace.frame
    times = frame["arrival_s"].to_numpy(dtype=float)
    return {
        "format": trace.format,
        "requests": len(frame),
        "skipped_rows": trace.skipped,
        **arrival_facts(times),
        **{field: length_facts(frame[field]) for field in QUANTILES},
        "tenants": tenant_facts(frame) if "tenant" in frame else {},
        "prefix": prefix_facts(frame["prefix"], trace.prefix_block) if trace.prefix_block else None,
    }


def arrival_facts(times_s: Floats) -> Facts:
    """Return span, mean rate, burstiness and course of sorted arrival times."""
    gaps = np.diff(times_s)
    span_s = float(gaps.sum())
    rates, width_s = rates_over_time(times_s, BINS)
    busiest = int(np.argmax(rates)) if rates.size else 0
    return {
        "span_s": span_s,
        "rate_per_s": gaps.size / span_s if span_s > SHORTEST_SPAN_S else None,
        "cv": coefficient_of_variation(gaps),
        "dispersion": dispersion(times_s),
        "peak": {
            "rate_per_s": float(rates[busiest]) if rates.size else None,
            "start_s": busiest * width_s,
            "window_s": width_s,
        },
        "course": {"window_s": width_s, "rates_per_s": rates.tolist()},
    }


def coefficient_of_variation(gaps: Floats) -> float | None:
    """Return the gaps' standard deviation over their mean: 1 for Poisson arrivals."""
    if gaps.size < 2 or not gaps.any():
        return None
    return float(gaps.std() / gaps.mean())


def dispersion(times_s: Floats) -> dict[str, float]:
    """Return the variance over the mean of the counts in windows of 1, 10 and 100 s.

    It is 1 for Poisson arrivals at every width; that it grows with the width tells of a rate that
    changes, where the gaps' variation only sees neighbours.
    """
    found = {}
    for width_s in DISPERSION_WINDOWS_S:
        windows = int((times_s[-1] - times_s[0]) // width_s)
        if FEWEST_WINDOWS <= windows <= MOST_WINDOWS:
            place = ((times_s - times_s[0]) // width_s).astype(np.int64)
            counts = np.bincount(place[place < windows], minlength=windows)
            found[f"{width_s:g}"] = float(counts.var() / counts.mean())
    return found


def rates_over_time(times_s: Floats, bins: int) -> tuple[Floats, float]:
    """Return the rate in each of `bins` equal parts of the span, and how long a part is."""
    span_s = float(times_s[-1] - times_s[0])
    if span_s <= SHORTEST_SPAN_S:
        return np.empty(0), 0.0
    counts, _ = np.histogram(times_s - times_s[0], bins=bins, range=(0.0, span_s))
    return counts * (bins / span_s), span_s / bins


def length_facts(tokens: pd.Series) -> Facts:
    """Return a length's mean, extremes, quantiles (lengths that occur) and number of zeros."""
    values = tokens.to_numpy()
    quantiles = np.quantile(values, list(LEVELS.values()), method="inverted_cdf")
    return {
        "mean": float(values.mean()),
        "min": int(values.min()),
        **{name: int(value) for name, value in zip(LEVELS, quantiles, strict=True)},
        "max": int(values.max()),
        "zeros": int((values == 0).sum()),
    }


def tenant_facts(frame: pd.DataFrame) -> dict[str, Facts]:
    """Return each tenant's share, rate, burstiness and mean lengths, the busiest first."""
    span_s = float(frame["arrival_s"].iloc[-1] - frame["arrival_s"].iloc[0])
    groups = frame.groupby("tenant", sort=False)
    found = {
        str(name): {
            "requests": len(group),
            "share": len(group) / len(frame),
            "rate_per_s": len(group) / span_s if span_s > SHORTEST_SPAN_S else None,
            "cv": coefficient_of_variation(np.diff(group["arrival_s"])),
            "mean_prompt_tokens": float(group["prompt_tokens"].mean()),
            "mean_output_tokens": float(group["output_tokens"].mean()),
        }
        for name, group in groups
    }
    return _busiest_first(found, "requests")


def _busiest_first(found: dict[str, Facts], by: str) -> dict[str, Facts]:
    return dict(sorted(found.items(), key=lambda item: item[1][by], reverse=True))


def prefix_facts(prefixes: Iterable[tuple[int, ...]], block: int) -> Facts:
    """Return which share of all prompt blocks an endless prefix cache would have held.

    A block counts if it and all blocks before it in its prompt were in an earlier prompt.
    """
    seen: set[int] = set()
    blocks = held = requests = 0
    for hashes in prefixes:
        known = sum(1 for _ in takewhile(seen.__contains__, hashes))
        blocks, held, requests = blocks + len(hashes), held + known, requests + bool(known)
        seen.update(hashes)
    return {
        "block_tokens": block,
        "blocks": blocks,
        "distinct_blocks": len(seen),
        "reused_share": held / blocks if blocks else None,
        "requests_with_reuse": requests,
    }


def describe_clients(clients: pd.DataFrame) -> Facts:
    """Return what a ServeGen file of client windows says of each client, the busiest first."""
    start_s, end_s = float(clients["start_s"].min()), float(clients["end_s"].max())
    window_s = float((clients["end_s"] - clients["start_s"]).iloc[0])
    total = float(clients["rate_per_s"].sum())
    found = {
        str(name): _client_facts(group, total, round((end_s - start_s) / window_s))
        for name, group in clients.groupby("client", sort=False)
    }
    course = clients.groupby("start_s")["rate_per_s"].sum()
    together = -(-len(course) // BINS)
    rates = _averaged(course.to_numpy(dtype=float), together)
    return {
        "format": "servegen-trace",
        "span_s": end_s - start_s,
        "window_s": window_s,
        "rate_per_s": total * window_s / (end_s - start_s),
        "course": {"window_s": together * window_s, "rates_per_s": rates.tolist()},
        "clients": _busiest_first(found, "rate_per_s"),
    }


def _client_facts(windows: pd.DataFrame, total: float, count: int) -> Facts:
    busy = windows[windows["rate_per_s"] > 0]
    rate = float(windows["rate_per_s"].sum())
    return {
        "rate_per_s": rate / count,
        "share": rate / total if total else None,
        "peak_rate_per_s": float(windows["rate_per_s"].max()),
        "active_share": len(busy) / count,
        "median_cv": float(busy["cv"].median()) if len(busy) else None,
        "weibull_share": float((busy["family"] == "Weibull").mean()) if len(busy) else None,
    }


def _averaged(values: Floats, together: int) -> Floats:
    """Return the means of so many neighbours each."""
    edges = range(together, len(values), together)
    return np.array([part.mean() for part in np.split(values, edges)])


def describe_lengths(lengths: pd.DataFrame) -> Facts:
    """Return each ServeGen client's lengths over all its windows."""
    return {
        "format": "servegen-lengths",
        "clients": {
            str(name): {
                "windows": len(group),
                **{field: _quantile_facts(group[field]) for field in QUANTILES},
            }
            for name, group in lengths.groupby("client", sort=False)
        },
    }


def _quantile_facts(windows: pd.Series) -> Facts:
    """Return the lengths of windows of quantiles, each window and each level alike."""
    values = np.concatenate([np.asarray(quantiles, dtype=float) for quantiles in windows])
    found = np.quantile(values, list(LEVELS.values()), method="inverted_cdf")
    return {"mean": float(values.mean()), **dict(zip(LEVELS, map(float, found), strict=True))}


def describe_rates(rates: pd.DataFrame) -> Facts:
    """Return each ServeGen client's mean rate and share, the busiest first."""
    total = float(rates["rate_per_s"].sum())
    return {
        "format": "servegen-rates",
        "rate_per_s": total,
        "clients": {
            str(client): {"rate_per_s": float(rate), "share": rate / total if total else None}
            for client, rate in zip(rates["client"], rates["rate_per_s"], strict=True)
        },
    }
