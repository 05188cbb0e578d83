"""What follows from qos-moe's figures by arithmetic: what slices hold and miss, how long it takes.

A variant finds so many expert positions on its slice; a token misses the others that it hits, a
prompt of 20 tokens hits all of them. Requests that are served one at a time, each for about the
same time, wait as in M/D/1 (Pollaczek and Khinchine): with services of S seconds and r requests a
second, r S^2 / (2 (1 - r S)) on average.
"""

from typing import NamedTuple

import numpy as np

from moesim.cost.laden import LadenCost
from moesim.cost.offload import Loading
from moesim.reproduction.trials import Runs, read
from moesim.scenario import Scenario
from moesim.simulation.deploy import drafted_of

PROMPT = 20
"""Tokens of the published prompts."""


class Holding(NamedTuple):
    """What a variant finds on its slice and copies to it, in expert positions.

    `token` and `prompt` are copies of an iteration of one token, and of a whole prompt, `copy_s`
    what each takes on an idle link.
    """

    found: int
    absent: int
    token: float
    prompt: float
    copy_s: float


def holding(scenario: Scenario) -> Holding:
    """Return what the first variant of a scenario finds on its slice."""
    draft = drafted_of(scenario, read(scenario))[0].drafts[0]
    seen, load, cost = draft.seen[0], draft.loads[0], draft.costs()[0]
    assert seen is not None  # noqa: S101  # experts are absent in the shipped scenarios
    assert load is not None  # noqa: S101
    assert isinstance(cost, LadenCost)  # noqa: S101
    assert cost.copies is not None  # noqa: S101
    return Holding(
        found=int(seen.sum()),
        absent=int((~seen).sum()),
        token=float(cost.copies[1]),
        prompt=float(cost.copies[PROMPT]),
        copy_s=_copy_s(load.loading),
    )


def _copy_s(loading: Loading) -> float:
    return loading.expert_bytes / loading.bytes_per_s + loading.latency_s


def in_md1(service_s: Runs, rate_per_s: float) -> Runs:
    """Return the mean turnaround of M/D/1 with services of runs [s].

    >>> in_md1(np.array([5.0]), 0.1).tolist()
    [7.5]
    """
    busy = rate_per_s * service_s
    return np.asarray(service_s * (1 + busy / (2 * (1 - busy))))
