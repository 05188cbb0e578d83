"""A shared link: theory, a brute force of both kinds, and no bandwidth out of nothing."""

from collections.abc import Callable
from itertools import combinations
from math import factorial, prod

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.link import fair_level, stretch
from moesim.errors import ScenarioError

SHARES = st.lists(st.floats(0, 1), min_size=1, max_size=7)
SOME = st.lists(st.floats(0, 0.999), min_size=1, max_size=5)


def test_alone_nobody_waits() -> None:
    """Whatever it asks for; and nobody at all is no error."""
    assert [stretch([share]) for share in (0.0, 0.3, 1.0)] == [(1.0,)] * 3
    assert stretch([]) == ()


def test_two_find_each_other_as_often_as_each_is_there() -> None:
    """One that copies for 0.2 of its time when alone stretches the other's copies by 1.2."""
    assert stretch([0.2, 0.7]) == pytest.approx((1.7, 1.2))


def test_who_always_copies_shares_evenly() -> None:
    """Seven saturated replicas have a seventh of the link each."""
    assert [stretch([1.0] * n)[0] for n in range(1, 8)] == pytest.approx(range(1, 8))


@given(SOME)
def test_it_is_the_sum_over_all_states(shares: list[float]) -> None:
    """Product form: a set A on the link has weight |A|! prod of D in A, prod of Z outside.

    Link time is a member's mean presence over its passes, 1 / (Z + R) a second; so R follows.
    """
    present = _presence(shares)
    for share, presence, factor in zip(shares, present, stretch(shares), strict=True):
        stretched_s = presence / (1 - presence) * (1 - share)  # R = Z Q / (1 - Q)
        assert stretched_s == pytest.approx(factor * share, rel=1e-9, abs=1e-12)


def _presence(shares: list[float]) -> list[float]:
    members = range(len(shares))
    weights = {
        on: factorial(size) * prod(shares[i] if i in on else 1 - shares[i] for i in members)
        for size in range(len(shares) + 1)
        for on in combinations(members, size)
    }
    whole = sum(weights.values())
    return [sum(w for on, w in weights.items() if i in on) / whole for i in members]


LOADS = [
    ([1.0, 1.0], [1.0, 1.0]),
    ([1.0, 1.3], [1.0, 0.7]),
    ([1.0, 2.0, 3.0], [1.0, 1.0, 1.0]),
    ([5.0, 3.1, 2.2, 0.9], [1.0, 1.3, 0.4, 2.0]),
]
"""Seconds without the link, and on it, of each replica."""


@pytest.mark.parametrize(("think_s", "link_s"), LOADS)
@pytest.mark.parametrize(("jitter", "tolerance"), [(0.2, 0.03), (0.0, 0.12)])
def test_it_is_what_sharing_does(
    think_s: list[float], link_s: list[float], jitter: float, tolerance: float
) -> None:
    """Replicas that go round beside each other, second by second, from any phase.

    Where their times vary by 20 % either way, as batches do, the averages are those of product
    form, to the 2 % by which so few rounds are off. Where they never vary and are multiples of each
    other, the phase they begin with stays: two equal ones may always collide, or never, and over
    all phases the formula is up to 11 % below.
    """
    rng = np.random.default_rng(0)

    def vary(mean_s: float) -> float:
        return mean_s * rng.uniform(1 - jitter, 1 + jitter)

    runs = np.array([_go_round(think_s, link_s, vary, rng, until_s=80) for _ in range(200)])
    spent_s, asked_s = runs.sum(axis=0)
    shares = [d / (z + d) for z, d in zip(think_s, link_s, strict=True)]
    assert stretch(shares) == pytest.approx(spent_s / asked_s, rel=tolerance)


def _go_round(
    think_s: list[float],
    link_s: list[float],
    vary: Callable[[float], float],
    rng: np.random.Generator,
    until_s: float,
) -> tuple[list[float], list[float]]:
    """Return for each replica the seconds that its finished copies took, and took alone."""
    everybody = range(len(think_s))
    left = [vary(z) * rng.random() for z in think_s]
    begun: list[tuple[float, float] | None] = [None] * len(left)
    spent, asked, now = [0.0] * len(left), [0.0] * len(left), 0.0
    while now < until_s:
        crowd = sum(start is not None for start in begun)
        pace = [1 / crowd if begun[i] else 1.0 for i in everybody]
        step = min(left[i] / pace[i] for i in everybody)
        now += step
        for i in everybody:
            left[i] -= step * pace[i]
            if left[i] > 1e-12:
                continue
            start = begun[i]
            if start is None:
                left[i] = vary(link_s[i])
                begun[i] = (now, left[i])
            else:
                spent[i] += now - start[0]
                asked[i] += start[1]
                left[i], begun[i] = vary(think_s[i]), None
    return spent, asked


@given(st.integers(1, 4), SHARES)
def test_who_never_leaves_fills_the_link(copying: int, shares: list[float]) -> None:
    """With one on it all the time the link is never idle: a change of model beside expert loads."""
    shares = [1.0] * copying + shares
    used = [s / (1 - s + f * s) for s, f in zip(shares, stretch(shares), strict=True)]
    assert sum(used) == pytest.approx(1)
    assert used[:copying] == pytest.approx([used[0]] * copying)


@given(SHARES, st.data())
def test_sharing_makes_no_bandwidth(shares: list[float], data: st.DataObject) -> None:
    """Whatever each iteration asks for, up to the share given: all together at most the link."""
    used = 0.0
    for share, factor in zip(shares, stretch(shares), strict=True):
        demand = data.draw(st.floats(0, share))
        used += demand / (1 - demand + factor * demand)
    assert used <= 1 + 1e-9


@given(
    st.lists(
        st.tuples(st.floats(0, 1), st.floats(0, 1), st.floats(0, 1), st.floats(0.01, 1)),
        min_size=1,
        max_size=7,
    )
)
def test_nor_does_overlapping(iterations: list[tuple[float, float, float, float]]) -> None:
    """Iterations max(c, f hidden) + f exposed + rest long, as many as replicas; link time in each.

    Without `overlapped` two that hide 0.6 s behind 1 s would use 1.2 links.
    """
    hidden, exposed, compute, rest = np.array(iterations).T

    def used(factor: np.ndarray | float) -> np.ndarray:
        whole = np.maximum(compute, factor * hidden) + factor * exposed + rest
        return np.asarray((hidden + exposed) / whole)

    factors = np.array(stretch(used(1.0).tolist(), overlapped=True))
    assert used(factors).sum() <= 1 + 1e-9


def test_hidden_copies_can_fill_the_link() -> None:
    """Two that hide 0.6 s of copies behind 1 s: the link is full, each copy takes twice as long."""
    assert stretch([0.6, 0.6]) == pytest.approx((1.6, 1.6))
    assert stretch([0.6, 0.6], overlapped=True) == pytest.approx((2.0, 2.0))
    assert stretch([0.3, 0.3], overlapped=True) == stretch([0.3, 0.3])


@given(SHARES, st.floats(0, 1), st.booleans())
def test_another_member_only_slows(shares: list[float], more: float, overlapped: bool) -> None:
    """No factor is below 1 or above the number of members, and none falls when one joins."""
    before = stretch(shares, overlapped=overlapped)
    after = stretch([*shares, more], overlapped=overlapped)
    assert all(1 <= factor <= len(shares) + 1e-9 for factor in before)
    assert all(b <= a + 1e-9 for b, a in zip(before, after, strict=False))


@given(SHARES)
def test_the_order_does_not_matter(shares: list[float]) -> None:
    """Each keeps its own factor wherever it stands."""
    backwards = stretch(shares[::-1])
    assert backwards[::-1] == pytest.approx(stretch(shares))


@given(SHARES)
def test_the_fair_level_divides_the_link(shares: list[float]) -> None:
    """All is used, or all are served."""
    level = fair_level(shares)
    assert sum(min(share, level) for share in shares) == pytest.approx(min(1, sum(shares)))


def test_many_alike_are_quick() -> None:
    """48 clients of one GPU, the most that MPS takes, are 49 groups and not 2^48."""
    factors = stretch([0.5] * 48)
    assert factors[0] == pytest.approx(47, abs=0.01)  # the link is full: 48 D of every Z + f D


@pytest.mark.parametrize(
    ("shares", "message"),
    [
        ([0.5, 1.5], r"link share: 1\.5 must be between 0 and 1"),
        ([-0.1], r"link share: -0\.1 must be"),
        ([float("nan")], r"link share: nan must be"),
        ([n / 40 for n in range(17)], r"17 unlike replicas share one; place fewer"),
    ],
)
def test_what_cannot_be(shares: list[float], message: str) -> None:
    """One line says what."""
    with pytest.raises(ScenarioError, match=message):
        stretch(shares)
