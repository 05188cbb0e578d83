"""Spikes go, what is left rises."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.kernels.cleaning import SPIKE, kept, levelled

DURATIONS = st.lists(st.floats(1e-6, 1e3), min_size=1, max_size=12)


@pytest.mark.parametrize(
    ("seconds", "places"),
    [
        ([1.0, 2.0, 4.0], [0, 1, 2]),
        ([1.0, 16.0, 4.0, 8.0], [0, 2, 3]),  # a spike
        ([1.0, 9.0, 9.5, 2.0, 3.0, 4.0], [0, 3, 4, 5]),  # a cliff of two sizes
        ([4.0, 4.1, 0.1, 4.3], [0, 1, 3]),  # too fast: it contradicts all before it
        ([1.0, 1.2, 1.0, 2.0], [0, 1, 2, 3]),  # within a tile's step
    ],
)
def test_what_contradicts_most_goes(seconds: list[float], places: list[int]) -> None:
    """And nothing else does."""
    assert kept(seconds) == places


@given(DURATIONS)
def test_what_is_kept_hardly_falls(seconds: list[float]) -> None:
    """No later point is faster by more than the bound; one point at least remains."""
    left = [seconds[place] for place in kept(seconds)]
    assert left
    assert all(a <= SPIKE * b for i, a in enumerate(left) for b in left[i + 1 :])


@given(DURATIONS)
def test_levelled_durations_are_the_nearest_that_rise(seconds: list[float]) -> None:
    """Isotonic regression is max over starts of min over ends of means (Barlow et al. 1972)."""
    logs = np.log(seconds)
    count = len(logs)
    nearest = [
        max(min(logs[i : j + 1].mean() for j in range(at, count)) for i in range(at + 1))
        for at in range(count)
    ]
    assert np.log(levelled(seconds)) == pytest.approx(np.array(nearest), abs=1e-9)
