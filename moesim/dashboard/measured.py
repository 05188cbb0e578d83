"""The second tab: a validation folder, real runs beside their prediction."""

from pathlib import Path

import pandas as pd
import streamlit as st

from moesim.dashboard.prediction import chart
from moesim.evidence.validation import (
    COMPARISON,
    FOLDER_VARIABLE,
    Validation,
    default_folder,
    load_validation,
    named_tables,
)
from moesim.serving.metrics import LATENCIES
from moesim.views.charts import errors, latency_cdf, running_over_time
from moesim.views.tables import COMPARISON_HEADINGS, comparison_rows, headline, predicted_group
from moesim.views.wording import GLOSSARY


def show() -> None:
    """Ask for the folder and show what is in it, or how to fill it."""
    folder = Path(
        st.text_input(
            "Validation folder",
            str(default_folder()),
            key="validation folder",
            help=f"Where `make demo` wrote its results; `{FOLDER_VARIABLE}` sets the default.",
        )
    )
    if not (folder / COMPARISON).exists():
        st.info(
            f"No validation in `{folder}` yet. Run `make demo`: it serves a workload for real on "
            "this machine, twice, predicts it, and leaves both here."
        )
        return
    _show(load_validation(folder))


def _show(found: Validation) -> None:
    st.subheader(headline(found.comparison))
    st.dataframe(
        pd.DataFrame(comparison_rows(found.comparison), columns=list(COMPARISON_HEADINGS)),
        hide_index=True,
        width="stretch",
        height="content",
    )
    tables = named_tables(found.measured, found.predicted)
    estimates = {"predicted": predicted_group(found.comparison)}
    chart(errors(found.comparison), "errors")
    for column, metric in zip(st.columns(len(LATENCIES)), LATENCIES, strict=True):
        with column:
            chart(latency_cdf(tables, metric, estimates=estimates), f"compared {metric}")
    chart(running_over_time(tables), "compared running")
    st.subheader("What was run")
    _definitions(found.facts, "Fact", "Value")
    for note in found.notes:
        st.caption(note)
    with st.expander("Terms"):
        _definitions(GLOSSARY, "Term", "Meaning")


def _definitions(entries: dict[str, str], name: str, meaning: str) -> None:
    # A plain table wraps long text, a data frame would cut it off.
    st.table(pd.DataFrame({name: entries.keys(), meaning: entries.values()}).set_index(name))
