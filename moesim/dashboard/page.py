"""The page: a sidebar that asks, a tab that predicts, a tab that shows how predictions hold up."""

from collections.abc import Callable

import streamlit as st

from moesim.dashboard import measured, prediction, sidebar
from moesim.errors import MoesimError


def main() -> None:
    """Draw the page once; Streamlit calls this again on every change."""
    st.set_page_config(page_title="moesim", layout="wide")
    st.title("moesim")
    st.caption("What serving a mixture-of-experts model will do, predicted from measurements.")
    predict, compare = st.tabs(["Predict", "Measured beside predicted"])
    with predict:
        _or_error(_predict)
    with compare:
        _or_error(measured.show)


def _predict() -> None:
    with st.sidebar:
        question = sidebar.ask()
    if question is None:
        st.info("Give the path of a scenario file, or upload one.")
        return
    prediction.show(question)


def _or_error(step: Callable[[], None]) -> None:
    """Run a part of the page; what a person can mend is one line there, not a traceback."""
    try:
        step()
    except MoesimError as wrong:
        st.error(str(wrong))


if __name__ == "__main__":
    main()
