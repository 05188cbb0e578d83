"""Charts of a workload, and the page they are on: rate over time, and how lengths spread."""

from collections.abc import Mapping
from html import escape
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.files import write_text
from moesim.traffic.servegen import QUANTILES
from moesim.traffic.statistics import rates_over_time
from moesim.views.charts import DASHES, INSIDE, OTHERS, PREDICTED, Figure, _thinned, new_figure
from moesim.views.report import _embedded, _page
from moesim.views.workload_terminal import TIME_UNITS

Floats = NDArray[np.float64]

STEPS = 300
"""Steps of the rate over time: two to three pixels each."""

MOST_CURVES = len(OTHERS)

LENGTH_NAMES = {"prompt_tokens": "Prompts", "output_tokens": "Outputs"}


def rate_over_time(trace: pd.DataFrame) -> Figure:
    """Draw the requests per second of a trace in equal steps of its span."""
    rates, width_s = rates_over_time(trace["arrival_s"].to_numpy(dtype=float), STEPS)
    starts_s = np.arange(rates.size, dtype=np.float64) * width_s
    return _rate_figure({"all": (starts_s, rates)}, f"Requests [1/s], steps of {width_s:.3g} s")


def client_rates_over_time(clients: pd.DataFrame) -> Figure:
    """Draw the rates of the busiest ServeGen clients, window by window."""
    totals = clients.groupby("client")["rate_per_s"].sum().nlargest(MOST_CURVES)
    groups = {str(name): clients[clients["client"] == name] for name in totals.index}
    curves = {
        f"client {name}": (group["start_s"].to_numpy(float), group["rate_per_s"].to_numpy(float))
        for name, group in groups.items()
    }
    return _rate_figure(curves, "Requests [1/s]")


def length_cdf(lengths: Mapping[str, Floats], title: str = "Lengths") -> Figure:
    """Draw which share of lengths is at or below each, on a logarithmic axis, a curve a name.

    Zeros, which such an axis does not have, count in the share.
    """
    figure = new_figure(title, "Length [tokens]", "Requests [%]")
    for (name, values), line in zip(lengths.items(), _lines(len(lengths)), strict=True):
        ordered = np.sort(values)
        kept = _thinned(ordered.size)
        kept = kept[ordered[kept] > 0]
        figure.add_scatter(
            x=ordered[kept],
            y=100 * (kept + 1) / ordered.size,
            name=escape(name),
            line={**line, "shape": "hv"},
            hovertemplate="%{y:.1f} % up to %{x:,.0f} tokens",
        )
    figure.update_xaxes(type="log", rangemode="normal")
    figure.update_yaxes(range=[0, 101], tickvals=[0, 25, 50, 75, 90, 100])
    return figure.update_layout(legend=INSIDE, margin={"t": 52, "b": 50})


def client_shares(rates: pd.DataFrame) -> Figure:
    """Draw how much of the traffic the busiest ServeGen clients bring together."""
    figure = new_figure("Traffic of the busiest clients", "Clients", "Requests [%]")
    so_far = rates["rate_per_s"].cumsum() / rates["rate_per_s"].sum()
    figure.add_scatter(
        x=np.arange(1, len(rates) + 1),
        y=100 * so_far,
        name="share",
        mode="lines+markers",
        line={"color": PREDICTED, "width": 2},
        hovertemplate="%{y:.1f} % by %{x} clients",
    )
    figure.update_yaxes(range=[0, 101])
    return figure.update_layout(showlegend=False, margin={"t": 52, "b": 50})


def write_page(path: Path, name: str, facts: Mapping[str, Any], table: pd.DataFrame) -> None:
    """Write the charts of a workload file; the page appears whole or not at all."""
    figures = figures_of(facts["format"], table)
    parts = [
        f"<h1>{escape(name)}</h1>",
        f'<p class="headline">{escape(facts["format"])}</p>',
        # The first figure carries plotly's script for all of them.
        *(
            _embedded(figure, f"{index}", with_script=index == 0)
            for index, figure in enumerate(figures)
        ),
    ]
    write_text(path, _page(name, parts))


def figures_of(kind: str, table: pd.DataFrame) -> list[Figure]:
    """Return the charts of a layout's table."""
    if kind == "servegen-trace":
        return [client_rates_over_time(table)]
    if kind == "servegen-rates":
        return [client_shares(table)]
    if kind == "servegen-lengths":
        return [_client_lengths(table, field) for field in QUANTILES]
    lengths = {name: table[field].to_numpy() for field, name in LENGTH_NAMES.items()}
    return [rate_over_time(table), length_cdf(lengths)]


def _client_lengths(lengths: pd.DataFrame, field: str) -> Figure:
    groups = islice(lengths.groupby("client", sort=False), MOST_CURVES)
    curves = {f"client {name}": np.concatenate(group[field].tolist()) for name, group in groups}
    return length_cdf(curves, LENGTH_NAMES[field])


def _rate_figure(curves: Mapping[str, tuple[Floats, Floats]], y_title: str) -> Figure:
    """Draw rates that hold from each of their times on."""
    end_s = max((float(times[-1]) for times, _ in curves.values() if times.size), default=0.0)
    unit_s, unit = next(((s, u) for least, s, u in TIME_UNITS if end_s >= least), (1, "s"))
    figure = new_figure("Rate over time", f"Time [{unit}]", y_title)
    for (name, (times, rates)), line in zip(curves.items(), _lines(len(curves)), strict=True):
        figure.add_scatter(
            x=times / unit_s,
            y=rates,
            name=escape(name),
            line={**line, "shape": "hv", "width": 1.5},
            hovertemplate=f"%{{y:.3g}} requests/s at %{{x:.3g}} {unit}",
        )
    return figure.update_layout(showlegend=len(curves) > 1)


def _lines(count: int) -> list[dict[str, str | float]]:
    """Return how to draw so many curves, told apart by dash as well as by colour."""
    colours = (PREDICTED,) if count == 1 else OTHERS
    return [
        {"color": colours[index % len(colours)], "dash": DASHES[index % len(DASHES)], "width": 2}
        for index in range(count)
    ]
