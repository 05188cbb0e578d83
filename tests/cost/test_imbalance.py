"""The most loaded rank: by hand, against routers drawn at random, and in order."""

from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.cost.experts import expected_distinct
from moesim.cost.imbalance import largest_distinct, largest_share


def _routed(logits: NDArray[np.float64], top: int, draws: int, tokens: int) -> NDArray[np.bool_]:
    """Draw which experts tokens visit, (draws, tokens, experts), by noisy top-k."""
    rng = np.random.default_rng(0)
    noisy = logits + rng.gumbel(size=(draws * tokens, len(logits)))
    chosen = np.argpartition(-noisy, top - 1, axis=1)[:, :top]
    visited = np.zeros(noisy.shape, dtype=bool)
    np.put_along_axis(visited, chosen, True, axis=1)
    return visited.reshape(draws, tokens, len(logits))


@pytest.mark.parametrize("skew", [0.0, 0.7])
@pytest.mark.parametrize("tokens", [1, 4, 16, 64, 512])
@pytest.mark.parametrize(("experts", "top", "parts"), [(8, 2, 2), (8, 2, 8), (64, 4, 4)])
def test_against_routers_drawn_at_random(
    experts: int, top: int, parts: int, tokens: int, skew: float
) -> None:
    """Both to 10 % for any number of tokens, visits to 2 % where there are many.

    The popularity is that of the same routers over 40,000 tokens.
    """
    logits = skew * np.random.default_rng(1).standard_normal(experts)
    popularity = [_routed(logits, top, 400, 100).mean(axis=(0, 1)).tolist()]
    visited = _routed(logits, top, 2**13 // tokens, tokens)
    dealt = (*visited.shape[:2], parts, -1)
    visits = visited.reshape(dealt).sum(axis=(1, 3)).max(axis=1).mean()
    distinct = visited.reshape(dealt).any(axis=1).sum(axis=2).max(axis=1).mean()
    share_of_visits, share_of_distinct = largest_share(popularity, tokens, parts)
    hit = expected_distinct(popularity, [tokens])[0, 0]
    close = 0.02 if tokens > 100 else 0.1
    assert share_of_visits * tokens * top == pytest.approx(visits, rel=close)
    assert share_of_distinct * hit == pytest.approx(distinct, rel=close)


def test_one_token_by_hand() -> None:
    """Four of 16 experts on 4 ranks of 4: all on different ones 256 times in 1820, and so on.

    1 on the fullest: 4^4; 4: 4; 3: 4 x 4 x 12; 2: the other 1820 - 256 - 4 - 192 = 1368.
    """
    expected = (256 + 2 * 1368 + 3 * 192 + 4 * 4) / comb(16, 4)
    found = largest_distinct(np.full((4, 4), 0.25), 4.0, 1)
    assert found == pytest.approx(expected)


def test_ranks_with_an_expert_each_have_one() -> None:
    """However many tokens there are; visits go down from one whole to an eighth of all."""
    for tokens in (1, 2, 8, 64):
        hit = expected_distinct([[0.25] * 8], [tokens])[0, 0]
        assert largest_share([[0.25] * 8], tokens, 8)[1] * hit == pytest.approx(1)
    assert largest_share([[0.25] * 8], 10**6, 8)[0] == pytest.approx(1 / 8, rel=0.01)


def test_a_rank_with_all_the_popular_experts() -> None:
    """Two experts that every token visits on one of two ranks: it has everything."""
    visits, distinct = largest_share([[1.0, 1.0, 0.0, 0.0]], 100, 2)
    assert (visits, distinct) == pytest.approx((1, 1))
    visits, distinct = largest_share([[1.0, 0.0, 1.0, 0.0]], 100, 2)
    assert (visits, distinct) == pytest.approx((0.5, 0.5))


def test_layers_count_alike() -> None:
    """One layer of each kind is between the two."""
    uneven, even = [1.0, 1.0, 0.0, 0.0], [1.0, 0.0, 1.0, 0.0]
    assert largest_share([uneven, even], 100, 2) == pytest.approx((0.75, 0.75))


@given(st.integers(1, 2000), st.sampled_from([2, 4, 8]), st.integers(0, 10))
def test_a_share_is_neither_less_than_fair_nor_more_than_all(
    tokens: int, parts: int, seed: int
) -> None:
    weights = np.random.default_rng(seed).dirichlet([2.0] * 16)
    popularity = [np.minimum(1, 4 * weights).tolist()]
    for share in largest_share(popularity, tokens, parts):
        assert 1 / parts - 1e-9 <= share <= 1 + 1e-9
