"""Length distributions: their means, their tables, their clipping."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from moesim.traffic.lengths import Fixed, Lognormal, Quantiles


def _draw(lengths: Fixed | Lognormal | Quantiles, count: int, seed: int = 0) -> np.ndarray:
    return lengths.draw(count, np.random.default_rng(seed))


def test_fixed_lengths_are_all_the_same() -> None:
    """Nothing is drawn."""
    assert _draw(Fixed(kind="fixed", tokens=7), 3).tolist() == [7, 7, 7]


@pytest.mark.parametrize("cv", [0.3, 1.0, 2.0])
def test_lognormal_lengths_have_the_mean_and_cv_asked_for(cv: float) -> None:
    """Mean 1000 tokens within 4 standard errors of 200,000 draws; the cv within 5 %."""
    values = _draw(Lognormal(kind="lognormal", mean=1000, cv=cv), 200_000)
    assert abs(values.mean() - 1000) < 4 * cv * 1000 / np.sqrt(len(values))
    assert values.std() / values.mean() == pytest.approx(cv, rel=0.05)


def test_lognormal_lengths_have_the_median_of_their_kind() -> None:
    """A lognormal's median is mean / sqrt(1 + cv^2): 1000 / sqrt(2) at cv 1."""
    values = _draw(Lognormal(kind="lognormal", mean=1000, cv=1), 100_000)
    assert np.median(values) == pytest.approx(1000 / np.sqrt(2), rel=0.02)


def test_a_quantile_table_is_inverted() -> None:
    """Half the draws lie between 10 and 20, evenly; the others between 20 and 120, evenly."""
    table = Quantiles(kind="quantiles", levels=(0, 0.5, 1), tokens=(10, 20, 120))
    values = _draw(table, 100_000)
    found = np.quantile(values, [0, 0.25, 0.5, 0.75, 1])
    assert found == pytest.approx([10, 15, 20, 70, 120], abs=1.5)


def test_scale_comes_before_the_clip() -> None:
    """100 tokens at scale 0.5 are 50, under a maximum of 60; at scale 0.8 they are clipped."""
    at = {"kind": "quantiles", "levels": (0, 1), "tokens": (100, 100), "max": 60}
    assert _draw(Quantiles(**at, scale=0.5), 2).tolist() == [50, 50]
    assert _draw(Quantiles(**at, scale=0.8), 2).tolist() == [60, 60]


@given(
    mean=st.floats(0.01, 1e6),
    cv=st.floats(0.01, 10),
    longest=st.integers(1, 10_000),
    seed=st.integers(0, 2**32),
)
def test_every_length_is_a_whole_number_within_its_bounds(
    mean: float, cv: float, longest: int, seed: int
) -> None:
    """At least one token, at most `max`, whatever the parameters."""
    values = _draw(Lognormal(kind="lognormal", mean=mean, cv=cv, max=longest), 50, seed)
    assert values.dtype == np.int64
    assert values.min() >= 1
    assert values.max() <= longest


@pytest.mark.parametrize(
    ("levels", "tokens", "words"),
    [
        ((0, 1), (1,), "same length"),
        ((0,), (1,), "at least 2"),
        ((0.1, 1), (1, 2), "from 0 to 1"),
        ((0, 0.9), (1, 2), "from 0 to 1"),
        ((0, 0.5, 0.5, 1), (1, 2, 3, 4), "strictly"),
        ((0, 1), (5, 4), "must not fall"),
        ((0, 1), (-1, 4), "not be negative"),
    ],
)
def test_what_is_no_quantile_table_is_refused(
    levels: tuple[float, ...], tokens: tuple[float, ...], words: str
) -> None:
    """Levels from 0 to 1 that rise, lengths that do not fall."""
    with pytest.raises(ValidationError, match=words):
        Quantiles(kind="quantiles", levels=levels, tokens=tokens)


def test_a_table_and_a_workload_exclude_each_other() -> None:
    """Two sources of one truth are refused."""
    with pytest.raises(ValidationError, match="not both"):
        Quantiles(kind="quantiles", levels=(0, 1), tokens=(1, 2), workload="azure-conv-2023")
