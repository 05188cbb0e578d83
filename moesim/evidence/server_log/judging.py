"""Predicting how a server's log goes on, and comparing.

vLLM composes an iteration while the one before it still runs (its `--async-scheduling`, the default
since 0.14): a stretch to the first token begins with the iteration under way, and a request joins
not the next iteration but the one after. The simulator's scheduler does not look ahead, so
`predict` hands each request over later by the iteration that it arrives in.
"""

import numpy as np
import pandas as pd

from moesim.cost.affine import AffineParameters
from moesim.evidence.compare import compare
from moesim.evidence.server_log.fitting import CLOCK_S, Floats, asked_of, contents_of, served_by
from moesim.evidence.server_log.reading import ServerLog
from moesim.serving.metrics import LATENCIES, with_latencies
from moesim.simulation.replica import Served


def predict(log: ServerLog, parameters: AffineParameters) -> pd.DataFrame:
    """Return the records of the log's requests on a server of these parameters.

    Of the log only arrivals and lengths are used.
    """
    arrival_s = log.records["arrival_s"]
    served = served_by(log, parameters, asked_of(log.records, arrival_s))
    if log.ahead:
        later_s = np.maximum.accumulate(arrival_s + _under_way_s(served, arrival_s.to_numpy()))
        served = served_by(log, parameters, asked_of(log.records, pd.Series(later_s)))
    return served.records.assign(arrival_s=arrival_s)


def _under_way_s(served: Served, at_s: Floats) -> Floats:
    """Return the duration of the iteration that ran before each time and on [s], 0 where none."""
    work = contents_of(served)
    number = np.maximum(np.searchsorted(work.begin_s, at_s - CLOCK_S) - 1, 0)
    runs = (work.begin_s[number] < at_s - CLOCK_S) & (at_s < work.end_s[number])
    return np.where(runs, work.end_s[number] - work.begin_s[number], 0.0)


def judge(log: ServerLog, predicted: pd.DataFrame, requests: int) -> pd.DataFrame:
    """Compare all but the first requests: a row per figure of `moesim.evidence.compare`.

    Beside `measured`, `predicted` and its `error` stands what taking the first requests' figure for
    the rest's would give: `persistence`, and its error `persistence_error`.
    """
    rest = log.records[requests:]
    ours = compare([rest], predicted[requests:])
    naive = compare([rest], log.records[:requests]).set_index(["metric", "statistic"])
    naive = naive.loc[pd.MultiIndex.from_frame(ours[["metric", "statistic"]])]
    return ours[["metric", "statistic", "measured", "predicted", "error"]].assign(
        persistence=naive["predicted"].to_numpy(), persistence_error=naive["error"].to_numpy()
    )


def typical_errors(measured: pd.DataFrame, predicted: pd.DataFrame) -> dict[str, float]:
    """Return the median over requests of |predicted / measured - 1| by latency."""
    seen, expected = with_latencies(measured), with_latencies(predicted)
    return {name: float((expected[name] / seen[name] - 1).abs().median()) for name in LATENCIES}
