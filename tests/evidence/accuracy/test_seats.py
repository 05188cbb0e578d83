"""How far times to the first token reach, on records written by hand."""

from dataclasses import replace

import pandas as pd
import pytest

from moesim.evidence.accuracy.course import Course, simulated
from moesim.evidence.accuracy.experiments import Figure, figure_of
from moesim.evidence.accuracy.seats import reach
from tests.evidence.accuracy.test_course import Flat
from tests.evidence.accuracy.test_understanding import ROW

LOOP = replace(ROW, scenario="online_closed_loop", load="concurrency 4", metric="ttft_mean_ms")


def _course(figure: Figure) -> Course:
    """Return four answers after a second: first tokens after 0.1, 0.1, 0.2 and 0.4 s."""
    records = pd.DataFrame(
        {"arrival_s": 0.0, "first_token_s": [0.1, 0.1, 0.2, 0.4], "finish_s": 1.0}
    )
    return replace(simulated(figure.experiment, Flat()), records=records)


def test_the_least_is_alone_and_the_most_waits_for_a_seat() -> None:
    """Alone 0.1 s; on average 0.2 s, and a quarter of a second for a seat."""
    figure = figure_of(LOOP)
    assert reach(figure, _course(figure)) == pytest.approx((100.0, 450.0))


def test_a_single_user_has_a_seat() -> None:
    figure = figure_of(replace(LOOP, load="concurrency 1"))
    assert reach(figure, _course(figure)) == pytest.approx((100.0, 200.0))


@pytest.mark.parametrize(
    "changed",
    [
        {"metric": "tpot_mean_ms"},
        {"metric": "ttft_p99_ms"},
        {"scenario": "online_serving", "load": "rate 4"},
    ],
)
def test_other_figures_are_as_simulated(changed: dict[str, str]) -> None:
    figure = figure_of(replace(LOOP, **changed))
    assert reach(figure, _course(figure)) is None
