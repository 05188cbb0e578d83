"""Prompts whose length is published nowhere: one mean for all rows of a data set, fitted.

It is the mean with which the median of the simulated offline rates is the median of the measured
ones, over the rows of the GPU with most of them. Whatever is reported of those runs is not judged.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import simulated
from moesim.evidence.accuracy.experiments import Figure
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.predictions import levels_of, of_course, slower_by

SHORTEST, LONGEST = 8.0, 4096.0
"""Means between which one is looked for [tokens]."""

EXACT = 1.0
"""How exactly [tokens]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A mean that was fitted, and the rows of the runs that it was fitted on."""

    model: str
    device: str
    prompt_tokens: float
    figures: tuple[Figure, ...]
    at_end: bool
    """Whether no mean within the bounds met the measured rates."""


def fitted_prompts(figures: Sequence[Figure], costs: Costs) -> tuple[Fit, ...]:
    """Return a fit for each model with rows that do not say how long prompts were."""
    unknown: defaultdict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.experiment.workload.prompt_tokens is None:
            unknown[figure.row.model].append(figure)
    fits = (_fit(model, its, costs) for model, its in unknown.items())
    return tuple(fit for fit in fits if fit)


def prompts_of(figures: Sequence[Figure], fits: Sequence[Fit]) -> Mapping[Figure, float]:
    """Return the fitted means by figure."""
    means = {fit.model: fit.prompt_tokens for fit in fits}
    return {
        figure: means[figure.row.model]
        for figure in figures
        if figure.experiment.workload.prompt_tokens is None and figure.row.model in means
    }


def _fit(model: str, figures: Sequence[Figure], costs: Costs) -> Fit | None:
    by_device: defaultdict[str, list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.metric.of == "output_tokens" and not figure.experiment.workload.timed:
            by_device[figure.experiment.system.device].append(figure)
    if not by_device:
        return None
    device, its = max(by_device.items(), key=lambda item: len(item[1]))
    low, high = SHORTEST, LONGEST
    while high - low > EXACT:
        mean = (low + high) / 2
        low, high = (mean, high) if _ratio(its, mean, costs) > 1 else (low, mean)
    mean = (low + high) / 2
    settled = {figure.experiment for figure in its}
    used = tuple(figure for figure in figures if figure.experiment in settled)
    at_end = mean < SHORTEST + EXACT or mean > LONGEST - EXACT
    return Fit(model=model, device=device, prompt_tokens=mean, figures=used, at_end=at_end)


def _ratio(figures: Sequence[Figure], prompt_tokens: float, costs: Costs) -> float:
    """Return the median of predicted over measured rates; 0 where such prompts do not fit."""
    try:
        courses = {
            experiment: simulated(experiment, costs, prompt_tokens=prompt_tokens)
            for experiment in {figure.experiment for figure in figures}
        }
    except UnknownRowError:
        return 0.0
    return median(
        slower_by(
            figure,
            of_course(figure, courses[figure.experiment]),
            levels_of(figure, costs)[1],
        )
        / figure.row.value
        for figure in figures
    )
