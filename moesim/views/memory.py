"""Charts of what sits on a slice, and the page they are on."""

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from moesim.facts.memory import MemoryPlan
from moesim.files import write_text
from moesim.units import GIB
from moesim.views.charts import INK, MEASURED, OTHERS, PREDICTED, Figure, new_figure
from moesim.views.report import _embedded, _notes, _page

COLOURS = (PREDICTED, *OTHERS[:1], OTHERS[3], OTHERS[4], OTHERS[2], MEASURED[1])
"""One for each part of a plan, in the plan's order."""

BAR_HEIGHT = 60
"""Of one plan [px]."""


def memory_chart(plans: Mapping[str, MemoryPlan]) -> Figure:
    """Draw the parts of each plan as a stacked bar, with a mark where its slice ends."""
    figure = new_figure("What sits on the slice", "Memory [GiB]", "")
    names = [escape(name) for name in plans]
    parts = [plan.parts for plan in plans.values()]
    for part, colour in zip(parts[0], COLOURS, strict=True):
        sizes = [held[part] / GIB for held in parts]
        if any(sizes):
            figure.add_bar(
                x=sizes,
                y=names,
                orientation="h",
                name=part,
                marker={"color": colour},
                hovertemplate=f"{part}: %{{x:.2f}} GiB<extra>%{{y}}</extra>",
            )
    _mark_ends(figure, names, [plan.slice_bytes / GIB for plan in plans.values()])
    figure.update_yaxes(autorange="reversed", showgrid=False)
    return figure.update_layout(barmode="stack", height=190 + BAR_HEIGHT * len(plans))


def _mark_ends(figure: Figure, names: list[str], sizes_gib: list[float]) -> None:
    figure.add_scatter(
        x=sizes_gib,
        y=names,
        mode="markers",
        name="slice",
        marker={"symbol": "line-ns", "size": 44, "line": {"color": INK, "width": 3}},
        hovertemplate="slice: %{x:.2f} GiB<extra>%{y}</extra>",
    )


def write_page(
    path: Path,
    name: str,
    sentence: str,
    plans: Mapping[str, MemoryPlan],
    notes: Sequence[str] = (),
) -> None:
    """Write the chart of some plans, and notes below; the page appears whole or not at all."""
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="headline">{escape(sentence)}</p>',
        _embedded(memory_chart(plans), "0", with_script=True),
        *_notes(list(notes)),
    ]
    write_text(path, _page(name, parts))
