"""Trials: an experiment run several times, with other arrivals and other errors of its kernels.

Trial n has the same seed and the same error in every scenario (common random numbers), so that
ratios of two deployments hold what the deployments do. Errors are laid out evenly over each
profile's own residuals, of rooflines on measured kernels, or of kernels on published results of
many engines: the 10th, 30th, 50th, 70th and 90th percentile, all kernels of a trial by the same
factor. Where the engine is known, they are its own (`served_by`). A figure is the median over the
trials, its interval their range.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.cost.kernels.uncertainty import SOFTWARE
from moesim.cost.profile import Cell, Profile
from moesim.cost.residuals import resampled
from moesim.deployment import Dedicated, Scheduler
from moesim.facts.slices import Slice
from moesim.scenario import Hardware, Model, Scenario
from moesim.simulation.inputs import Inputs, load_inputs
from moesim.simulation.replications import nth_seed
from moesim.simulation.run import Result, simulate

MOST_SEQUENCES = 65536
"""More than any batch has."""

Runs = NDArray[np.float64]
"""A figure in each trial, (N,)."""

ONE = "model"
"""What a model is called that is read apart from its scenario."""

Read = Callable[[Result], Mapping[str, float]]
"""What is read from a result."""


@dataclass(frozen=True, slots=True)
class Trial:
    """One run of everything: the seed of its arrivals, and which of its errors a profile has.

    `quantile` says where that lies among the profile's residuals; a given `error` stands in their
    place. `host_s` is what the host adds to each iteration, and `visit_s` for each sequence in each
    layer, where that is known [s].
    """

    seed: int
    quantile: float = 0.5
    host_s: float = 0.0
    visit_s: float = 0.0
    error: float | None = None

    def host(self, layers: int) -> list[Cell]:
        """Return what the host takes by sequences: a line."""
        taken = {n: self.host_s + self.visit_s * layers * n for n in (1, MOST_SEQUENCES)}
        return [Cell(at=(n,), median_s=s, spread=0.0, repeats=1) for n, s in taken.items()]

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


def tried(scenario: Scenario, trial: Trial) -> Result:
    """Return what a scenario does in one trial."""
    return simulate(scenario, seed=trial.seed, inputs=read(scenario, trial))


def read(scenario: Scenario, trial: Trial | None = None) -> Inputs:
    """Return what a scenario starts from, its profiles wrong by a trial's errors if one is given.

    What several scenarios have in common is drawn once. Published scenarios replay no traces.
    """
    hardware, folder = scenario.hardware, scenario.folder
    each = {
        name: _drawn(model, scenario.deployment_of(name).scheduler, hardware, folder, trial)
        for name, model in scenario.models.items()
    }
    profiles = {name: inputs.profiles[ONE] for name, inputs in each.items()}
    return replace(next(iter(each.values())), profiles=profiles)


@cache
def _drawn(
    model: Model, scheduler: Scheduler, hardware: Hardware, folder: Path | None, trial: Trial | None
) -> Inputs:
    """Return what a model starts from whose scheduler may ask for so many tokens and sequences."""
    alone = Scenario.model_construct(
        models={ONE: model},
        tenants={},
        hardware=hardware,
        deployment=Dedicated(kind="dedicated", scheduler=scheduler),
        quality=None,
        folder=folder,
    )
    if trial is None:
        return load_inputs(alone)
    inputs = _drawn(model, scheduler, hardware, folder, None)
    return replace(inputs, profiles={ONE: _wrong_by(trial, inputs.profiles[ONE])})


def served_by(software: str, device: str, trials: Sequence[Trial] = TRIALS) -> tuple[Trial, ...]:
    """Return the trials with what an engine was found to add to a device's kernels as errors."""
    (known,) = (each for each in SOFTWARE if (each.name, each.device) == (software, device))
    # Percentiles 5, 15, ... 95.
    places = (np.arange(len(known.slower)) + 0.5) / len(known.slower)
    errors = [np.interp(trial.quantile, places, known.slower) - 1 for trial in trials]
    return tuple(
        replace(trial, error=float(error)) for trial, error in zip(trials, errors, strict=True)
    )


def over_trials(scenario: Scenario, figures: Read, trials: Sequence[Trial]) -> dict[str, Runs]:
    """Return each figure that is read, in every trial."""
    found = [figures(tried(scenario, trial)) for trial in trials]
    return {name: np.array([run[name] for run in found]) for name in found[0]}


@dataclass(frozen=True, slots=True)
class _Hosted:
    """Draws a profile on groups of devices, as it draws itself, with a host beside its kernels."""

    profile: Profile
    host: list[Cell]

    def on(self, part: Slice, popularity: list[list[float]]) -> Profile:
        """Return the profile of each device of a group; the popularity is the profile's own."""
        found = self.profile.on_group(part)
        assert found is not None  # noqa: S101  # kernels can be drawn on any group
        return found.model_copy(update={"operations": {**found.operations, "host": self.host}})


def _wrong_by(trial: Trial, profile: Profile) -> Profile:
    """Return the profile with all kernels wrong by the trial's error, beside its host."""
    error = trial.error_of(profile)
    verdict = profile.verdict.model_copy(update={"iteration_residuals": [error]})
    altered = profile.model_copy(update={"verdict": verdict})
    redrawn = resampled(altered, np.random.default_rng(trial.seed))
    if not trial.host_s and not trial.visit_s:
        return redrawn
    host = trial.host(profile.spec.num_hidden_layers)
    hosted = redrawn.model_copy(update={"operations": {**redrawn.operations, "host": host}})
    if profile.source != "kernels":
        return hosted
    # What is drawn on a group is redrawn there already, and the host is not to be slowed with it.
    return hosted.with_parts(_Hosted(redrawn, host)).at_level(1 / (1 + error))
