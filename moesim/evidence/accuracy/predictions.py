"""What is predicted for each row, with the interval that the profile's own errors leave.

A profile knows by which factors whole iterations differed from it where it was tested. Slower by
one factor throughout, an experiment whose requests are all there, or come when others are answered,
takes just that much longer: its figures follow by division. Where requests come by a clock it is
simulated again. The prediction is at the median of the factors, as `moesim simulate` reports
medians, its 90 % interval from their 5th to their 95th percentile. What other software was found to
add to its kernels is among these factors; what the row's own software added is left out.

All latencies are then longest and all rates lowest at the greatest factor, so that the ends need
no draws. What the profile's cells differ by one by one is left out: over an iteration's sum and a
run of thousands it cancels.
"""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from moesim.evidence.accuracy.costs import Costs, Slower
from moesim.evidence.accuracy.course import Course, simulated
from moesim.evidence.accuracy.experiments import Experiment, Figure
from moesim.evidence.accuracy.metrics import value_of
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.simulation.replications import COVERAGE

Told = Callable[[float, str], None]
"""Told the share done, and what is being done."""

Prompts = Mapping[Figure, float]
"""The prompts' mean of rows that do not say [tokens]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """A figure as predicted, in its table's unit, and within which ends."""

    value: float
    low: float
    high: float
    bare: float
    """By the profile alone, nothing added; NaN where requests come by a clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Predicted:
    """The figures of a table that could be predicted, and why others could not."""

    predictions: Mapping[Figure, Prediction]
    left_out: Counter[str]


def predicted(
    figures: Sequence[Figure], costs: Costs, *, prompts: Prompts, told: Told, what: str
) -> Predicted:
    """Predict figures, each experiment simulated once, or thrice where requests come by a clock."""
    together: defaultdict[tuple[Experiment, float | None, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        together[figure.experiment, prompts.get(figure), software_of(figure)].append(figure)
    found: dict[Figure, Prediction] = {}
    left_out = Counter[str]()
    for place, ((experiment, prompt, _), its) in enumerate(together.items()):
        told(place / len(together), what)
        try:
            found |= _figures(experiment, prompt, its, costs)
        except UnknownRowError as reason:
            left_out[str(reason)] += len(its)
    return Predicted(predictions=found, left_out=left_out)


def of_course(figure: Figure, course: Course) -> float:
    """Return a figure as a course has it."""
    return value_of(
        figure.metric,
        course.records,
        replicas=figure.replicas,
        devices=figure.experiment.system.part.devices,
        steady=figure.experiment.workload.steady,
    )


def software_of(figure: Figure) -> str:
    """Return the software of a figure, version and all, as factors are known by."""
    return figure.row.software.split(",")[0]


def _figures(
    experiment: Experiment, prompt: float | None, figures: Sequence[Figure], costs: Costs
) -> dict[Figure, Prediction]:
    low, middle, high = levels_of(figures[0], costs)
    if experiment.workload.timed:
        courses = [
            simulated(experiment, costs, slower=Slower.all_by(level), prompt_tokens=prompt)
            for level in (low, middle, high)
        ]
        each = {figure: [of_course(figure, course) for course in courses] for figure in figures}
        bare = dict.fromkeys(figures, float("nan"))
    else:
        course = simulated(experiment, costs, prompt_tokens=prompt)
        bare = {figure: of_course(figure, course) for figure in figures}
        each = {
            figure: [slower_by(figure, bare[figure], x) for x in (low, middle, high)]
            for figure in figures
        }
    return {
        figure: Prediction(value=values[1], low=min(values), high=max(values), bare=bare[figure])
        for figure, values in each.items()
        if values[1] == values[1]
    }


def levels_of(figure: Figure, costs: Costs) -> tuple[float, float, float]:
    """Return the 5th, 50th and 95th percentile of the factors on all durations; 1 if unknown."""
    levels = sorted(costs.levels(figure.experiment.system, software_of(figure))) or [1.0]
    beyond = (1 - COVERAGE) / 2
    return quantile(levels, beyond), quantile(levels, 0.5), quantile(levels, 1 - beyond)


def slower_by(figure: Figure, value: float, factor: float) -> float:
    """Return a figure where everything takes `factor` times as long."""
    return value / factor if figure.metric.kind == "rate" else value * factor


def quantile(ordered: Sequence[float], p: float) -> float:
    """Return a quantile at the position `p (n + 1)` of ordered numbers, the ends where beyond.

    >>> [quantile([1.0, 2.0, 3.0], p) for p in (0.05, 0.5, 0.625)]
    [1.0, 2.0, 2.5]
    """
    place = min(max(p * (len(ordered) + 1) - 1, 0), len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (place - below) * (ordered[above] - ordered[below])
