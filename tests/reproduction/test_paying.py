"""Where a scheme stops paying, from ratios made up for it."""

import numpy as np
import pytest

from moesim.reproduction.paying import Ratios, where, where_it_stops


def ratios(*medians: float, name: str = "MIG", x_title: str = "Swaps [GB/s]") -> Ratios:
    """Ratios at 1, 2, 3 and so on, with trials a tenth either way."""
    places = tuple(float(place) for place in range(1, len(medians) + 1))
    runs = tuple(np.array([0.9 * median, median, 1.1 * median]) for median in medians)
    return Ratios(name=name, x_title=x_title, places=places, runs=runs)


@pytest.mark.parametrize(
    ("medians", "said"),
    [
        ((0.5, 1.5), "above 1.5 GB/s"),
        ((1.5, 0.5), "below 1.5 GB/s"),
        ((1.5, 0.5, 1.5), "below 1.5 and above 2.5 GB/s"),
        ((1.5, 1.2), "at every point"),
        ((0.9, 1.0), "above 2.0 GB/s"),
    ],
)
def test_crossings_lie_on_straight_lines(medians: tuple[float, ...], said: str) -> None:
    assert where(ratios(*medians)) == said


def test_an_axis_may_have_no_unit() -> None:
    assert where(ratios(0.5, 1.5, x_title="Variants")) == "above 1.5"


def test_what_is_always_beaten_is_so_in_every_sweep() -> None:
    """MIG wins once in the second sweep, time-sharing never."""
    found = {
        "more variants": [ratios(0.5, 0.6), ratios(0.8, 0.9, name="time-sharing")],
        "slower swaps": [ratios(1.5, 0.5), ratios(0.8, 0.9, name="time-sharing")],
    }
    assert where_it_stops(found) == (
        "It stops paying: slower swaps, below 1.5 GB/s (beside MIG).",
        "Wherever it was tried it pays beside: time-sharing.",
    )


def test_a_scheme_may_never_stop_or_never_pay() -> None:
    assert where_it_stops({"s": [ratios(0.5)]}) == ("Wherever it was tried it pays beside: MIG.",)
    assert where_it_stops({"s": [ratios(1.5)]}) == (
        "It stops paying: s, at every point (beside MIG).",
    )
