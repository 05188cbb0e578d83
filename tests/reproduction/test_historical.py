"""Ratios of latencies and throughputs, on sweeps made up for them."""

import numpy as np
import pytest

from moesim.reproduction.historical import (
    LOADS,
    TARGETS_S,
    Sweep,
    centred_on,
    latency_ratios,
    likely,
    throughput_ratios,
)
from moesim.reproduction.publication import load_publication
from moesim.reproduction.trials import TRIALS, read


def sweep(slope_s: float, most: float = LOADS[-1]) -> Sweep:
    """Return p90 latencies that are proportional to the load, in one trial."""
    return {load: np.array([slope_s * load]) for load in LOADS if load <= most}


def test_a_baseline_that_is_three_times_slower_serves_a_third_of_the_load() -> None:
    """Where neither is off its sweep: latencies from 3 s on, up to those of the faster at 100."""
    ratios = throughput_ratios(sweep(1.0), sweep(3.0))[:, 0]
    within = (np.array(TARGETS_S) >= 3) & (np.array(TARGETS_S) <= LOADS[-1])
    assert ratios[within] == pytest.approx(3)
    assert np.isnan(ratios[np.array(TARGETS_S) < 3]).all()
    assert latency_ratios(sweep(1.0), sweep(3.0)) == pytest.approx(3)


def test_a_sweep_that_ends_early_says_nothing_of_targets_beyond() -> None:
    """Its last load may not be the most that meets them."""
    ratios = throughput_ratios(sweep(0.1), sweep(0.1, most=15.0))[:, 0]
    targets = np.array(TARGETS_S)
    assert np.isfinite(ratios[(targets >= 0.5) & (targets <= 1.5)]).all()
    assert np.isnan(ratios[targets > 1.5]).all()


def test_each_trial_has_the_load_at_which_its_engine_is_about_to_saturate() -> None:
    """A baseline that queues from 40 on, beside engines that do so from 70 and from 90 on."""
    loads = np.array(LOADS)
    early, late = (1 + 100 * np.maximum(0, loads - saturated) for saturated in (70, 90))
    efficient = {
        load: np.array(both)
        for load, both in zip(LOADS, zip(early, late, strict=True), strict=True)
    }
    middle = {load: np.array([1 + 2 * max(0.0, load - 40)]) for load in LOADS}
    assert likely(efficient, middle) == [70, 90]


def test_errors_are_centred_on_none() -> None:
    """Their ratios to each other stay as they were."""
    profile = read(load_publication("friendli").scenario("anchor")).profiles["mixtral"]
    centred = [1 + (trial.error or 0.0) for trial in centred_on(profile, TRIALS)]
    own = [1 + trial.error_of(profile) for trial in TRIALS]
    assert centred[2] == pytest.approx(1)
    assert np.divide(centred, centred[0]) == pytest.approx(np.divide(own, own[0]))
