"""Trials: an experiment run several times, with other arrivals and other errors of its kernels.

Trial n has the same seed and the same error in every scenario (common random numbers), so that
ratios of two deployments hold what the deployments do. Errors are laid out evenly over each
profile's own residuals, of rooflines on measured kernels or of kernel tables left out in turn: the
10th, 30th, 50th, 70th and 90th percentile, all kernels of a trial by the same factor. A figure is
the median over the trials, its interval their range.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.profile import Cell, Profile
from moesim.cost.residuals import resampled
from moesim.facts.slices import Slice
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
    """One run of everything: the seed of its arrivals, and which of its errors a profile has.

    `quantile` says where that lies among the profile's residuals; a given `error` stands in their
    place. `host_s` is what the host adds to each iteration, where that is known [s].
    """

    seed: int
    quantile: float = 0.5
    host_s: float = 0.0
    error: float | None = None

    def error_of(self, profile: Profile) -> float:
        """Return by how much all kernels of a profile take longer."""
        residuals = profile.verdict.iteration_residuals
        if self.error is not None or not residuals:
            return self.error or 0.0
        return float(np.quantile(residuals, self.quantile))


# Middles of five equal shares of the residuals.
TRIALS = tuple(
    Trial(nth_seed(0, index), quantile)
    for index, quantile in enumerate((0.1, 0.3, 0.5, 0.7, 0.9), 1)
)


def tried(scenario: Scenario, trial: Trial, inputs: Inputs | None = None) -> Result:
    """Return what a scenario does in one trial."""
    inputs = inputs or load_inputs(scenario)
    profiles = {name: _wrong_by(trial, profile) for name, profile in inputs.profiles.items()}
    return simulate(scenario, seed=trial.seed, inputs=replace(inputs, profiles=profiles))


def prepared(scenario: Scenario) -> Inputs:
    """Return a scenario's inputs, with profiles that are drawn on each group of devices once."""
    inputs = load_inputs(scenario)
    profiles = {
        name: profile.with_parts(_Once(profile)) if profile.source == "kernels" else profile
        for name, profile in inputs.profiles.items()
    }
    return replace(inputs, profiles=profiles)


def over_trials(
    scenario: Scenario, read: Read, trials: Sequence[Trial], inputs: Inputs | None = None
) -> dict[str, Runs]:
    """Return each figure that is read, in every trial; `inputs` are the scenario's, `prepared`."""
    inputs = inputs or prepared(scenario)
    found = [read(tried(scenario, trial, inputs)) for trial in trials]
    return {name: np.array([run[name] for run in found]) for name in found[0]}


@dataclass(frozen=True, slots=True)
class _Once:
    """Draws a profile on groups of devices from its own tables, on each group once."""

    profile: Profile
    drawn: dict[Slice, Profile] = field(default_factory=dict)

    def on(self, part: Slice, popularity: list[list[float]]) -> Profile:
        """Return the profile of each device of a group."""
        if part not in self.drawn:
            found = self.profile.on_group(part)
            assert found is not None  # noqa: S101  # kernels can be drawn on any group
            self.drawn[part] = found
        return self.drawn[part]


def _wrong_by(trial: Trial, profile: Profile) -> Profile:
    """Return the profile with all kernels wrong by the trial's error, beside its host."""
    verdict = profile.verdict.model_copy(update={"iteration_residuals": [trial.error_of(profile)]})
    altered = profile.model_copy(update={"verdict": verdict})
    redrawn = resampled(altered, np.random.default_rng(trial.seed))
    if not trial.host_s:
        return redrawn
    host = [Cell(at=(1,), median_s=trial.host_s, spread=0.0, repeats=1)]
    return redrawn.model_copy(update={"operations": {**redrawn.operations, "host": host}})
