"""Compare record tables: real runs of one workload, and the prediction of it.

The error of a prediction means little without the spread of the real system: two runs of the same
workload differ too. So every row carries both.
"""

from collections.abc import Sequence

import pandas as pd

from moesim.serving.metrics import LATENCIES, STATISTICS, summarise

RATES = ("throughput_rps", "output_tokens_per_s")
TOLERANCE = 0.15
"""Relative error that counts as close."""

COLUMNS = ("metric", "statistic", "measured", "predicted", "error", "spread", "close")


def figures(records: pd.DataFrame) -> dict[tuple[str, str], float | None]:
    """Return every compared figure of a record table by metric and statistic."""
    overall = summarise(records)["overall"]
    found: dict[tuple[str, str], float | None] = {
        (metric, statistic): overall[metric][statistic]
        for metric in LATENCIES
        for statistic in STATISTICS
    }
    return found | {(metric, "mean"): overall[metric] for metric in RATES}


def compare(measured: Sequence[pd.DataFrame], predicted: pd.DataFrame) -> pd.DataFrame:
    """Return one row per figure: measured mean over runs, predicted, error, run-to-run spread.

    `error` is predicted/measured - 1; `spread` is the range of the runs over their mean, NaN for a
    single run. `close` says whether the error is within 15 % or twice the spread.
    """
    runs = [figures(records) for records in measured]
    prediction = figures(predicted)
    rows = []
    for key, value in prediction.items():
        seen = [run[key] for run in runs]
        known = [x for x in seen if x is not None]
        if value is None or len(known) < len(seen) or not known:
            continue
        rows.append((*key, *_row(known, value)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _row(seen: list[float], predicted: float) -> tuple[float, float, float, float, bool]:
    mean = sum(seen) / len(seen)
    spread = (max(seen) - min(seen)) / mean if len(seen) > 1 else float("nan")
    error = predicted / mean - 1
    tolerance = max(TOLERANCE, 2 * spread if spread == spread else 0.0)
    return mean, predicted, error, spread, abs(error) <= tolerance
