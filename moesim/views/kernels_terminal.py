"""Profiles and files of kernels on the terminal."""

from collections import defaultdict
from collections.abc import Sequence

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from moesim.cost.kernels.summary import Difference, facts_of, formats_of
from moesim.cost.kernels.tables import SPIKES, Kernels
from moesim.cost.profile import Profile
from moesim.facts.hardware import Device
from moesim.views.datasheet import device_of, roofline_of

SOME = 6
"""Warnings that are printed; a file may have dozens."""

MOST_ROWS = 40
"""Curves above which only families are compared."""


def show_kernels(name: str, kernels: Kernels) -> None:
    """Print what a file of kernels holds, and how far off it is."""
    console = Console(highlight=False)
    origin = kernels.origin
    console.print(f"{name}: kernels of {kernels.device}", markup=False)
    console.print(f"{origin.software}, {origin.source}", markup=False)
    console.print(f"shapes of {', '.join(kernels.models)}", markup=False)
    formats = formats_of(kernels)
    text = "; ".join(f"{family} {', '.join(found)}" for family, found in formats.items() if found)
    console.print(f"formats: {text}", markup=False)
    console.print(_families(kernels))
    for residual_name, residual in kernels.residuals.items():
        console.print(
            f"{residual_name}: left out {residual.left_out}", markup=False, soft_wrap=True
        )
    _warn(console, _spikes_last(kernels.warnings))


def _families(kernels: Kernels) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("family")
    for heading in ("curves", "points", "left out", "error p50", "p90"):
        table.add_column(heading, justify="right")
    counts = facts_of(kernels)["families"]
    for family in dict.fromkeys((*counts, *kernels.residuals)):
        count = counts.get(family, {"curves": "", "points": ""})
        residual = kernels.residuals.get(family)
        errors = ("", "", "")
        if residual:
            errors = (str(residual.points), f"{residual.p50:.1%}", f"{residual.p90:.1%}")
        if residual or count["curves"]:
            table.add_row(family, str(count["curves"]), str(count["points"]), *errors)
    return table


def _spikes_last(warnings: Sequence[str]) -> list[str]:
    """Return the warnings, those of single sizes in one: dozens would hide the others."""
    others = [warning for warning in warnings if SPIKES not in warning]
    count = len(warnings) - len(others)
    if not count:
        return others
    curves = "1 curve" if count == 1 else f"{count} curves"
    return [*others[: SOME - 1], f"{curves} with {SPIKES}; --json says where", *others[SOME - 1 :]]


def _warn(console: Console, warnings: Sequence[str]) -> None:
    for warning in warnings[:SOME]:
        console.print(f"warning: {warning}", markup=False, soft_wrap=True)
    if len(warnings) > SOME:
        console.print(f"and {len(warnings) - SOME} more; --json has them all", markup=False)


def show_profile(name: str, profile: Profile) -> None:
    """Print what a profile of one model holds."""
    console = Console(highlight=False)
    spec, verdict = profile.spec, profile.verdict
    console.print(
        f"{name}: {spec.model_type}, {spec.num_hidden_layers} layers, {profile.source} on "
        f"{profile.provenance.device}",
        markup=False,
    )
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("operation", no_wrap=True)
    device = device_of(profile)
    for heading in ("cells", "least us", "most us", "spread", "roof"):
        table.add_column(heading, justify="right")
    table.add_column("basis", no_wrap=True)
    for operation, cells in profile.operations.items():
        seconds = [cell.median_s for cell in cells]
        spread = float(np.median([cell.spread for cell in cells]))
        table.add_row(
            operation,
            str(len(cells)),
            _micro(min(seconds)),
            _micro(max(seconds)),
            f"{spread:.1%}",
            _of_datasheet(operation, profile, device),
            profile.rests_on(operation),
        )
    console.print(table)
    if device is not None:
        console.print("roof: the datasheet's time of the largest cell over what it took")
    if verdict.iteration_error_p50 is not None and verdict.iteration_error_p90 is not None:
        console.print(
            f"whole iterations: error p50 {verdict.iteration_error_p50:.1%}, "
            f"p90 {verdict.iteration_error_p90:.1%}",
            markup=False,
        )
    _warn(console, verdict.warnings)


def _micro(seconds: float) -> str:
    """Return a duration in microseconds, to three digits or whole."""
    micro = seconds * 1e6
    return f"{micro:,.0f}" if micro >= 100 else f"{micro:.3g}"


def _of_datasheet(operation: str, profile: Profile, device: Device | None) -> str:
    """Return what the largest cell would take by the datasheet, over what it took."""
    roof = roofline_of(operation, profile, device)
    if roof is None:
        return "-"
    largest = max(profile.operations[operation], key=lambda cell: cell.median_s)
    return f"{roof(*largest.at) / largest.median_s:.0%}" if largest.median_s else "-"


def show_difference(first: str, second: str, rows: Sequence[Difference]) -> None:
    """Print how two files differ, curve by curve or, of many, family by family."""
    console = Console(highlight=False)
    console.print(f"{second} over {first}, points that both have", markup=False)
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("family")
    table.add_column("curve")
    for heading in ("points", "median", "least", "largest"):
        table.add_column(heading, justify="right")
    for row in rows if len(rows) <= MOST_ROWS else _by_family(rows):
        ratios = (row.median_ratio, row.least_ratio, row.largest_ratio)
        table.add_row(row.family, row.curve, str(row.points), *(f"{r:.3f}" for r in ratios))
    console.print(table)


def _by_family(rows: Sequence[Difference]) -> list[Difference]:
    """Sum curves up: the median of their medians, and the extremes."""
    families: dict[str, list[Difference]] = defaultdict(list)
    for row in rows:
        families[row.family].append(row)
    return [
        Difference(
            family,
            f"{len(found)} curves",
            sum(row.points for row in found),
            float(np.median([row.median_ratio for row in found])),
            min(row.least_ratio for row in found),
            max(row.largest_ratio for row in found),
        )
        for family, found in families.items()
    ]
