"""Beyond qos-moe: where sharing experts and swapping the other layers stops paying.

Nothing here was published. Swaps and loads are packed and pinned, at the datasheets' bandwidths,
and the software has no floor unless said. One quantity at a time is varied; the scheme's mean
turnaround is put beside those of its alternatives on the same device, at the same requests and the
same errors of the kernels. Below 1 it pays.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.deployment import Consolidated
from moesim.errors import CapacityError
from moesim.reproduction.annex import Annex, Table
from moesim.reproduction.changes import (
    at_rate,
    of_variants,
    on_device,
    on_instances,
    requests_per_s,
    with_floor,
    with_prompts,
    with_ratio,
    with_swaps,
)
from moesim.reproduction.outcome import Told
from moesim.reproduction.paying import Ratios, where_it_stops
from moesim.reproduction.picture import Picture, curve
from moesim.reproduction.publication import Publication
from moesim.reproduction.trials import Runs, Trial, over_trials
from moesim.scenario import Scenario
from moesim.simulation.run import Result
from moesim.views.wording import MISSING, rounded

SCHEME = "swapped"
"""The scenario of the scheme; the others are its alternatives."""

H100, H200 = "h100-sxm-80gb", "h200-sxm-141gb"

Change = Callable[[Scenario], Scenario]
"""What a setting does to a scenario; CapacityError where there is no such deployment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A quantity that is varied, and what each of its values does to a scenario."""

    title: str
    x_title: str
    places: tuple[float, ...]
    change: Callable[[Scenario, float], Scenario]
    log_x: bool = False

    def to(self, place: float) -> Change:
        """Return the change to one of the values."""
        return lambda scenario: self.change(scenario, place)


SETTINGS: Mapping[str, Change] = {
    "A100": lambda scenario: scenario,
    "A100, MIG 4g.40gb and 3g.40gb": lambda scenario: on_instances(
        scenario, ("4g.40gb", "3g.40gb")
    ),
    "A100, MIG 2x 2g.20gb": lambda scenario: on_instances(scenario, ("2g.20gb", "2g.20gb")),
    "H100": lambda scenario: on_device(scenario, H100),
    "H100, 4 variants": lambda scenario: of_variants(on_device(scenario, H100), 4),
    "H100, 8 variants": lambda scenario: of_variants(on_device(scenario, H100), 8),
    "H200": lambda scenario: on_device(scenario, H200),
    "H200, MIG 4g.71gb and 3g.71gb": lambda scenario: on_device(
        scenario, H200, ("4g.71gb", "3g.71gb")
    ),
    "H200, prompts of 4,000 tokens": lambda scenario: with_prompts(on_device(scenario, H200), 4000),
}
"""Rows of the table besides the published one: two variants, prompts of 20 tokens if not said."""

SWEEPS = (
    Sweep(
        title="variants on an A100",
        x_title="Variants",
        places=(2, 3, 4, 6, 8),
        change=of_variants,
    ),
    Sweep(
        title="variants on an H200",
        x_title="Variants",
        places=(2, 3, 4, 6, 8),
        change=lambda scenario, count: of_variants(on_device(scenario, H200), count),
    ),
    Sweep(
        title="bandwidth of swaps on an A100",
        x_title="Swaps [GB/s]",
        places=(0.5, 1, 2.7, 5, 10, 25),
        change=with_swaps,
        log_x=True,
    ),
    Sweep(
        title="consolidation ratio on an A100",
        x_title="Consolidation ratio",
        places=(0, 0.2, 0.4, 0.6, 0.8, 1),
        change=with_ratio,
    ),
    Sweep(
        title="length of prompts on an A100",
        x_title="Prompt [tokens]",
        places=(20, 128, 512, 1024, 2048, 4000),
        change=with_prompts,
        log_x=True,
    ),
    Sweep(
        title="load on an A100",
        x_title="Requests of both variants [requests/s]",
        places=(0.01, 0.02, 0.04, 0.08, 0.12, 0.16),
        change=at_rate,
        log_x=True,
    ),
)
"""What is varied, one quantity at a time."""


def study(publication: Publication, trials: Sequence[Trial], told: Told) -> Annex:
    """Vary everything and return what came out."""
    ways = {name: publication.scenario_beyond(name) for name in publication.beyond}
    steps = len(SETTINGS) + len(SWEEPS)
    rows = [
        _row("A100, swaps and software as published", compared(ways, published, trials))
        for published in [_as_published(publication)]
    ]
    for place, (title, change) in enumerate(SETTINGS.items()):
        told(place / steps)
        rows.append(_row(title, compared(ways, change, trials)))
    found: dict[str, list[Ratios]] = {}
    for place, sweep in enumerate(SWEEPS, len(SETTINGS)):
        told(place / steps)
        found[sweep.title] = _ratios(sweep, ways, trials)
    others = [scenario.name for name, scenario in ways.items() if name != SCHEME]
    return Annex(
        title="Beyond the paper: where does the scheme stop paying?",
        says=(_introduction(ways[SCHEME]), *where_it_stops(found)),
        table=Table(
            headings=("setting", "scheme [s]", *(f"beside {name}" for name in others)),
            rows=tuple(rows),
        ),
        pictures=tuple(_picture(sweep, found[sweep.title]) for sweep in SWEEPS),
    )


def compared(
    ways: Mapping[str, Scenario], change: Change, trials: Sequence[Trial]
) -> dict[str, Runs | None]:
    """Return the mean turnaround of each way after a change, in each trial [s].

    None where the device has no such deployment.
    """
    return {name: _turnaround_s(scenario, change, trials) for name, scenario in ways.items()}


def turnaround(result: Result) -> dict[str, float]:
    """Return the mean turnaround [s]."""
    records = result.records
    return {"s": float((records["finish_s"] - records["arrival_s"]).mean())}


def _turnaround_s(scenario: Scenario, change: Change, trials: Sequence[Trial]) -> Runs | None:
    try:
        return over_trials(change(scenario), turnaround, trials)["s"]
    except CapacityError:
        return None


def _as_published(publication: Publication) -> Change:
    """Return the change to the published swaps and the published software's floor."""
    deployment = publication.scenario("consolidated").deployment
    assert isinstance(deployment, Consolidated)  # noqa: S101  # the shipped file says so
    assert deployment.swap_gb_per_s is not None  # noqa: S101
    gb_per_s, floor_s = deployment.swap_gb_per_s, deployment.scheduler.floor_s
    return lambda scenario: with_swaps(with_floor(scenario, floor_s), gb_per_s)


def _introduction(scheme: Scenario) -> str:
    return (
        "A prediction without a published counterpart. The scheme shares experts and swaps the "
        "other layers, packed and pinned, for one sequence at a time as published; its mean "
        "turnaround is put beside that of each "
        f"alternative on the same device, at {requests_per_s(scheme):g} requests/s over all "
        "variants where the load is not varied. Below 1 the scheme pays."
    )


def _ratios(sweep: Sweep, ways: Mapping[str, Scenario], trials: Sequence[Trial]) -> list[Ratios]:
    """Return the ratios to each alternative, at the places where it exists."""
    found = {place: compared(ways, sweep.to(place), trials) for place in sweep.places}
    return [
        _beside(scenario.name, sweep, name, found)
        for name, scenario in ways.items()
        if name != SCHEME
    ]


def _beside(
    title: str, sweep: Sweep, name: str, found: Mapping[float, Mapping[str, Runs | None]]
) -> Ratios:
    pairs = [(place, ratio) for place in found if (ratio := _ratio(found[place], name)) is not None]
    places, runs = zip(*pairs, strict=True)
    return Ratios(name=title, x_title=sweep.x_title, places=places, runs=runs)


def _ratio(found: Mapping[str, Runs | None], name: str) -> Runs | None:
    scheme, other = found[SCHEME], found[name]
    return None if scheme is None or other is None else scheme / other


def _row(title: str, found: Mapping[str, Runs | None]) -> tuple[str, ...]:
    scheme = found[SCHEME]
    return (
        title,
        MISSING if scheme is None else rounded(float(np.median(scheme))),
        *(_written(_ratio(found, name)) for name in found if name != SCHEME),
    )


def _written(ratio: Runs | None) -> str:
    if ratio is None:
        return MISSING
    low, middle, high = np.quantile(ratio, (0, 0.5, 1))
    return f"{middle:.2f} ({low:.2f} to {high:.2f})"


def _picture(sweep: Sweep, found: Sequence[Ratios]) -> Picture:
    return Picture(
        title=f"Prediction: {sweep.title}",
        x_title=sweep.x_title,
        y_title="Turnaround beside the alternative's",
        curves=tuple(curve(each.name, each.places, each.runs) for each in found),
        published={},
        log_x=sweep.log_x,
        log_y=True,
        level=1.0,
    )
