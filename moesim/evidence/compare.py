"""Compare real runs of one workload with the prediction of it.

The error of a prediction means little without the spread of the real system: two runs of the same
workload differ too. So every row carries both.

Where a prediction is the median of simulations whose profile is redrawn within its errors, its
interval holds nine in ten of them. A figure is hit when the mean of the real runs lies within. One
run of several inside would not do: the more runs were made, the easier that were. The figures of
one validation rise and fall together, with one host and one profile, so that nine hits in ten are
to be expected over many validations and not within one.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from moesim.errors import ScenarioError
from moesim.serving.metrics import LATENCIES, STATISTICS, summarise
from moesim.simulation.replications import COVERAGE, MOST

RATES = ("throughput_rps", "output_tokens_per_s")
TOLERANCE = 0.15
"""Relative error that counts as close."""

KEYS = (
    *((metric, statistic) for metric in LATENCIES for statistic in STATISTICS),
    *((metric, "mean") for metric in RATES),
)
"""What is compared: metric and statistic; a rate is its own mean."""

ERRORS = ("metric", "statistic", "measured", "predicted", "error", "spread", "close")
"""The columns of any comparison."""

COLUMNS = (*ERRORS, "low", "high", "hit")
"""The columns of a comparison with replications."""


def compare(measured: Sequence[pd.DataFrame], predicted: pd.DataFrame) -> pd.DataFrame:
    """Return one row per figure, `ERRORS`, from the record tables of real runs and a prediction.

    `measured` is the mean over the real runs, `spread` their range over it, NaN for a single run;
    `error` is predicted/measured - 1. `close` says whether the error is within 15 % or twice the
    spread. A figure that is missing on either side has no row.
    """
    runs = [summarise(records)["overall"] for records in measured]
    return _errors(runs, summarise(predicted)["overall"])


def compare_replications(
    measured: Sequence[pd.DataFrame], predicted: Mapping[str, Any]
) -> pd.DataFrame:
    """Compare real runs with what `Replications.metrics()` predicts: `COLUMNS`.

    As `compare`, but `predicted` is a median, `low` and `high` are its 90 % interval, and `hit`
    says whether `measured` lies from one to the other. Raises ScenarioError where there are no 90 %
    intervals.
    """
    _check(predicted)
    runs = [summarise(records)["overall"] for records in measured]
    return _with_intervals(runs, predicted["overall"], predicted["intervals"]["overall"])


def compare_tenants(measured: Sequence[pd.DataFrame], predicted: Mapping[str, Any]) -> pd.DataFrame:
    """Compare tenant by tenant: `tenant` and `COLUMNS`; no row where there is but one.

    Raises what `compare_replications` raises.
    """
    _check(predicted)
    runs = [summarise(records)["tenants"] for records in measured]
    found = [pd.DataFrame(columns=["tenant", *COLUMNS])]
    for name, figures in predicted["tenants"].items():
        if len(predicted["tenants"]) > 1 and all(name in run for run in runs):
            ends = predicted["intervals"]["tenants"][name]
            rows = _with_intervals([run[name] for run in runs], figures, ends)
            rows.insert(0, "tenant", name)
            found.append(rows)
    return found[0] if len(found) == 1 else pd.concat(found[1:], ignore_index=True)


def in_words(row: Mapping[str, Any]) -> str:
    """Return a row in a few words: measured / predicted, error and spread; `!` where not close.

    Durations are in milliseconds. The spread of a single run is not known.

    >>> in_words({"metric": "ttft_s", "measured": 0.2, "predicted": 0.25, "error": 0.25,
    ...           "spread": None, "close": False})
    '200 / 250, +25% (?) !'
    """
    factor = 1.0 if row["metric"] in RATES else 1e3
    spread = "?" if row["spread"] is None else f"{row['spread']:.0%}"
    return (
        f"{factor * row['measured']:.3g} / {factor * row['predicted']:.3g}, "
        f"{row['error']:+.0%} ({spread}){'' if row['close'] else ' !'}"
    )


def _with_intervals(
    runs: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any], intervals: Mapping[str, Any]
) -> pd.DataFrame:
    rows = _errors(runs, predicted)
    ends = [_at(intervals, *key) for key in zip(rows["metric"], rows["statistic"], strict=True)]
    rows[["low", "high"]] = np.array(ends, dtype=float).reshape(-1, 2)
    return rows.assign(hit=rows["measured"].between(rows["low"], rows["high"]))


def _errors(runs: Sequence[Mapping[str, Any]], predicted: Mapping[str, Any]) -> pd.DataFrame:
    rows = []
    for key in KEYS:
        seen = [x for run in runs if (x := _at(run, *key)) is not None]
        value = _at(predicted, *key)
        if value is None or len(seen) < len(runs) or not seen:
            continue
        rows.append((*key, *_row(seen, value)))
    return pd.DataFrame(rows, columns=list(ERRORS))


def _check(predicted: Mapping[str, Any]) -> None:
    """Raise ScenarioError unless the prediction has intervals that hold as much as they say."""
    if (predicted.get("coverage") or 0.0) < COVERAGE:
        raise ScenarioError(
            f"replications: {predicted.get('replications', 1)}: no intervals that hold nine in ten "
            f"runs; predict with {MOST} to compare"
        )


def _at(overall: Mapping[str, Any], metric: str, statistic: str) -> Any:
    return overall[metric] if metric in RATES else overall[metric][statistic]


def _row(seen: list[float], predicted: float) -> tuple[float, float, float, float, bool]:
    mean = sum(seen) / len(seen)
    spread = (max(seen) - min(seen)) / mean if len(seen) > 1 else float("nan")
    error = predicted / mean - 1
    tolerance = max(TOLERANCE, 2 * spread if spread == spread else 0.0)
    return mean, predicted, error, spread, abs(error) <= tolerance
