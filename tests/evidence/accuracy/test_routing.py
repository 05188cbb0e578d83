"""How copies and made-up prompts are routed."""

import numpy as np
import pytest

from moesim.cost.experts import expected_distinct
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.experiments import figure_of
from moesim.evidence.accuracy.routing import routed_alike, routed_unevenly
from tests.evidence.accuracy.test_understanding import ROW


def test_favourites_and_others_add_up_to_the_experts_of_a_token() -> None:
    profile = Costs("roofline")._profiles(figure_of(ROW).experiment.system, 2048, 64)
    for rare in (1e-9, 0.005, 0.25):
        for layer in routed_unevenly(profile, rare).router.popularity:
            assert sum(layer) == pytest.approx(2.0)
            assert sorted(layer)[:6] == pytest.approx([rare] * 6)
    assert routed_unevenly(profile, 0.25).router.popularity[0] == pytest.approx([0.25] * 8)


def test_rare_experts_are_hit_by_and_by() -> None:
    """Two favourites, and of six others each with a chance of 0.005 a token; by drawing them."""
    profile = Costs("roofline")._profiles(figure_of(ROW).experiment.system, 2048, 64)
    uneven = routed_unevenly(profile, 0.005).router.popularity
    rng = np.random.default_rng(0)
    drawn = 2 + (rng.random((4000, 128, 6)) < 0.005).any(axis=1).sum(axis=1).mean()
    assert expected_distinct(uneven, [128])[0, 0] == pytest.approx(drawn, rel=0.02)
    alike = routed_alike(profile).router.popularity
    assert expected_distinct(alike, [128])[0, 0] == pytest.approx(2.0, abs=1e-5)
