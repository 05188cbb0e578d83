"""Deployments side by side as a picture: turnaround over load, with intervals."""

from html import escape
from itertools import cycle, product
from pathlib import Path

import pandas as pd

from moesim.files import write_text
from moesim.views.charts import OTHERS, PREDICTED, Figure, new_figure

WIDE = 30
"""Ratio of figures from which an axis is logarithmic: queues that never empty dwarf all others."""


def turnaround_over_load(table: pd.DataFrame) -> Figure:
    """Draw mean turnaround [s] over load, a line a deployment, bars from low to high.

    `table` holds rows of `moesim.planning.side_by_side` at one load or several.
    """
    shown = table[(table["metric"] == "turnaround_s") & (table["statistic"] == "mean")]
    figure = new_figure("Mean turnaround", "Load (1 is the scenario's own)", "Turnaround [s]")
    strokes = cycle(product(("solid", "dash", "dot"), (PREDICTED, *OTHERS)))
    for (name, rows), (dash, colour) in zip(
        shown.groupby("deployment", sort=False), strokes, strict=False
    ):
        figure.add_scatter(
            x=rows["load"],
            y=rows["median"],
            error_y={
                "array": rows["high"] - rows["median"],
                "arrayminus": rows["median"] - rows["low"],
            },
            name=escape(str(name)),
            mode="lines+markers",
            line={"color": colour, "dash": dash},
        )
    if shown["median"].max() > WIDE * shown["median"].min():
        return figure.update_yaxes(type="log").update_layout(height=450)
    return figure.update_yaxes(rangemode="tozero").update_layout(height=450)


def write_page(path: Path, table: pd.DataFrame) -> None:
    """Write the picture as an HTML file that opens anywhere."""
    figure = turnaround_over_load(table)
    write_text(path, figure.to_html(config={"displayModeBar": False}))
