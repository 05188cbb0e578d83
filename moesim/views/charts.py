"""Charts, pure functions from frames to figures: nothing is read, written or shown here.

Curves are told apart by dash as well as by colour, so that they survive print and colour
blindness: real runs are solid and grey, the prediction is dashed and blue, anything else takes the
colours of Okabe and Ito (jfly.uni-koeln.de/color) in order.
"""

from collections.abc import Mapping
from html import escape
from itertools import cycle
from typing import TypeAlias

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from moesim.errors import MoesimError
from moesim.evidence.compare import TOLERANCE
from moesim.serving.metrics import with_latencies
from moesim.serving.records import REFUSED
from moesim.simulation.replications import COVERAGE
from moesim.views.tables import Group
from moesim.views.wording import LABELS, LONG_LABELS, figure_name, time_unit

try:
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots
except ImportError:
    raise MoesimError("charts need plotly: pip install 'moesim[dashboard]'") from None

Figure: TypeAlias = go.Figure
Line = dict[str, str | float]

INK = "#222222"
FAINT = "#e3e3e3"
MEASURED = ("#222222", "#8a8a8a", "#5c5c5c", "#b0b0b0")
PREDICTED = "#0072b2"
SHADE = "#d9e8f3"
OFF = "#d55e00"
OTHERS = ("#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#e69f00")
DASHES = ("solid", "dot", "dashdot", "longdash")

INSIDE = {
    "x": 1,
    "xanchor": "right",
    "y": 0.03,
    "yanchor": "bottom",
    "yref": "paper",
    "orientation": "v",
    "bgcolor": "rgba(255,255,255,0.8)",
}
"""A legend in the lower right corner of the plot."""

FARTHEST_TARGET = 4
"""Targets are drawn up to this many times the longest latency."""

MARKED = ("p50", "p90", "p95", "p99")
"""The percentiles whose medians and intervals are marked on a curve."""

PANELS = {
    "queued": ("Waiting", "requests", 1),
    "running": ("Running", "requests", 1),
    "kv_use": ("KV cache in use", "%", 100),
    "tokens_per_s": ("Generated", "tokens/s", 1),
}
"""Columns of a time series: title, unit, and how much of the unit is in the column's own."""

MOST_POINTS = 1500
"""Points of a curve; more cannot be seen, and would make a report of a long run large."""


def latency_cdf(
    tables: Mapping[str, pd.DataFrame],
    metric: str,
    targets: Mapping[str, float | None] | None = None,
    estimates: Mapping[str, Group] | None = None,
) -> Figure:
    """Draw which share of requests stayed at or below each latency, one curve per record table.

    `metric` is `ttft_s`, `tpot_s` or `turnaround_s`; `targets` [s] are drawn as vertical lines.
    `estimates` by the tables' names add medians over replications, their intervals as bars.
    """
    samples = {
        name: np.sort(with_latencies(records)[metric].dropna().to_numpy(dtype=float))
        for name, records in tables.items()
    }
    longest_s = max((values[-1] for values in samples.values() if values.size), default=0.0)
    unit, per_second = time_unit(longest_s)
    figure = new_figure(LONG_LABELS[metric], f"{LABELS[metric]} [{unit}]", "Requests [%]")
    for (name, values), line in zip(samples.items(), _lines(tables), strict=True):
        kept = _thinned(values.size)
        figure.add_scatter(
            x=values[kept] * per_second,
            y=100 * (kept + 1) / max(values.size, 1),
            name=escape(name),
            line={**line, "shape": "hv"},
            hovertemplate=f"%{{y:.1f}} % within %{{x:.4g}} {unit}",
        )
        if estimates and name in estimates:
            _mark_estimates(figure, estimates[name], metric, per_second, str(line["color"]))
    for target_s, name in _distinct(targets or {}).items():
        # A target far off would press all curves against the axis.
        if target_s <= FARTHEST_TARGET * longest_s:
            _mark_target(figure, target_s * per_second, name)
    # Below and right of rising curves there is always room.
    figure.update_layout(legend=INSIDE, margin={"t": 52, "b": 50})
    figure.update_yaxes(range=[0, 101], tickvals=[0, 25, 50, 75, 90, 100])
    return figure


def running_over_time(tables: Mapping[str, pd.DataFrame]) -> Figure:
    """Draw how many requests were in the system, waiting or running, at each moment."""
    figure = new_figure("Requests in the system", "Time [s]", "Requests waiting or running")
    for (name, records), line in zip(tables.items(), _lines(tables), strict=True):
        times, counts = _in_system(records)
        kept = _thinned(times.size)
        figure.add_scatter(
            x=times[kept],
            y=counts[kept],
            name=escape(name),
            line={**line, "shape": "hv", "width": 1.5},
            hovertemplate="%{y} at %{x:.1f} s",
        )
    return figure


def series_over_time(series: pd.DataFrame) -> Figure:
    """Draw waiting and running requests, KV cache in use and tokens/s, one below the other.

    `series` is what `moesim.serving.series.time_series` returns; a column it lacks is left out.
    """
    shown = {name: panel for name, panel in PANELS.items() if name in series}
    figure = make_subplots(
        rows=len(shown),
        shared_xaxes=True,
        vertical_spacing=0.07,
        subplot_titles=[f"{title} [{unit}]" for title, unit, _ in shown.values()],
    )
    for row, (name, (_, unit, scale)) in enumerate(shown.items(), start=1):
        figure.add_scatter(
            x=series["time_s"],
            y=scale * series[name],
            row=row,
            col=1,
            line={"color": PREDICTED, "shape": "hv", "width": 1.5},
            fill="tozeroy",
            fillcolor=SHADE,
            hovertemplate=f"%{{y:.3g}} {unit} at %{{x:.4g}} s<extra></extra>",
        )
    return _laid_out(figure, len(shown))


def errors(comparison: pd.DataFrame) -> Figure:
    """Draw each figure's prediction error beside what two real runs differ by.

    Bars are plus and minus the run-to-run spread, the band is the tolerance of 15 %. A point's
    whiskers are the prediction's interval: where they reach over zero, the figure was hit.
    """
    rows = comparison.iloc[::-1].reset_index(drop=True)
    names = [figure_name(*key) for key in zip(rows["metric"], rows["statistic"], strict=True)]
    rows = rows.assign(
        figure=names,
        error=100 * rows["error"].astype(float),
        **{end: 100 * (rows[end] / rows["measured"] - 1) for end in ("low", "high")},
        # Read from JSON, the spread of a single run is None.
        spread=100 * rows["spread"].astype(float),
    )
    band = 100 * TOLERANCE
    axis = f"Error (shaded: ± {band:.0f} %; whiskers: {100 * COVERAGE:.0f} % interval)"
    figure = new_figure("Prediction error of each figure", axis, "")
    figure.add_vrect(x0=-band, x1=band, fillcolor="#edf3f9", line_width=0, layer="below")
    _add_spread(figure, rows)
    _add_errors(figure, rows[rows["close"]], "error, close", PREDICTED, "circle")
    _add_errors(figure, rows[~rows["close"]], "error, off", OFF, "x")
    figure.update_xaxes(range=_reach(rows, band), zeroline=True, zerolinecolor=INK, ticksuffix=" %")
    figure.update_yaxes(categoryorder="array", categoryarray=names, showgrid=False)
    return figure.update_layout(height=150 + 24 * len(names))


def _reach(rows: pd.DataFrame, band: float) -> list[float]:
    """Return from where to where errors, intervals, spreads and the band reach, and a tenth on."""
    ends = [*rows["low"], *rows["high"], *rows["spread"], *-rows["spread"], -band, band]
    known = [end for end in ends if np.isfinite(end)]
    return [1.1 * min(known), 1.1 * max(known)]


def _laid_out(figure: Figure, rows: int) -> Figure:
    """Give panels the looks of the other charts."""
    look = new_figure("Over time", "", "").layout
    axis = {"gridcolor": FAINT, "linecolor": INK, "ticks": "outside", "rangemode": "tozero"}
    figure.update_layout(
        title=look.title,
        title_font=look.title.font,
        template="none",
        font=look.font,
        height=90 + 130 * rows,
        margin={"l": 60, "r": 20, "t": 60, "b": 50},
        showlegend=False,
        hovermode="x",
    )
    figure.update_annotations(x=0, xanchor="left", font={"size": 12})
    figure.update_xaxes(**axis, zeroline=False)
    figure.update_xaxes(title="Time [s]", row=rows)
    return figure.update_yaxes(**axis, zeroline=False, nticks=4)


def _mark_estimates(
    figure: Figure, group: Group, metric: str, per_second: float, colour: str
) -> None:
    """Mark the percentiles' medians over replications, with their intervals."""
    marks = [
        (int(name[1:]), value * per_second, *(end * per_second for end in interval))
        for name in MARKED
        if (value := group.value(metric, name)) is not None
        and (interval := group.interval(metric, name)) is not None
    ]
    if not marks:
        return
    share, middle, low, high = np.array(marks).T
    figure.add_scatter(
        x=middle,
        y=share,
        mode="markers",
        marker={"color": colour, "size": 6},
        error_x={
            "array": high - middle,
            "arrayminus": middle - low,
            "symmetric": False,
            "thickness": 1,
            "width": 3,
        },
        customdata=np.stack([low, high], axis=1),
        hovertemplate="%{y:.0f} %: %{x:.4g} [%{customdata[0]:.4g}, %{customdata[1]:.4g}]"
        "<extra>median [low, high]</extra>",
        showlegend=False,
    )


def _add_spread(figure: Figure, rows: pd.DataFrame) -> None:
    if rows["spread"].notna().any():
        figure.add_bar(
            x=2 * rows["spread"],
            base=-rows["spread"],
            y=rows["figure"],
            orientation="h",
            width=0.5,
            name="± run-to-run spread",
            marker={"color": "#bdbdbd"},
            hoverinfo="skip",
        )


def _add_errors(figure: Figure, rows: pd.DataFrame, name: str, colour: str, symbol: str) -> None:
    if not rows.empty:
        figure.add_scatter(
            x=rows["error"],
            y=rows["figure"],
            mode="markers",
            name=name,
            marker={"color": colour, "symbol": symbol, "size": 9},
            error_x={
                "array": rows["high"] - rows["error"],
                "arrayminus": rows["error"] - rows["low"],
                "symmetric": False,
                "thickness": 1.5,
                "width": 4,
            },
            customdata=rows[["low", "high"]].to_numpy(),
            hovertemplate="%{y}: %{x:+.1f} [%{customdata[0]:+.1f}, %{customdata[1]:+.1f}] %",
        )


def new_figure(title: str, x_title: str, y_title: str) -> Figure:
    """Return an empty figure in the project's looks."""
    axis = {"gridcolor": FAINT, "linecolor": INK, "ticks": "outside", "automargin": True}
    return Figure(
        layout={
            "title": {"text": title, "x": 0, "y": 1, "pad": {"t": 10}, "yanchor": "top"},
            "template": "none",
            "font": {"color": INK, "size": 12, "family": "system-ui, sans-serif"},
            "paper_bgcolor": "white",
            "plot_bgcolor": "white",
            "height": 340,
            "title_font": {"size": 15},
            "margin": {"l": 60, "r": 20, "t": 40, "b": 100},
            "legend": {
                "orientation": "h",
                "x": 0,
                "y": 0,
                "yanchor": "bottom",
                "yref": "container",
            },
            "xaxis": {**axis, "title": x_title, "rangemode": "tozero", "zeroline": False},
            "yaxis": {**axis, "title": y_title, "rangemode": "tozero", "zeroline": False},
            "showlegend": True,
        }
    )


def _lines(names: Mapping[str, object]) -> list[Line]:
    """Return how to draw each name; real runs and predictions look the same everywhere."""
    greys, colours, dashes = cycle(MEASURED), cycle(OTHERS), cycle(DASHES)
    lines: list[Line] = []
    for name in names:
        if name.startswith("measured"):
            lines.append({"color": next(greys), "dash": "solid", "width": 2})
        elif name.startswith("predicted"):
            # Alone on a chart it need not be told apart, and a solid line reads better.
            dash = "dash" if len(names) > 1 else "solid"
            lines.append({"color": PREDICTED, "dash": dash, "width": 2.5})
        else:
            lines.append({"color": next(colours), "dash": next(dashes), "width": 2})
    return lines


def _distinct(targets: Mapping[str, float | None]) -> dict[float, str]:
    """Return what to write on each target's line; one that all share needs no name."""
    found: dict[float, str] = {}
    for name, target_s in targets.items():
        if target_s is not None:
            found[target_s] = f"{found[target_s]}, {name}" if target_s in found else name
    return found if len(found) > 1 else dict.fromkeys(found, "target")


def _mark_target(figure: Figure, x: float, name: str) -> None:
    figure.add_vline(
        x=x,
        line={"color": INK, "width": 1, "dash": "dot"},
        annotation={"text": escape(name), "font": {"size": 11}},
        annotation_position="top",
    )


def _in_system(records: pd.DataFrame) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Return the moments at which the number of requests changed, and the number from then on."""
    served = records[records["outcome"] != REFUSED]
    arrivals = served["arrival_s"].to_numpy(dtype=float)
    finishes = served["finish_s"].dropna().to_numpy(dtype=float)
    times = np.concatenate([arrivals, finishes])
    steps = np.repeat(np.array([1, -1], dtype=np.int64), [arrivals.size, finishes.size])
    order = np.argsort(times, kind="stable")
    return times[order], np.cumsum(steps[order])


def _thinned(count: int) -> NDArray[np.int64]:
    """Return evenly spaced indices, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, MOST_POINTS)).astype(np.int64))
