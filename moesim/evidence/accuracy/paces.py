"""How fast the machines of MLPerf's entries were: a pace from the offline run, for the server's.

Entries' logs name neither the engine's version nor its kernels, which are a year older than those
in the tables, and machines differ in power and cooling. An entry's pace is by how much longer its
iterations take than kernels alone: simulated over measured rate of its offline run, of which
nothing is judged; for an entry without one the median of the others. Its server run is predicted
with that, and judged.

Prompts' lengths and the KV cache are reckoned, and not exactly (`PROMPTS_OFF`, `MEMORY_OFF`): with
shorter prompts the same rate comes of a slower pace and more requests in flight, with more memory
too. The interval is from longer prompts, less memory and their pace to shorter ones, more and
theirs.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import NamedTuple

from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import of_course, simulated
from moesim.evidence.accuracy.experiments import Experiment, Figure
from moesim.evidence.accuracy.names import UnknownRowError

PROMPTS_OFF = 0.13
"""By how much the mean of prompts may be off: two of its three parts may be by 30 %."""

AGAIN = 0.005
"""By how much rates differ when a run is repeated: six of MLPerf's entries with eight H100 of one
make have offline rates within 0.9 % of each other (358.8 to 361.9 samples/s)."""

MEMORY_OFF = 0.05
"""By how much the KV cache may be off: what is kept beside it takes a tenth of its size, and is
known to a half."""

SCALES = (
    (1 + PROMPTS_OFF, 1 - MEMORY_OFF, 1 - AGAIN),
    (1.0, 1.0, 1.0),
    (1 - PROMPTS_OFF, 1 + MEMORY_OFF, 1 + AGAIN),
)
"""By what prompts, memory and rates are multiplied: least in flight first."""


class Setting(NamedTuple):
    """What a run is simulated with."""

    prompt_tokens: float
    pace: float
    memory: float


class Settings(NamedTuple):
    """The settings of a prediction and of the ends of its interval."""

    least: Setting
    likeliest: Setting
    most: Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The paces of entries, and the rows of the runs that they are from."""

    model: str
    device: str
    entries: Mapping[str, Settings]
    figures: tuple[Figure, ...]

    @property
    def paces(self) -> list[float]:
        """The likeliest of each entry, in order."""
        return sorted(settings.likeliest.pace for settings in self.entries.values())

    def settings_of(self, figure: Figure) -> Settings:
        """Return the settings of an entry: its own, or the medians of the others."""
        own = self.entries.get(entry_of(figure))
        if own is not None:
            return own
        each = zip(*self.entries.values(), strict=True)
        return Settings(*(Setting(*map(median, zip(*part, strict=True))) for part in each))


def entry_of(figure: Figure) -> str:
    """Return what the runs of one entry have in common: the folder of their logs.

    A source that names no folder is an entry of its own.
    """
    return figure.row.source.rpartition("/")[0] or figure.row.source


def fitted_paces(figures: Sequence[Figure], costs: Costs) -> tuple[Fit, ...]:
    """Return a fit for each model and device with offline runs of MLPerf."""
    known: defaultdict[tuple[str, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.experiment.workload.paced:
            known[figure.row.model, figure.experiment.system.device].append(figure)
    fits = (_fit(model, device, its, costs) for (model, device), its in known.items())
    return tuple(fit for fit in fits if fit)


def paces_of(figures: Sequence[Figure], fits: Sequence[Fit]) -> Mapping[Figure, Settings]:
    """Return what each row is predicted with, where its pace is fitted."""
    known = {(fit.model, fit.device): fit for fit in fits}
    found = {}
    for figure in figures:
        fit = known.get((figure.row.model, figure.experiment.system.device))
        if fit is not None and figure.experiment.workload.paced:
            found[figure] = fit.settings_of(figure)
    return found


def with_prompts(experiment: Experiment, tokens: float) -> Experiment:
    """Return an experiment with other prompts."""
    return replace(experiment, workload=replace(experiment.workload, prompt_tokens=tokens))


def _fit(model: str, device: str, figures: Sequence[Figure], costs: Costs) -> Fit | None:
    offline = [
        figure
        for figure in figures
        if figure.metric.of == "output_tokens" and not figure.experiment.workload.timed
    ]
    entries, settled = {}, set()
    for figure in offline:
        try:
            entries[entry_of(figure)] = _settings(figure, costs)
        except UnknownRowError:
            continue  # it cannot have run so: no row of it is predicted
        settled.add((figure.experiment, entry_of(figure)))
    if not entries:
        return None
    used = (each for each in figures if (each.experiment, entry_of(each)) in settled)
    return Fit(model=model, device=device, entries=entries, figures=tuple(used))


def _settings(figure: Figure, costs: Costs) -> Settings:
    """Return the settings with which an offline run has its rate, and a repeated one less or more.

    Slower by one factor throughout, it takes just that much longer.
    """
    prompt = figure.experiment.workload.prompt_tokens
    found = []
    for scale, memory, again in SCALES:
        course = simulated(with_prompts(figure.experiment, scale * prompt), costs, memory=memory)
        pace = of_course(figure, course) / figure.row.value
        found.append(Setting(scale * prompt, pace * again, memory))
    return Settings(*found)
