"""How many experts a batch hits: theory, a count by simulation, and bounds."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.experts import expected_distinct, experts_curve
from moesim.cost.profile import Cell


def test_uniform_routing_has_a_closed_form() -> None:
    """Eight experts, top-2: 8 (1 - 0.75^b) at every batch size b."""
    batch = np.arange(65)
    found = expected_distinct([[0.25] * 8], batch)
    assert found.shape == (1, 65)
    assert found[0] == pytest.approx(8 * (1 - 0.75**batch))


def test_a_skewed_layer_hits_fewer() -> None:
    """Shares 1, 0.5, 0.5, 0: two tokens hit 1 + 0.75 + 0.75, an expert nobody wants never."""
    found = expected_distinct([[1, 0.5, 0.5, 0], [0.5] * 4], range(3))
    assert found[:, 2] == pytest.approx([2.5, 3.0])
    assert expected_distinct([[1, 0.5, 0.5, 0]], [500])[0, 0] == pytest.approx(3)


def test_it_is_what_random_routing_does() -> None:
    """Six tokens draw 2 of 8 experts at random, 20,000 times; the mean is within 4 errors."""
    rng = np.random.default_rng(0)
    picks = rng.random((20_000, 6, 8)).argsort(axis=2)[:, :, :2]
    counts = np.array([len(np.unique(batch)) for batch in picks])
    error = counts.std() / np.sqrt(len(counts))
    assert abs(counts.mean() - expected_distinct([[0.25] * 8], [6])[0, 0]) < 4 * error


@given(shares=st.lists(st.floats(0, 1), min_size=1, max_size=16), most=st.integers(1, 50))
def test_it_rises_from_top_k_to_all(shares: list[float], most: int) -> None:
    """None for no token, the sum of shares (top-k) for one, never more than there are experts."""
    found = expected_distinct([shares], range(most + 1))[0]
    assert found[0] == 0
    assert found[1] == pytest.approx(sum(shares))
    assert np.all(np.diff(found) >= -1e-12)
    assert found[-1] <= sum(share > 0 for share in shares) + 1e-12


def _cells(points: dict[tuple[int, int], float]) -> list[Cell]:
    return [Cell(at=at, median_s=value, spread=0.1, repeats=5) for at, value in points.items()]


def test_each_row_is_read_at_the_experts_its_tokens_hit() -> None:
    """Four experts, top-2: one token hits 2, two hit 3, read between cells at 1 and 4 experts.

    The row of one token, 10 to 40, gives 20; that of two, 14 to 44, gives 34.
    """
    cells = _cells({(1, 1): 10, (1, 4): 40, (2, 1): 14, (2, 4): 44})
    curve = experts_curve(cells, [[0.5] * 4])
    assert (curve(1), curve(2)) == (20, 34)


def test_between_rows_the_path_is_straight() -> None:
    """Rows at 1 and 3 tokens hit 2 and 3.5 experts: 20 and 35, so 27.5 at two tokens."""
    cells = _cells({(t, d): 10 * d for t in (1, 3) for d in (1, 4)})
    assert experts_curve(cells, [[0.5] * 4])(2) == pytest.approx(27.5)


def test_layers_are_averaged() -> None:
    """One token hits 2 experts in one layer, 20, and 3 in the other, 30."""
    cells = _cells({(1, 1): 10, (1, 4): 40})
    assert experts_curve(cells, [[0.5] * 4, [1, 1, 1, 0]])(1) == pytest.approx(25)


def test_reading_costs_nothing_where_experts_do_not_matter() -> None:
    """Compute-bound rows are flat over the experts hit, and linear in tokens."""
    cells = _cells({(t, d): t for t in (1, 64) for d in (1, 4)})
    curve = experts_curve(cells, [[0.5] * 4])
    assert [curve(t) for t in (1, 30, 128)] == pytest.approx([1, 30, 128])
