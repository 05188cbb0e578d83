"""Expert misses: how many absent experts the iterations of each request waited for.

What an iteration copies in expectation follows from its tokens; a request waits for the copies of
every iteration from the one that it entered in to the one that finished it, whoever needed them.
"""

from collections.abc import Mapping, Sequence

import numpy as np

from moesim.cost.laden import LadenCost
from moesim.serving.columns import Columns
from moesim.serving.iterations import Floats, Iterations
from moesim.simulation.shelf import copied_from
from moesim.simulation.station import Station

ROUNDING = 1e-6
"""What sums in different orders may differ by, so that halves are rounded one way."""


def with_misses(
    records: Columns, stations: Sequence[Station], logs: Mapping[str, Iterations]
) -> Columns:
    """Return records whose `expert_misses` are filled in where experts wait in host memory."""
    copies = copies_of(stations, logs)
    if not copies:
        return records
    scheduled_s, finish_s = records["scheduled_s"], records["finish_s"]
    found = np.zeros(len(records), dtype=np.int64)
    for name, (start_s, each) in copies.items():
        rows = np.flatnonzero(records.where("replica", name) & ~np.isnan(finish_s))
        waited = _waited(start_s, each, scheduled_s[rows], finish_s[rows])
        found[rows] = np.floor(waited + 0.5 + ROUNDING).astype(np.int64)
    return records.assign(expert_misses=found)


def copies_of(
    stations: Sequence[Station], logs: Mapping[str, Iterations]
) -> dict[str, tuple[Floats, Floats]]:
    """Return when runs of iterations began [s], and their copies, of replicas that lack experts.

    Arrays of (R,) each.
    """
    found: dict[str, tuple[Floats, Floats]] = {}
    for station in stations:
        shelved = copied_from(station.shelves)
        for place, replica in enumerate(station.replicas):
            cost, log = replica.cost, logs[replica.name]
            if place in shelved:
                found[replica.name] = shelved[place]
            elif isinstance(cost, LadenCost) and cost.copies is not None:
                found[replica.name] = log.start_s, copied(log, cost.copies)
    return found


def copied(log: Iterations, copies: Floats) -> Floats:
    """Return the copies of each run of iterations, (R,); `copies` are by an iteration's tokens."""
    return np.asarray(copies[log.tokens] * log.iterations)


def _waited(start_s: Floats, copies: Floats, since_s: Floats, until_s: Floats) -> Floats:
    """Return the copies of all runs that start from `since_s` on and before `until_s`."""
    upto = np.concatenate([[0.0], np.cumsum(copies)])
    begin, end = (np.searchsorted(start_s, at_s) for at_s in (since_s, until_s))
    return np.asarray(upto[end] - upto[begin])
