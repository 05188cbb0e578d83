"""How fast the machines of MLPerf's entries were, and how long their prompts: nothing seen twice.

Entries' logs name neither the engine's version nor its kernels, which are a year older than those
in the tables, and machines differ in power and cooling. An entry's pace is by how much longer its
iterations take than kernels alone: simulated over measured rate of its offline run. Its server run
is predicted with that; its offline run with the median pace of the device's other entries, where
there are any, and else not judged. Where a device has no kernels of its own, those of its nearest
`kin` say how iterations grow, and the pace how long they are.

How long prompts are is reckoned, and good to `PROMPTS_OFF`. Longer ones leave a faster pace and
fewer requests in flight. So each server's mean time per token tells how long they were, and an
entry is predicted with the median of what all others' tell. By how much servers still are slower
or faster than their offline runs, at these prompts, is the others' too, and part of the interval.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from math import exp, log
from statistics import median
from typing import NamedTuple

import numpy as np

from moesim.cost.iteration import Cost
from moesim.evidence.accuracy.costs import Costs, Slower
from moesim.evidence.accuracy.course import Course, of_course, simulated
from moesim.evidence.accuracy.experiments import Experiment, Figure, System
from moesim.evidence.accuracy.names import UnknownRowError, shipped_device
from moesim.facts.catalog import shipped
from moesim.facts.hardware import Device
from moesim.scenario import ROOFLINE

PROMPTS_OFF = 0.13
"""By how much the mean of prompts may be off: two of its three parts may be by 30 %."""

AGAIN = 0.005
"""By how much rates differ when a run is repeated: six of MLPerf's entries with eight H100 of one
make have offline rates within 0.9 % of each other (358.8 to 361.9 samples/s)."""

MEMORY_OFF = 0.05
"""By how much the KV cache may be off: what is kept beside it takes a tenth of its size, and is
known to a half."""

SCALES = ((1 + PROMPTS_OFF, 1 - MEMORY_OFF), (1 - PROMPTS_OFF, 1 + MEMORY_OFF))
"""By what prompts and memory are multiplied: least in flight first."""

TRIED = (1 - PROMPTS_OFF, 1 + PROMPTS_OFF)
"""With how long prompts a server is simulated, over those reckoned: between them times per token
are taken for a power of the prompts' length, which misses the middle by half a per cent."""

STEP = 1.01
"""By what a pace is multiplied to see how steeply times per token go with it."""


class Setting(NamedTuple):
    """What a run is simulated with: how long prompts, at what pace, with how much KV memory.

    `kernels` is the device whose kernels stand for its own; none is its own.
    """

    prompt_tokens: float
    pace: float
    memory: float = 1.0
    kernels: str = ""


class Settings(NamedTuple):
    """The setting of a prediction, and those of the ends of its interval."""

    likeliest: Setting
    ends: tuple[Setting, ...]


class Prompts(NamedTuple):
    """What other entries' servers tell: the prompts' mean over that reckoned, and their slack.

    Servers' iterations take from `fastest` to `slowest` times as long as their offline runs say.
    """

    scale: float = 1.0
    fastest: float = 1 - AGAIN
    slowest: float = 1 + AGAIN


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """The paces of one device's entries, and what each of their rows is predicted with.

    `kernels` is the device whose kernels stand for its own. `figures` are rows predicted with what
    was found on themselves; they are not judged.
    """

    model: str
    device: str
    kernels: str
    paces: tuple[float, ...]
    """Of each entry with an offline run, the fastest first."""
    settings: Mapping[Figure, Settings]
    figures: tuple[Figure, ...]

    @property
    def prompts(self) -> tuple[float, ...]:
        """The means of prompts found for its entries, least first [tokens]; none if as reckoned."""
        found = {
            settings.likeliest.prompt_tokens
            for figure, settings in self.settings.items()
            if settings.likeliest.prompt_tokens != figure.experiment.workload.prompt_tokens
        }
        return tuple(sorted(found))


class BorrowedCosts(Costs):
    """The costs of another device's kernels, whatever device a system is on."""

    def __init__(self, own: Costs, device: str) -> None:
        super().__init__()
        self._own, self._device = own, device

    def cost(self, system: System, tokens: int, sequences: int) -> Cost:
        """Return a cost that reaches at least so far."""
        return self._own.cost(replace(system, device=self._device), tokens, sequences)


def kin(device: str, costs: Costs) -> str:
    """Return the device whose kernels stand for a device's: its own, or those of its nearest kin.

    Kin has as many SMs, and of several the nearest memory bandwidth is taken. H100 NVL and SXM have
    132 of the same SMs (NVIDIA's datasheets), and differ in power, clocks and memory.
    """
    if costs.profile_of(device) != ROOFLINE:
        return device
    own = shipped_device(device)
    apart = {
        other.name: abs(_bandwidth(other) - _bandwidth(own))
        for other in map(shipped_device, shipped("hardware"))
        if costs.profile_of(other.name) != ROOFLINE and other.sms == own.sms
    }
    return min(apart, key=apart.__getitem__) if apart and own.sms else device


def _bandwidth(device: Device) -> float:
    return device.memory_bandwidth_bytes_per_s or 0.0


def simulated_with(
    experiment: Experiment, setting: Setting, costs: Costs, *, seed: int = 0
) -> Course:
    """Simulate an experiment with a setting; UnknownRowError where it cannot have run so."""
    return simulated(
        with_prompts(experiment, setting.prompt_tokens),
        costs_with(setting, costs),
        slower=None if setting.pace == 1 else Slower.all_by(setting.pace),
        memory=setting.memory,
        seed=seed,
    )


def costs_with(setting: Setting, costs: Costs) -> Costs:
    """Return the costs by a setting's kernels."""
    return BorrowedCosts(costs, setting.kernels) if setting.kernels else costs


def with_prompts(experiment: Experiment, tokens: float) -> Experiment:
    """Return an experiment with other prompts."""
    return replace(experiment, workload=replace(experiment.workload, prompt_tokens=tokens))


def entry_of(figure: Figure) -> str:
    """Return what the runs of one entry have in common: the folder of their logs.

    A source that names no folder is an entry of its own.
    """
    return figure.row.source.rpartition("/")[0] or figure.row.source


class Offline:
    """The offline runs of entries, each simulated once for all that are alike."""

    def __init__(self, figures: Sequence[Figure], costs: Costs) -> None:
        self._costs, self._simulated = costs, cache(self._simulate)
        self._kin = cache(lambda device: kin(device, costs))
        self.runs: dict[str, Figure] = {}
        for figure in figures:
            if figure.metric.of == "output_tokens" and not figure.experiment.workload.timed:
                try:
                    self.pace(figure)
                except UnknownRowError:
                    continue  # it cannot have run so: no row of it is predicted
                self.runs[entry_of(figure)] = figure

    def pace(self, figure: Figure, scale: float = 1.0, memory: float = 1.0) -> float:
        """Return the pace of an offline run, with prompts and memory so many times as reckoned.

        Slower by one factor throughout, it takes just that much longer.
        """
        course = self._simulated(figure.experiment, scale, memory)
        return of_course(figure, course) / figure.row.value

    def paces(self, names: Sequence[str], scale: float, memory: float = 1.0) -> list[float]:
        """Return the paces of several, in order."""
        return sorted(self.pace(self.runs[name], scale, memory) for name in names)

    def _simulate(self, experiment: Experiment, scale: float, memory: float) -> Course:
        return simulated_with(experiment, self.setting(experiment, scale, 1.0, memory), self._costs)

    def setting(
        self, experiment: Experiment, scale: float, pace: float, memory: float = 1.0
    ) -> Setting:
        """Return the setting of a run with prompts so many times as reckoned."""
        kernels = self._kin(experiment.system.device)
        return Setting(scale * experiment.workload.prompt_tokens, pace, memory, kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class Told:
    """What one server's mean time per token tells of the prompts: all in logarithms.

    `curve` is of simulated times over `TRIED` prompts, each at its own offline pace, `steepness`
    how many per cent longer they are where that is slower by one.
    """

    measured: float
    curve: tuple[float, ...]
    steepness: float

    @property
    def scale(self) -> float:
        """The prompts over those reckoned, at most `PROMPTS_OFF` away."""
        return exp(np.interp(self.measured, self.curve[::-1], np.log(TRIED)[::-1]))

    def slack(self, scale: float) -> float:
        """Return by how much slower the server was than its offline run, with such prompts."""
        expected = np.interp(log(scale), np.log(TRIED), self.curve)
        return exp((self.measured - float(expected)) / self.steepness)


def fitted_prompts(figures: Sequence[Figure], costs: Costs) -> Mapping[str, Prompts]:
    """Return how long each entry's prompts were, by what the others' servers tell.

    Prompts that a table gives are left as they are.
    """
    paced = [figure for figure in figures if figure.experiment.workload.paced]
    runs = Offline(paced, costs)
    told: dict[tuple[str, str], Told] = {}
    for figure in paced:
        name = entry_of(figure)
        if name in runs.runs and _tells(figure):
            found = _told(figure, runs, costs)
            if found is not None:
                told[figure.row.model, name] = found
    known = {}
    for figure in paced:
        model, name = figure.row.model, entry_of(figure)
        others = [told[key] for key in told if key[0] == model and key[1] != name]
        known[name] = _prompts(others) if figure.row.isl is None else Prompts()
    return known


def _tells(figure: Figure) -> bool:
    """Say whether a figure is a server's mean time per token, its prompts' lengths not known."""
    metric = (figure.metric.of, figure.metric.statistic)
    timed = figure.experiment.workload.timed
    return timed and metric == ("tpot_s", "mean") and figure.row.isl is None


def _told(figure: Figure, runs: Offline, costs: Costs) -> Told | None:
    """Return what a server tells; None where longer prompts do not make times per token shorter."""

    def tpot(scale: float, slower: float = 1.0) -> float:
        pace = runs.pace(runs.runs[entry_of(figure)], scale) * slower
        setting = runs.setting(figure.experiment, scale, pace)
        return log(of_course(figure, simulated_with(figure.experiment, setting, costs)))

    try:
        curve = tuple(map(tpot, TRIED))
        steepness = (tpot(TRIED[0], STEP) - curve[0]) / log(STEP)
    except UnknownRowError:
        return None
    if sorted(curve, reverse=True) != list(curve) or steepness <= 0:
        return None
    return Told(measured=log(figure.row.value), curve=curve, steepness=steepness)


def _prompts(others: Sequence[Told]) -> Prompts:
    """Return what others tell together: the median prompts, and from least to most slack."""
    if not others:
        return Prompts()
    scale = median(other.scale for other in others)
    slack = [other.slack(scale) for other in others]
    own = Prompts()
    return Prompts(scale, min(own.fastest, *slack), max(own.slowest, *slack))


def fitted_paces(
    figures: Sequence[Figure], costs: Costs, prompts: Mapping[str, Prompts]
) -> tuple[Fit, ...]:
    """Return a fit for each model and device with offline runs of MLPerf."""
    known: defaultdict[tuple[str, str], list[Figure]] = defaultdict(list)
    for figure in figures:
        if figure.experiment.workload.paced:
            known[figure.row.model, figure.experiment.system.device].append(figure)
    fits = (_fit(its, costs, prompts) for its in known.values())
    return tuple(fit for fit in fits if fit)


def paces_of(fits: Sequence[Fit]) -> Mapping[Figure, Settings]:
    """Return what each row is predicted with, where its pace is fitted."""
    return {figure: settings for fit in fits for figure, settings in fit.settings.items()}


def _fit(figures: Sequence[Figure], costs: Costs, prompts: Mapping[str, Prompts]) -> Fit | None:
    runs = Offline(figures, costs)
    if not runs.runs:
        return None
    found = {entry_of(figure): prompts.get(entry_of(figure), Prompts()) for figure in figures}
    settings, alone = {}, []
    for figure in figures:
        name = entry_of(figure)
        others = [other for other in runs.runs if other != name]
        if figure.experiment.workload.timed:
            settings[figure] = _of_server(figure, runs, found[name])
            continue
        settings[figure] = _of_offline(figure, others or [name], runs, found[name])
        if not others:
            alone.append(figure)
    device = figures[0].experiment.system.device
    return Fit(
        model=figures[0].row.model,
        device=device,
        kernels=kin(device, costs),
        paces=tuple(sorted(runs.pace(run, found[name].scale) for name, run in runs.runs.items())),
        settings=settings,
        figures=tuple(alone),
    )


def _of_server(figure: Figure, runs: Offline, found: Prompts) -> Settings:
    """Return the settings of a server: its own offline run's pace, or the median of all others.

    The ends have longer prompts, less memory, the pace that goes with these and the fastest slack,
    or the reverse.
    """
    name = entry_of(figure)
    names = [name] if name in runs.runs else list(runs.runs)

    def setting(scale: float, memory: float, slack: float) -> Setting:
        pace = median(runs.paces(names, scale, memory)) * slack
        return runs.setting(figure.experiment, scale, pace, memory)

    slacks = (found.fastest, found.slowest)
    ends = (
        setting(found.scale * scale, memory, slack)
        for (scale, memory), slack in zip(SCALES, slacks, strict=True)
    )
    return Settings(setting(found.scale, 1.0, 1.0), tuple(ends))


def _of_offline(figure: Figure, names: Sequence[str], runs: Offline, found: Prompts) -> Settings:
    """Return the settings of an offline run: the median pace of some, from fastest to slowest."""
    paces = runs.paces(names, found.scale)
    each = (median(paces), paces[0], paces[-1])
    settings = [runs.setting(figure.experiment, found.scale, pace) for pace in each]
    return Settings(settings[0], tuple(settings[1:]))
