"""Queueing theory: what is known exactly about a server must come out of the simulator.

One token in, one token out, one at a time: every request takes one iteration of
10 + 1 + 2 (2 + 1 + 1 + 3 x 2 + 1 + 0.1) + 6 = 39.2 ms, so a replica is an M/D/1 queue.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest

from moesim.scenario import scenario_from
from moesim.simulation.run import simulate

Content = Callable[[], dict[str, Any]]

SERVICE_S = 0.0392
SEEDS = range(12)


def _poisson(content: dict[str, Any], rate_per_s: float, output: int, seqs: int) -> dict[str, Any]:
    content["duration_s"] = 100.0
    content["tenants"]["chat"] |= {
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
        "prompt_tokens": {"kind": "fixed", "tokens": 1},
        "output_tokens": {"kind": "fixed", "tokens": output},
    }
    content["deployment"]["scheduler"] = {"max_num_seqs": seqs, "max_batched_tokens": 16}
    return content


def _steady(records: pd.DataFrame) -> pd.DataFrame:
    """Leave out the first requests, which find the system emptier than it will be."""
    return records.iloc[100:]


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_mean_wait_of_an_md1_queue(tiny_scenario: Content, load: float) -> None:
    """Pollaczek and Khinchine: rho S / (2 (1 - rho)); 19.6 ms at a load of 0.5, 78.4 at 0.8."""
    scenario = scenario_from(_poisson(tiny_scenario(), load / SERVICE_S, output=1, seqs=1))
    waits = []
    for seed in SEEDS:
        records = _steady(simulate(scenario, seed=seed).records)
        service = records["finish_s"] - records["scheduled_s"]
        assert service.to_numpy() == pytest.approx(SERVICE_S)
        waits.append((records["scheduled_s"] - records["arrival_s"]).mean())
    error = np.std(waits, ddof=1) / np.sqrt(len(waits))
    assert abs(np.mean(waits) - load * SERVICE_S / (2 * (1 - load))) < 4 * error
    assert error < 0.1 * np.mean(waits)


def test_a_replica_is_busy_for_its_load(tiny_scenario: Content) -> None:
    """Utilisation law: as many iterations as requests, each 39.2 ms, over the span."""
    result = simulate(scenario_from(_poisson(tiny_scenario(), 0.5 / SERVICE_S, output=1, seqs=1)))
    usage, overall = result.replicas.iloc[0], result.metrics()["overall"]
    assert usage.iterations == overall["completed"]
    assert usage.utilisation == pytest.approx(overall["throughput_rps"] * SERVICE_S)


def test_littles_law(tiny_scenario: Content) -> None:
    """Poisson arrivals see time averages, so they find L = lambda W requests in the system.

    Batches of up to four with answers of 5 tokens, lambda as the scenario says, W from the records;
    the difference is nought within four standard errors over the seeds.
    """
    rate_per_s = 6.0
    scenario = scenario_from(_poisson(tiny_scenario(), rate_per_s, output=5, seqs=4))
    differences, found = [], []
    for seed in SEEDS:
        records = simulate(scenario, seed=seed).records
        arrivals = records["arrival_s"].to_numpy()
        left = np.searchsorted(np.sort(records["finish_s"]), arrivals, side="right")
        seen = np.arange(len(arrivals)) - left
        turnaround = records["finish_s"] - records["arrival_s"]
        found.append(seen.mean())
        differences.append(seen.mean() - rate_per_s * turnaround.mean())
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 4 * error
    assert error < 0.1 * np.mean(found)
