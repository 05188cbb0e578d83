"""The first tab: what the scenario will do, from one simulation."""

import warnings
from collections.abc import Mapping
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
from moesim.scenario import Scenario, scenario_from
from moesim.serving.metrics import LATENCIES
from moesim.serving.records import REFUSED
from moesim.simulation.run import Result, simulate
from moesim.units import format_seconds
from moesim.views.charts import Figure, latency_cdf, running_over_time
from moesim.views.tables import PERCENTILE_HEADINGS, percentile_rows
from moesim.views.wording import GLOSSARY, LABELS, RATE_UNITS, figure_name, in_units, percent

SHOWN = "shown"
"""Where the session keeps the question whose answer is on the page."""

Tile = tuple[str, str, str]
"""Label, value and meaning of a figure."""

BASIS_MEANING = {
    "measured": "exactly the points that were timed",
    "interpolated": "between points that were timed",
    "extrapolated": "beyond the points that were timed: trust it less",
}


def show(asked: Question) -> None:
    """Answer the question, or the one answered before while the page waits for Run."""
    question = _to_answer(asked)
    scenario = question.scenario()
    result, notices = _simulated(
        question.content, question.source, question.folder, question.seed, _stamp(scenario)
    )
    metrics = result.metrics()
    _tiles(metrics)
    _reservations(result, notices)
    _charts(result)
    st.subheader("Latencies")
    st.dataframe(
        pd.DataFrame(percentile_rows(metrics), columns=list(PERCENTILE_HEADINGS)),
        hide_index=True,
        width="stretch",
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
    if (shown.content, shown.seed) != (asked.content, asked.seed):
        st.info("The settings have changed since this run: press Run.")
    return shown


@st.cache_data(max_entries=64, show_spinner="Simulating …")
def _simulated(
    content: Content,
    source: str,
    folder: Path | None,
    seed: int,
    stamp: tuple[tuple[str, int], ...],  # a file that has changed is another question
) -> tuple[Result, list[str]]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", MoesimWarning)
        result = simulate(scenario_from(content, source=source, folder=folder), seed=seed)
    return result, [str(one.message) for one in caught if one.category is MoesimWarning]


def _stamp(scenario: Scenario) -> tuple[tuple[str, int], ...]:
    """Return the files behind a scenario and when each was last changed."""
    profiles = [
        locate("profiles", model.profile, relative_to=scenario.folder)
        for model in scenario.models.values()
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
    overall, busy = metrics["overall"], metrics["utilisation"]
    replicas = ", ".join(f"{name} {percent(share)}" for name, share in busy.items())
    _tile_row(
        _rate_tile(overall, "throughput_rps", GLOSSARY["Throughput"]),
        _rate_tile(overall, "goodput_rps", "Requests per second that met their tenant's targets."),
        (
            "Utilisation",
            percent(sum(busy.values()) / len(busy)),
            f"Share of the time that replicas computed: {replicas}.",
        ),
        _latency_tile(overall, "turnaround_s", "mean"),
    )
    _tile_row(
        *(
            _latency_tile(overall, metric, statistic)
            for metric in ("ttft_s", "tpot_s")
            for statistic in ("p50", "p99")
        )
    )


def _rate_tile(overall: Mapping[str, Any], metric: str, meaning: str) -> Tile:
    value, unit = in_units(metric, [overall[metric]])[0], RATE_UNITS[metric]
    # A tile is too narrow for a number and its unit.
    return f"{LABELS[metric]} [{unit}]", value.removesuffix(f" {unit}"), meaning


def _latency_tile(overall: Mapping[str, Any], metric: str, statistic: str) -> Tile:
    value = in_units(metric, [overall[metric][statistic]])[0]
    return figure_name(metric, statistic), value, GLOSSARY[LABELS[metric]]


def _tile_row(*tiles: Tile) -> None:
    for column, (label, value, meaning) in zip(st.columns(len(tiles)), tiles, strict=True):
        column.metric(label, value, help=meaning, border=True)


def _reservations(result: Result, notices: list[str]) -> None:
    overall = result.metrics()["overall"]
    tokens = in_units("output_tokens_per_s", [overall["output_tokens_per_s"]])[0]
    st.caption(
        f"{overall['completed']:,} of {overall['requests']:,} requests completed, {tokens} "
        f"generated, {overall['preemptions']:,} preemptions. "
        f"Simulated in {format_seconds(result.elapsed_s)}."
    )
    refused = result.records[result.records["outcome"] == REFUSED]
    if not refused.empty:
        st.warning(f"{len(refused)} requests refused, the first: {refused['detail'].iloc[0]}")
    for text in (*result.warnings, *notices):
        st.warning(text)


def _charts(result: Result) -> None:
    groups = {str(name): group for name, group in result.records.groupby("tenant", sort=True)}
    tables = groups if len(groups) > 1 else {"predicted": result.records}
    for column, metric in zip(st.columns(len(LATENCIES)), LATENCIES, strict=True):
        targets = {name: getattr(slo, metric) for name, slo in result.slos.items()}
        with column:
            chart(latency_cdf(tables, metric, targets), f"predicted {metric}")
    chart(running_over_time(tables), "predicted running")


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
