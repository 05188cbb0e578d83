"""Expert misses: how many absent experts the iterations of each request waited for.

What an iteration copies in expectation follows from its tokens; a request waits for the copies of
every iteration from the one that it entered in to the one that finished it, whoever needed them.
"""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from moesim.cost.laden import LadenCost
from moesim.serving.iterations import Floats, Iterations
from moesim.simulation.station import Station

ROUNDING = 1e-6
"""What sums in different orders may differ by, so that halves are rounded one way."""


def with_misses(
    records: pd.DataFrame, stations: Sequence[Station], logs: Mapping[str, Iterations]
) -> pd.DataFrame:
    """Return records whose `expert_misses` are filled in where experts wait in host memory."""
    copies = {
        replica.name: replica.cost.copies
        for station in stations
        for replica in station.replicas
        if isinstance(replica.cost, LadenCost) and replica.cost.copies is not None
    }
    if not copies:
        return records
    names = records["replica"].to_numpy(dtype=object)
    scheduled_s = records["scheduled_s"].to_numpy(dtype=float)
    finish_s = records["finish_s"].to_numpy(dtype=float)
    found = np.zeros(len(records), dtype=np.int64)
    for name, table in copies.items():
        rows = np.flatnonzero((names == name) & ~np.isnan(finish_s))
        waited = _waited(logs[name], table, scheduled_s[rows], finish_s[rows])
        found[rows] = np.floor(waited + 0.5 + ROUNDING).astype(np.int64)
    return records.assign(expert_misses=found)


def copied(log: Iterations, copies: Floats) -> Floats:
    """Return the copies of each run of iterations, (R,); `copies` are by an iteration's tokens."""
    return np.asarray(copies[log.tokens] * log.iterations)


def _waited(log: Iterations, copies: Floats, since_s: Floats, until_s: Floats) -> Floats:
    """Return the copies of all runs that start from `since_s` on and before `until_s`."""
    upto = np.concatenate([[0.0], np.cumsum(copied(log, copies))])
    begin, end = (np.searchsorted(log.start_s, at_s) for at_s in (since_s, until_s))
    return np.asarray(upto[end] - upto[begin])
