"""Whose turn it is on a device that several models share."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving.turns import POLICIES, Moment, Standing, next_turn, stays_until_s

NOTHING = Standing()


def moment(loaded: int = 0, *, now_s: float = 10.0, since_s: float = 0.0, finished: bool = False):
    return Moment(now_s=now_s, loaded=loaded, since_s=since_s, finished=finished)


@pytest.mark.parametrize("policy", POLICIES)
def test_nobody_is_served_where_nobody_waits(policy: str) -> None:
    assert next_turn(policy, [NOTHING, NOTHING], moment(), 1.0) is None


@pytest.mark.parametrize("policy", POLICIES)
@given(
    unfinished=st.lists(st.integers(0, 3), min_size=1, max_size=4).filter(any),
    loaded=st.integers(0, 3),
    finished=st.booleans(),
)
def test_who_is_served_has_something_to_do(
    policy: str, unfinished: list[int], loaded: int, finished: bool
) -> None:
    """Whatever the policy, a device is never given to a model without requests."""
    standings = [Standing(n, float(n), 0.0) if n else NOTHING for n in unfinished]
    asked = moment(loaded % len(standings), finished=finished)
    assert standings[next_turn(policy, standings, asked, 5.0)].unfinished


def test_fcfs_serves_the_oldest() -> None:
    """The other model's request came first, so it is next, even while this one's runs."""
    assert next_turn("fcfs", [Standing(3, 4.0, 0), Standing(1, 2.0, 0)], moment(0)) == 1


def test_the_longest_queue_is_looked_for_when_a_request_finishes() -> None:
    standings = [Standing(1, 0.0, 0), Standing(5, 1.0, 0)]
    assert next_turn("longest_queue", standings, moment(0)) == 0
    assert next_turn("longest_queue", standings, moment(0, finished=True)) == 1


def test_a_quantum_ends_for_who_waits() -> None:
    """After 2 s of the turn it is the next model's; alone, the same one goes on."""
    both = [Standing(1, 0.0, 0), NOTHING, Standing(1, 5.0, 0)]
    assert next_turn("quantum", both, moment(0, now_s=1.9), 2.0) == 0
    assert next_turn("quantum", both, moment(0, now_s=2.0), 2.0) == 2
    assert next_turn("quantum", [both[0], NOTHING], moment(0, now_s=9.0), 2.0) == 0


def test_draining_goes_on_to_the_last() -> None:
    assert next_turn("drain", [Standing(1, 9.0, 0), Standing(9, 1.0, 0)], moment(0)) == 0
    assert next_turn("drain", [NOTHING, Standing(2, 3.0, 0), Standing(1, 2.0, 0)], moment(0)) == 2


@pytest.mark.parametrize("policy", POLICIES)
def test_the_most_urgent_request_goes_before_turns(policy: str) -> None:
    """A request of level -1 takes the device from a model whose requests are of level 0."""
    assert next_turn(policy, [Standing(9, 0.0, 0), Standing(1, 8.0, -1)], moment(0), 99.0) == 1


def test_time_takes_a_turn_away_under_a_quantum_alone() -> None:
    """From 3 s on for 2 s if others wait; else not before one arrives at 7 s."""
    asked = moment(since_s=3.0)
    kept = {"others_wait": False, "arrival_s": 7.0, "quantum_s": 2.0}
    assert stays_until_s("quantum", asked, **{**kept, "others_wait": True}) == 5.0
    assert stays_until_s("quantum", asked, **kept) == 7.0
    assert stays_until_s("fcfs", asked, **kept) == float("inf")
