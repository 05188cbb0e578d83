"""A copy that shares its link, second by second."""

import pytest

from moesim.simulation.transfer import TICK_S, Transfer


def test_alone_it_takes_what_it_takes() -> None:
    """To the last bit, however often nothing changes."""
    copy = Transfer(since_s=0.3, left_s=0.1)
    copy.restretch(0.35, 1.0)
    assert copy.end_s == 0.3 + 0.1


def test_two_that_overlap_share() -> None:
    """4 s from 0 and 3 s from 2 on: both half as fast from 2 to 6 s, then the second alone.

    The first has 2 s left at 2 s and ends at 6; the second has done 2 of its 3 s by then, and ends
    at 7, when a link of 1 s a second has carried 7 s.
    """
    first, second = Transfer(since_s=0.0, left_s=4.0), Transfer(since_s=2.0, left_s=3.0)
    first.restretch(2.0, 2.0)
    second.restretch(2.0, 2.0)
    assert first.end_s == 6.0
    second.restretch(6.0, 1.0)
    assert second.end_s == 7.0


def test_rounding_is_taken_out_again() -> None:
    """What one starts later by than the same in another order of sums ends at the same tick."""
    ends = []
    for late_s in (0.0, 1e-12):
        copy = Transfer(since_s=0.1, left_s=0.7)
        copy.restretch(0.2 + late_s, 3.0)
        ends.append(copy.end_s)
    assert ends[0] == ends[1] == pytest.approx(0.2 + 0.6 * 3, abs=TICK_S / 2)


def test_it_never_ends_before_now() -> None:
    """Not even by a tick, when all is copied."""
    copy = Transfer(since_s=0.0, left_s=0.3)
    copy.restretch(0.1, 2.0)
    copy.restretch(0.5 - 1e-9, 1.0)
    assert copy.end_s >= 0.5 - 1e-9
    copy.restretch(0.5 + 1e-7, 2.0)
    assert copy.end_s == 0.5 + 1e-7
