"""From records to the figures a planner reads.

TTFT is `first token - arrival`; TPOT is `(finish - first token) / (output tokens - 1)` per request
with at least two tokens; ITL is each gap between two tokens of a request; turnaround is
`finish - arrival`. Rates are over the span from the first arrival to the last finish; what was
offered is over the arrivals alone, and so more than a throughput that keeps up with it. Goodput
counts the requests that met every target of their tenant; it does not exist where no tenant has a
target.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.serving.columns import Columns, Table
from moesim.serving.gaps import Gaps, all_gaps, joined, statistics, tenant_gaps
from moesim.serving.iterations import Iterations
from moesim.serving.records import COMPLETED, REFUSED

LATENCIES = ("ttft_s", "tpot_s", "turnaround_s")
ITL = "itl_s"
STATISTICS = ("mean", "p50", "p90", "p95", "p99")


@dataclass(frozen=True, slots=True, kw_only=True)
class SloTargets:
    """Latency targets of one tenant [s]; None is no target."""

    ttft_s: float | None = None
    tpot_s: float | None = None
    turnaround_s: float | None = None


NONE = SloTargets()
"""No targets."""


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
    records: Table,
    slos: Mapping[str, SloTargets] | None = None,
    logs: Mapping[str, Iterations] | None = None,
) -> dict[str, Any]:
    """Summarise a run: `overall` and `tenants.<name>`, as `moesim simulate --json` prints it.

    With the replicas' logs there are the gaps between tokens (`itl_s`) too. A figure that does not
    exist (no request completed, one-token outputs only, no targets to meet) is None.
    """
    gaps = _gaps(all_gaps(logs.values()) if logs else None)  # what takes most memory goes first
    table = Columns.of(records)
    figures = _Figures.of(table, slos or {})
    overall = figures.summary() | gaps
    names = _tenants(table)
    if len(names) == 1:
        return {"overall": overall, "tenants": {names[0]: _copied(overall)}}
    parts = {}
    for name in names:
        rows = table.where("tenant", name)
        gaps = _gaps(_of_tenant(table.take(rows), logs) if logs else None)
        judged = _has_targets(slos, [name])
        parts[name] = replace(figures.only(rows), judged=judged).summary() | gaps
    return {"overall": overall, "tenants": parts}


def _tenants(table: Columns) -> list[str]:
    """Return the tenants' names in order."""
    known = table.value("tenant")
    return (
        sorted(set(table["tenant"].tolist())) if known is None or not len(table) else [str(known)]
    )


def _copied(figures: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: dict(figure) if isinstance(figure, dict) else figure
        for name, figure in figures.items()
    }


def _gaps(gaps: Gaps | None) -> dict[str, Any]:
    return {} if gaps is None else {ITL: statistics(gaps)}


def _of_tenant(table: Columns, logs: Mapping[str, Iterations]) -> Gaps:
    """Return the gaps of some requests, over the replicas that served them."""
    return joined(
        tenant_gaps(log, table.take(table.where("replica", name))) for name, log in logs.items()
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Figures:
    """What figures are made of, a row a request; latencies are NaN where there is none."""

    done: NDArray[np.bool]
    refused: NDArray[np.bool]
    good: NDArray[np.bool]
    output_tokens: NDArray[np.int64]
    preemptions: NDArray[np.int64]
    latencies: Mapping[str, NDArray[np.float64]]
    arrival_s: NDArray[np.float64]
    span_s: float | None
    judged: bool
    """Whether there are targets that requests could miss."""

    @classmethod
    def of(cls, table: Columns, slos: Mapping[str, SloTargets]) -> "_Figures":
        arrival, first, finish = (
            table[name].astype(float, copy=False)
            for name in ("arrival_s", "first_token_s", "finish_s")
        )
        tokens = table["output_tokens"]
        latencies = {
            "ttft_s": first - arrival,
            "tpot_s": (finish - first) / np.where(tokens > 1, tokens - 1, np.nan),
            "turnaround_s": finish - arrival,
        }
        done = table.where("outcome", COMPLETED)
        return cls(
            done=done,
            refused=table.where("outcome", REFUSED),
            good=done & _met(latencies, table, slos),
            output_tokens=tokens,
            preemptions=table["preemptions"],
            latencies=latencies,
            arrival_s=arrival,
            span_s=_span_s(arrival, finish),
            judged=_has_targets(slos, _tenants(table)),
        )

    def only(self, rows: NDArray[np.bool]) -> "_Figures":
        """Return some rows; rates stay over the span of all."""
        return replace(
            self,
            **{
                name: getattr(self, name)[rows]
                for name in ("done", "refused", "good", "output_tokens", "preemptions", "arrival_s")
            },
            latencies={name: values[rows] for name, values in self.latencies.items()},
        )

    def summary(self) -> dict[str, Any]:
        """Return the figures of these rows."""
        done, good = int(self.done.sum()), int(self.good.sum())
        return {
            **{name: _statistics(values[self.done]) for name, values in self.latencies.items()},
            "offered_rps": _offered(self.arrival_s),
            "throughput_rps": _rate(done, self.span_s),
            "output_tokens_per_s": _rate(int(self.output_tokens[self.done].sum()), self.span_s),
            "goodput_rps": _rate(good, self.span_s) if self.judged else None,
            "slo_attainment": good / len(self.done) if self.judged and len(self.done) else None,
            "requests": len(self.done),
            "completed": done,
            "refused": int(self.refused.sum()),
            "preemptions": int(self.preemptions.sum()),
            "span_s": self.span_s,
        }


def _has_targets(slos: Mapping[str, SloTargets] | None, tenants: Sequence[str]) -> bool:
    """Say whether any of some tenants has a target."""
    return any((slos or {}).get(name, NONE) != NONE for name in tenants)


def _met(
    latencies: Mapping[str, NDArray[np.float64]],
    table: Columns,
    slos: Mapping[str, SloTargets],
) -> NDArray[np.bool]:
    """Say for each request whether it met every target of its tenant; no latency breaks none."""
    met = np.ones(len(table), dtype=bool)
    for name, targets in slos.items():
        for metric, values in latencies.items():
            target = getattr(targets, metric)
            if target is not None:
                met &= ~(table.where("tenant", name) & (values > target))
    return met


def _span_s(arrival: NDArray[np.float64], finish: NDArray[np.float64]) -> float | None:
    if not len(finish) or np.isnan(finish).all():
        return None
    return float(np.nanmax(finish) - arrival.min())


def _offered(arrival_s: NDArray[np.float64]) -> float | None:
    """Return how many requests came per second from the first to the last, None of a moment."""
    return _rate(len(arrival_s) - 1, float(np.ptp(arrival_s))) if len(arrival_s) else None


def _rate(count: float, span_s: float | None) -> float | None:
    return count / span_s if span_s else None


def _statistics(values: NDArray[np.float64]) -> dict[str, float | None]:
    known = values[~np.isnan(values)]
    if not known.size:
        return dict.fromkeys(STATISTICS)
    quantiles = _quantiles(np.sort(known), (0.5, 0.9, 0.95, 0.99))
    return dict(zip(STATISTICS, [float(known.mean()), *quantiles], strict=True))


def _quantiles(ordered: NDArray[np.float64], levels: tuple[float, ...]) -> list[float]:
    """Return quantiles of ordered values, linearly between two (type 7 of Hyndman and Fan 1996).

    What `numpy.percentile` returns, to rounding, in a fraction of the time for few values.
    """
    found = []
    for level in levels:
        place = level * (len(ordered) - 1)
        below = int(place)
        low, high = float(ordered[below]), float(ordered[min(below + 1, len(ordered) - 1)])
        found.append(low + (high - low) * (place - below))
    return found
