"""Trials: an experiment run several times, with other arrivals and other errors of the datasheet.

Trial n has the same seed and the same error in every scenario (common random numbers), so that
ratios of two deployments hold what the deployments do. Errors are laid out evenly over the
residuals of rooflines (`moesim.cost.roofline.RESIDUALS`): the 10th, 30th, 50th, 70th and 90th
percentile, all kernels of a trial by the same factor. A figure is the median over the trials, its
interval their range.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.profile import Cell, Profile
from moesim.cost.residuals import resampled
from moesim.cost.roofline import RESIDUALS
from moesim.scenario import Scenario
from moesim.simulation.inputs import Inputs, load_inputs
from moesim.simulation.replications import nth_seed
from moesim.simulation.run import Result, simulate

Runs = NDArray[np.float64]
"""A figure in each trial, (N,)."""

Read = Callable[[Result], Mapping[str, float]]
"""What is read from a result."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of everything: the seed of its arrivals, and by how much kernels take longer.

    `host_s` is what the host adds to each iteration, where that is known [s].
    """

    seed: int
    error: float
    host_s: float = 0.0


# Middles of five equal shares of the trials, as places among the residuals.
TRIALS = tuple(
    Trial(nth_seed(0, index), RESIDUALS[place]) for index, place in enumerate((1, 5, 9, 13, 17), 1)
)


def tried(scenario: Scenario, trial: Trial, inputs: Inputs | None = None) -> Result:
    """Return what a scenario does in one trial."""
    inputs = inputs or load_inputs(scenario)
    profiles = {name: _wrong_by(trial, profile) for name, profile in inputs.profiles.items()}
    return simulate(scenario, seed=trial.seed, inputs=replace(inputs, profiles=profiles))


def over_trials(scenario: Scenario, read: Read, trials: Sequence[Trial]) -> dict[str, Runs]:
    """Return each figure that is read, in every trial."""
    inputs = load_inputs(scenario)
    found = [read(tried(scenario, trial, inputs)) for trial in trials]
    return {name: np.array([run[name] for run in found]) for name in found[0]}


def _wrong_by(trial: Trial, profile: Profile) -> Profile:
    """Return the profile with all kernels wrong by the trial's error, beside its host."""
    verdict = profile.verdict.model_copy(update={"iteration_residuals": [trial.error]})
    altered = profile.model_copy(update={"verdict": verdict})
    redrawn = resampled(altered, np.random.default_rng(trial.seed))
    if not trial.host_s:
        return redrawn
    host = [Cell(at=(1,), median_s=trial.host_s, spread=0.0, repeats=1)]
    return redrawn.model_copy(update={"operations": {**redrawn.operations, "host": host}})
