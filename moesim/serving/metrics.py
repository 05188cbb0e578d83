"""From records to the figures a planner reads.

TTFT is `first token - arrival`; TPOT is `(finish - first token) / (output tokens - 1)` per request
with at least two tokens; turnaround is `finish - arrival`. Rates are over the span from the first
arrival to the last finish. Goodput counts the requests that met every target of their tenant.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from moesim.serving.records import COMPLETED, REFUSED

LATENCIES = ("ttft_s", "tpot_s", "turnaround_s")
STATISTICS = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets:
    """Latency targets of one tenant [s]; None is no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    turnaround_s: float | None = None


def with_latencies(records: pd.DataFrame) -> pd.DataFrame:
    """Return the completed requests with columns `ttft_s`, `tpot_s` and `turnaround_s`."""
    done = records[records["outcome"] == COMPLETED]
    gaps = (done["output_tokens"] - 1).where(done["output_tokens"] > 1)
    return done.assign(
        ttft_s=done["first_token_s"] - done["arrival_s"],
        tpot_s=(done["finish_s"] - done["first_token_s"]) / gaps,
        turnaround_s=done["finish_s"] - done["arrival_s"],
    )


def summarise(
    records: pd.DataFrame, slos: Mapping[str, SloTargets] | None = None
) -> dict[str, Any]:
    """Summarise a record table: `overall` and `tenants.<name>`, as `moesim simulate --json` prints.

    A figure that does not exist (no request completed, one-token outputs only) is None.
    """
    slos = slos or {}
    span_s = _span_s(records)
    return {
        "overall": _summary(records, slos, span_s),
        "tenants": {
            str(name): _summary(group, slos, span_s)
            for name, group in records.groupby("tenant", sort=True)
        },
    }


def _summary(
    records: pd.DataFrame, slos: Mapping[str, SloTargets], span_s: float | None
) -> dict[str, Any]:
    done = with_latencies(records)
    good = int(met_targets(done, slos).sum())
    return {
        **{name: _statistics(done[name]) for name in LATENCIES},
        "throughput_rps": _rate(len(done), span_s),
        "output_tokens_per_s": _rate(float(done["output_tokens"].sum()), span_s),
        "goodput_rps": _rate(good, span_s),
        "slo_attainment": good / len(done) if len(done) else None,
        "requests": len(records),
        "completed": len(done),
        "refused": int((records["outcome"] == REFUSED).sum()),
        "preemptions": int(records["preemptions"].sum()),
        "span_s": span_s,
    }


def met_targets(done: pd.DataFrame, slos: Mapping[str, SloTargets]) -> pd.Series:
    """Say for each completed request whether it met every target of its tenant."""
    met = pd.Series(True, index=done.index)
    for tenant, targets in slos.items():
        mine = done["tenant"] == tenant
        for name in LATENCIES:
            target = getattr(targets, name)
            if target is not None:
                met &= ~(mine & (done[name] > target))
    return met


def _span_s(records: pd.DataFrame) -> float | None:
    finishes = records["finish_s"].dropna()
    if finishes.empty:
        return None
    return float(finishes.max() - records["arrival_s"].min())


def _rate(count: float, span_s: float | None) -> float | None:
    return count / span_s if span_s else None


def _statistics(values: pd.Series) -> dict[str, float | None]:
    array = values.dropna().to_numpy(dtype=float)
    if not array.size:
        return dict.fromkeys(STATISTICS)
    quantiles = np.percentile(array, [50, 90, 95, 99])
    return dict(zip(STATISTICS, [float(array.mean()), *map(float, quantiles)], strict=True))
