"""The first tab: what the scenario will do, from some simulations of it."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import streamlit as st
import yaml

from moesim.cost.curves import WEAKEST
from moesim.dashboard.settings import Content
from moesim.dashboard.sidebar import Question
from moesim.errors import MoesimWarning
from moesim.facts.catalog import locate
from moesim.scenario import ROOFLINE, Scenario, scenario_from
from moesim.serving.metrics import LATENCIES
from moesim.serving.records import REFUSED
from moesim.simulation.replications import Replications, replicate
from moesim.simulation.run import Result
from moesim.units import format_seconds
from moesim.views.charts import Figure, latency_cdf, series_over_time
from moesim.views.tables import (
    PERCENTILE_HEADINGS,
    Group,
    estimate,
    groups_of,
    interval_meaning,
    percentile_rows,
    verdict,
)
from moesim.views.wording import GLOSSARY, LABELS, RATE_UNITS, figure_name, in_units

SHOWN = "shown"
"""Where the session keeps the question whose answer is on the page."""

Tile = tuple[str, tuple[str, str], str]
"""Label, value with its interval, and meaning of a figure."""

VERDICTS = {"above capacity": st.error, "not settled": st.warning}
"""How verdicts are shown that a reader must not miss."""

BASIS_MEANING = {
    "measured": "exactly the points that were timed",
    "interpolated": "between points that were timed",
    "fitted": "a formula fitted to a server's log",
    "scaled": "timed on the whole device, scaled to a part of it",
    "extrapolated": "beyond the points that were timed: trust it less",
    "roofline": "not timed at all: what the datasheet lets one expect",
}


def show(asked: Question) -> None:
    """Answer the question, or the one answered before while the page waits for Run."""
    question = _to_answer(asked)
    scenario = question.scenario()
    found, notices = _simulated(
        question.content,
        question.source,
        question.folder,
        question.seed,
        question.replications,
        _stamp(scenario),
    )
    result, metrics = found.first, found.metrics()
    VERDICTS.get(metrics["steady"]["kind"], st.info)(_sentence(verdict(metrics)))
    _tiles(metrics)
    _reservations(found, metrics, notices)
    _charts(result, metrics)
    st.subheader("Latencies")
    st.dataframe(
        pd.DataFrame(percentile_rows(metrics), columns=list(PERCENTILE_HEADINGS)),
        hide_index=True,
        width="stretch",
        height="content",
    )
    _basis(result.basis)
    _downloads(question, result)


def chart(figure: Figure, key: str) -> None:
    """Show a figure as it is in the report."""
    st.plotly_chart(figure, theme=None, key=key, config={"displayModeBar": False})


def _to_answer(asked: Question) -> Question:
    if asked.run or SHOWN not in st.session_state:
        st.session_state[SHOWN] = asked
    shown: Question = st.session_state[SHOWN]
    if replace(shown, run=asked.run) != asked:
        st.info("The settings have changed since this run: press Run.")
    return shown


@st.cache_data(max_entries=64, show_spinner="Simulating …")
def _simulated(
    content: Content,
    source: str,
    folder: Path | None,
    seed: int,
    replications: int | None,
    stamp: tuple[tuple[str, int], ...],  # a file that has changed is another question
) -> tuple[Replications, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MoesimWarning)
        scenario = scenario_from(content, source=source, folder=folder)
        found = replicate(scenario, seed=seed, replications=replications)
    return found, [str(one.message) for one in caught if one.category is MoesimWarning]


def _stamp(scenario: Scenario) -> tuple[tuple[str, int], ...]:
    """Return the files behind a scenario and when each was last changed."""
    profiles = [
        locate("profiles", model.profile, relative_to=scenario.folder)
        for model in scenario.models.values()
        if model.profile != ROOFLINE
    ]
    named = [getattr(tenant.arrivals, "path", None) for tenant in scenario.tenants.values()]
    traces = [
        base / name
        for name in named
        if name is not None
        for base in (Path(), scenario.folder or Path())
    ]
    return tuple(
        (str(path), path.stat().st_mtime_ns) for path in (*profiles, *traces) if path.exists()
    )


def _tiles(metrics: Mapping[str, Any]) -> None:
    everyone = groups_of(metrics)[-1]
    _tile_row(
        _rate_tile(everyone, "throughput_rps"),
        _rate_tile(everyone, "goodput_rps"),
        _share_tile(everyone),
        _utilisation_tile(metrics),
    )
    _tile_row(*(_latency_tile(everyone, metric, "p50") for metric in everyone.latencies))
    _tile_row(*(_latency_tile(everyone, metric, "p99") for metric in everyone.latencies))


def _rate_tile(group: Group, metric: str) -> Tile:
    label, cell = LABELS[metric], estimate(group.value(metric), group.interval(metric))
    # A tile is too narrow for a number and its unit.
    return f"{label} [{RATE_UNITS[metric]}]", cell, GLOSSARY[label]


def _share_tile(group: Group) -> Tile:
    metric = "slo_attainment"
    cell = estimate(group.value(metric), group.interval(metric), 100)
    return f"{LABELS[metric]} [%]", cell, GLOSSARY[LABELS[metric]]


def _utilisation_tile(metrics: Mapping[str, Any]) -> Tile:
    """Show the busiest replica, whose interval is known; a mean over replicas has none."""
    used = metrics["utilisation"]
    busiest = max(used, key=used.__getitem__)
    interval = metrics["intervals"]["utilisation"][busiest] if metrics["intervals"] else None
    meaning = f"Share of the time that the busiest of {len(used)} replicas, {busiest}, computed."
    return "Utilisation [%]", estimate(used[busiest], interval, 100), meaning


def _latency_tile(group: Group, metric: str, statistic: str) -> Tile:
    unit, (cell,) = group.row(metric, [statistic])
    return f"{figure_name(metric, statistic)} [{unit}]", cell, GLOSSARY[LABELS[metric]]


def _tile_row(*tiles: Tile) -> None:
    for column, (label, (value, ends), meaning) in zip(st.columns(len(tiles)), tiles, strict=True):
        column.metric(
            label,
            value,
            ends or None,
            help=meaning,
            border=True,
            delta_color="off",
            delta_arrow="off",
        )


def _reservations(found: Replications, metrics: Mapping[str, Any], notices: list[str]) -> None:
    result, overall = found.first, metrics["overall"]
    tokens = in_units("output_tokens_per_s", [overall["output_tokens_per_s"]])[0]
    st.caption(
        f"{overall['completed']:,} of {overall['requests']:,} requests completed, {tokens} "
        f"generated, {overall['preemptions']:,} preemptions. "
        f"Simulated in {format_seconds(found.elapsed_s)}. {_sentence(interval_meaning(metrics))}"
    )
    if result.quality:
        st.caption(_sentence(result.quality["sentence"]))
    refused = result.records[result.records["outcome"] == REFUSED]
    if not refused.empty:
        st.warning(f"{len(refused)} requests refused, the first: {refused['detail'].iloc[0]}")
    for text in (*result.warnings, *notices):
        st.warning(text)


def _sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}." if text else ""


def _charts(result: Result, metrics: Mapping[str, Any]) -> None:
    """Draw the first run; medians over all and their intervals are marked on it."""
    groups = {str(name): group for name, group in result.records.groupby("tenant", sort=True)}
    tables = groups if len(groups) > 1 else {"predicted": result.records}
    estimates = {group.name: group for group in groups_of(metrics)}
    if len(groups) == 1:
        estimates = {"predicted": estimates[next(iter(groups))]}
    for column, metric in zip(st.columns(len(LATENCIES)), LATENCIES, strict=True):
        targets = {name: getattr(slo, metric) for name, slo in result.slos.items()}
        with column:
            chart(latency_cdf(tables, metric, targets, estimates), f"predicted {metric}")
    chart(series_over_time(result.series()), "predicted series")


def _basis(basis: Mapping[str, str]) -> None:
    st.subheader("What the prediction rests on")
    for kind in WEAKEST:
        operations = [name for name, value in basis.items() if value == kind]
        if operations:
            st.markdown(f"- **{kind}** ({BASIS_MEANING[kind]}): {', '.join(operations)}")


def _downloads(question: Question, result: Result) -> None:
    left, right = st.columns(2)
    left.download_button(
        "Records, one row per request (CSV)",
        result.records.to_csv(index=False),
        file_name=f"{result.scenario}-records.csv",
        mime="text/csv",
        width="stretch",
    )
    right.download_button(
        "This scenario (YAML)",
        yaml.safe_dump(question.content, sort_keys=False, allow_unicode=True),
        file_name=f"{result.scenario}.yaml",
        mime="application/yaml",
        width="stretch",
    )
