"""How a claim is judged."""

from typing import Any

import numpy as np
import pytest

from moesim.reproduction.claims import NOT, REPRODUCED, SHAPE, UNCHECKABLE, Claim, judged
from moesim.reproduction.publication import Publication


def judge(runs: list[float] | None, **figure: Any) -> Claim:
    publication = Publication(
        system="s",
        title="",
        source="",
        scenarios={},
        claims={"c": {"claim": "x", "evidence": "S", "source": "p", "why": "w", **figure}},
    )
    return judged(publication, "c", None if runs is None else np.array(runs))


@pytest.mark.parametrize(
    ("value", "verdict"), [(9.0, REPRODUCED), (11.0, REPRODUCED), (8.9, NOT), (11.1, NOT)]
)
def test_a_figure_has_a_tolerance(value: float, verdict: str) -> None:
    """A tenth either way of ten."""
    assert judge([value], kind="figure", published=10, tolerance=0.1).verdict == verdict


@pytest.mark.parametrize(("value", "verdict"), [(1.0, SHAPE), (99.0, SHAPE), (0.9, NOT)])
def test_a_range_may_be_open(value: float, verdict: str) -> None:
    assert judge([value], kind="shape", published=[1, None]).verdict == verdict


def test_the_median_is_judged_and_the_range_is_shown() -> None:
    claim = judge([1.0, 10.0, 99.0], kind="figure", published=10)
    assert (claim.verdict, claim.simulated, claim.interval) == (REPRODUCED, 10, (1, 99))
    assert claim.why == ""


def test_what_never_happened_is_not_reproduced() -> None:
    claim = judge([float("nan")], kind="shape", published=[0, None])
    assert (claim.verdict, claim.simulated, claim.interval) == (NOT, None, None)


def test_what_is_unknown_is_never_judged() -> None:
    claim = judge([10.0], kind="unknown", published=10)
    assert (claim.verdict, claim.why) == (UNCHECKABLE, "w")
    assert judge(None, kind="unknown").simulated is None
