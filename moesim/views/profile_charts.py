"""Charts of one model's profile: measured cells, the curves through them, datasheet, residuals.

What a layer's experts take depends on the tokens and on how many distinct experts they hit; decode
attention on the sequences and their summed context; a prompt's attention on its tokens and on what
was cached before. One coordinate is the axis, each value of the other a colour.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.cost.curves import Curve, Fan, Sheet
from moesim.cost.profile import COORDINATES, OPTIONAL, Cell, Profile
from moesim.facts.hardware import Device
from moesim.views.charts import INK, MEASURED, OTHERS, PREDICTED, Figure, new_figure
from moesim.views.datasheet import device_of, roofline_of

Floats = NDArray[np.float64]

COLOURS = (PREDICTED, *OTHERS)
MICRO = 1e-6
STEPS = 40
"""Points of a curve."""

WORDS = {"tokens": "Tokens of the iteration", "sequences": "Sequences"}
"""Lone coordinates as axes."""

APART = {
    "experts": (0, "Tokens of the iteration", "experts hit: {:g}"),
    "attention_decode": (1, "Context, summed over sequences [tokens]", "sequences: {:g}"),
    "decode_replay": (1, "Context, summed over sequences [tokens]", "sequences: {:g}"),
    "attention_prefill": (1, "Cached before [tokens]; none is drawn at 1", "new tokens: {:g}"),
}
"""Of operations with two coordinates: which one is the axis, it and the other in words."""


def profile_charts(profile: Profile) -> Iterator[Figure]:
    """Yield a chart for each operation, and one of whole iterations where some were held out."""
    device = device_of(profile)
    for operation, cells in profile.operations.items():
        yield operation_chart(operation, cells, profile, device)
    if profile.verdict.iteration_residuals:
        yield residual_chart(profile.verdict.iteration_residuals)


def operation_chart(
    operation: str, cells: Sequence[Cell], profile: Profile, device: Device | None = None
) -> Figure:
    """Draw an operation's measured cells, its curve, and what the datasheet lets one expect."""
    first = (COORDINATES | OPTIONAL)[operation][0]
    axis, words, named = APART.get(operation, (0, WORDS.get(first, first), ""))
    title = f"{operation} ({profile.rests_on(operation)})"
    figure = new_figure(title, words, "Duration [us]")
    figure.update_xaxes(type="log").update_yaxes(type="log", rangemode="normal")
    curve, roof = _curve(operation, cells), roofline_of(operation, profile, device)
    groups = _groups(cells, axis)
    for place, (other, group) in enumerate(_spread(groups)):
        colour = COLOURS[place]
        xs = np.array([max(1.0, cell.at[axis]) for cell in group])
        name = named.format(other) if named else operation
        _add_cells(figure, name, colour, xs, group)
        along = np.geomspace(xs.min(), xs.max(), STEPS)
        for line, dash in ((curve, "solid"), (roof, "dot")):
            if line is not None and len(xs) > 1:
                at = [(x,) if not named else (x, other) if axis == 0 else (other, x) for x in along]
                _add_line(figure, colour, along, np.array([line(*each) for each in at]), dash)
    if roof is not None:
        _add_key(figure, "dotted: datasheet")
    return figure


def residual_chart(residuals: Sequence[float]) -> Figure:
    """Draw by how much whole iterations took longer than the profile says, the least first."""
    figure = new_figure(
        "Whole iterations that no table had seen: longer than predicted by",
        "Iterations, in order of their residuals",
        "Residual [%]",
    )
    figure.update_yaxes(rangemode="normal", zeroline=True)
    percent = sorted(100 * residual for residual in residuals)
    figure.add_scatter(
        x=list(range(1, len(percent) + 1)), y=percent, mode="markers", marker={"color": INK}
    )
    return figure.update_layout(showlegend=False)


def _curve(operation: str, cells: Sequence[Cell]) -> Callable[..., float]:
    if operation not in APART:
        return Curve.through(cells)
    lines = operation in ("attention_decode", "decode_replay")
    return Fan.through(cells) if lines else Sheet.through(cells)


def _groups(cells: Sequence[Cell], axis: int) -> dict[float, list[Cell]]:
    """Return the cells by their other coordinate, each group in order along the axis."""
    found: dict[float, list[Cell]] = {}
    for cell in sorted(cells, key=lambda cell: cell.at[axis]):
        found.setdefault(cell.at[1 - axis] if len(cell.at) > 1 else 0.0, []).append(cell)
    return found


def _spread(groups: dict[float, list[Cell]]) -> list[tuple[float, list[Cell]]]:
    """Return as many groups as there are colours, in order: from end to end, lone cells last."""
    ordered = sorted(groups.items())
    several = [group for group in ordered if len(group[1]) > 1]
    alone = [group for group in ordered if len(group[1]) == 1]
    if len(several) > len(COLOURS):
        places = np.linspace(0, len(several) - 1, len(COLOURS)).round().astype(int)
        return [several[place] for place in places]
    return sorted([*several, *alone[: len(COLOURS) - len(several)]], key=lambda group: group[0])


def _add_cells(figure: Figure, name: str, colour: str, xs: Floats, cells: Sequence[Cell]) -> None:
    """Draw medians, with half the spread to either side."""
    medians = [max(1e-3, cell.median_s / MICRO) for cell in cells]
    halves = [cell.spread * median / 2 for cell, median in zip(cells, medians, strict=True)]
    figure.add_scatter(
        x=xs.tolist(),
        y=medians,
        mode="markers",
        name=name,
        marker={"color": colour, "size": 6},
        error_y={"array": halves, "thickness": 1, "width": 2},
    )


def _add_line(figure: Figure, colour: str, xs: Floats, seconds: Floats, dash: str) -> None:
    shown = seconds > 0
    figure.add_scatter(
        x=xs[shown].tolist(),
        y=(seconds[shown] / MICRO).tolist(),
        mode="lines",
        line={"color": colour, "dash": dash, "width": 1},
        showlegend=False,
    )


def _add_key(figure: Figure, name: str) -> None:
    figure.add_scatter(
        x=[None], y=[None], mode="lines", line={"color": MEASURED[3], "dash": "dot"}, name=name
    )
