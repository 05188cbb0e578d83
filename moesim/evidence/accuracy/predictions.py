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
from statistics import median

from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import of_course
from moesim.evidence.accuracy.experiments import Experiment, Figure
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.paces import AGAIN, Setting, Settings, simulated_with
from moesim.evidence.accuracy.seats import reach
from moesim.simulation.replications import COVERAGE

Told = Callable[[float, str], None]
"""Told the share done, and what is being done."""

UNDEFINED = "answers of one token have no time per token"
"""Why there is no such figure of a simulated run."""

DRAWS = 3
"""Arrivals drawn for a server's run."""

Paces = Mapping[Figure, Settings]
"""The settings of rows whose engine is known by its pace alone."""


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
    figures: Sequence[Figure],
    costs: Costs,
    *,
    paces: Paces,
    told: Told,
    what: str,
    draws: int = DRAWS,
) -> Predicted:
    """Predict figures, each experiment simulated once, or more where requests come by a clock.

    Where paces are known these come `draws` times.
    """
    together: defaultdict[tuple[Experiment, str, Settings | None], list[Figure]]
    together = defaultdict(list)
    for figure in figures:
        together[figure.experiment, software_of(figure), paces.get(figure)].append(figure)
    found: dict[Figure, Prediction] = {}
    left_out = Counter[str]()
    for place, ((experiment, _, settings), its) in enumerate(together.items()):
        told(place / len(together), what)
        try:
            known = _figures(experiment, its, costs, settings, draws)
        except UnknownRowError as reason:
            left_out[str(reason)] += len(its)
            continue
        found |= known
        if len(known) < len(its):
            left_out[UNDEFINED] += len(its) - len(known)
    return Predicted(predictions=found, left_out=left_out)


def software_of(figure: Figure) -> str:
    """Return the software of a figure, version and all, as factors are known by."""
    return figure.row.software.split(",")[0]


def _figures(
    experiment: Experiment,
    figures: Sequence[Figure],
    costs: Costs,
    settings: Settings | None,
    draws: int,
) -> dict[Figure, Prediction]:
    if settings is None and experiment.workload.paced:
        raise UnknownRowError("no offline run of this entry or its kin tells its pace")
    draws = 1 if settings is None else draws
    settings = settings or settings_of(figures[0], costs)
    if experiment.workload.timed:
        bare = dict.fromkeys(figures, float("nan"))
        each = _simulated_again(experiment, figures, costs, settings, draws)
    else:
        course = simulated_with(experiment, settings.likeliest._replace(pace=1.0), costs)
        bare = {figure: of_course(figure, course) for figure in figures}
        paces = [setting.pace for setting in (*settings.ends, settings.likeliest)]
        factors = (min(paces), settings.likeliest.pace, max(paces))
        each = {
            figure: _slower(figure, bare[figure], reach(figure, course), factors)
            for figure in figures
        }
    return {
        figure: Prediction(
            value=values[1],
            low=min(values) * (1 - AGAIN),
            high=max(values) * (1 + AGAIN),
            bare=bare[figure],
        )
        for figure, values in each.items()
        if values[1] == values[1]
    }


def _slower(
    figure: Figure,
    value: float,
    reached: tuple[float, float] | None,
    factors: tuple[float, float, float],
) -> list[float]:
    """Return a figure at the factors' ends and in the middle, from the least and most it may be."""
    least, most = reached or (value, value)
    each = zip((least, value, most), factors, strict=True)
    return [slower_by(figure, part, factor) for part, factor in each]


def _simulated_again(
    experiment: Experiment,
    figures: Sequence[Figure],
    costs: Costs,
    settings: Settings,
    draws: int,
) -> dict[Figure, list[float]]:
    """Return figures where requests come by a clock: least, likeliest, most.

    Near saturation other arrivals make another tail: the likeliest is the median of some draws.
    """
    likeliest = [
        simulated_with(experiment, settings.likeliest, costs, seed=seed) for seed in range(draws)
    ]
    ends = [simulated_with(experiment, setting, costs) for setting in settings.ends]
    found = {}
    for figure in figures:
        drawn = [of_course(figure, course) for course in likeliest]
        values = [*drawn, *(of_course(figure, course) for course in ends)]
        found[figure] = [min(values), median(drawn), max(values)]
    return found


def settings_of(figure: Figure, costs: Costs) -> Settings:
    """Return the settings of a row without a pace of its own: the factors' middle and ends."""
    prompt = figure.experiment.workload.prompt_tokens
    fastest, likeliest, slowest = (Setting(prompt, factor) for factor in levels_of(figure, costs))
    return Settings(likeliest, (fastest, slowest))


def levels_of(figure: Figure, costs: Costs) -> tuple[float, float, float]:
    """Return the 5th, 50th and 95th percentile of the factors on all durations; 1 if unknown."""
    return ends(costs.levels(figure.experiment.system, software_of(figure)) or [1.0])


def ends(factors: Sequence[float]) -> tuple[float, float, float]:
    """Return the 5th, 50th and 95th percentile of factors."""
    levels, beyond = sorted(factors), (1 - COVERAGE) / 2
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
