"""Curves and fans: worked values, and what must hold however noisy the cells are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.curves import Curve, Fan, Sheet
from moesim.cost.profile import Cell


def _cells(points: dict[tuple[float, ...], float]) -> list[Cell]:
    return [Cell(at=at, median_s=seconds, spread=0.1, repeats=5) for at, seconds in points.items()]


def test_a_curve_is_straight_between_its_cells() -> None:
    """Through (1, 2), (3, 6) and (4, 6): 4 at 2, 6 at 3.5; the cells come in any order."""
    curve = Curve.through(_cells({(4,): 6, (1,): 2, (3,): 6}))
    assert [curve(x) for x in (1, 2, 3, 3.5, 4)] == [2, 4, 6, 6, 6]


def test_below_the_first_cell_the_first_duration_holds() -> None:
    """A smaller operation still launches."""
    curve = Curve.through(_cells({(4,): 3, (8,): 5}))
    assert [curve(x) for x in (0, 1, 4)] == [3, 3, 3]


def test_beyond_the_last_cell_the_last_segment_goes_on() -> None:
    """From (4, 3) to (8, 5) it rises by a half: 9 at 16."""
    assert Curve.through(_cells({(4,): 3, (8,): 5}))(16) == 9


def test_a_lone_cell_is_a_constant() -> None:
    """Nothing says how it would scale."""
    curve = Curve.through(_cells({(4,): 3}))
    assert [curve(x) for x in (1, 4, 100)] == [3, 3, 3]


def test_a_cell_below_its_left_neighbour_is_lifted() -> None:
    """More tokens never take less: 5 after 6 is noise."""
    curve = Curve.through(_cells({(1,): 2, (2,): 6, (4,): 5, (8,): 7}))
    assert [curve(x) for x in (2, 3, 4, 6)] == [6, 6, 6, 6.5]


@pytest.mark.parametrize(
    ("reached", "basis"),
    [
        (3, "measured"),
        (4, "measured"),
        (5, "interpolated"),
        (8, "interpolated"),
        (9, "extrapolated"),
    ],
)
def test_a_curve_says_what_it_rests_on(reached: float, basis: str) -> None:
    """Cells at 4 and 8: up to 4 the first cell holds, beyond 8 nothing was measured."""
    assert Curve.through(_cells({(4,): 3, (8,): 5})).basis(reached) == basis


def test_a_fan_finds_the_lines_its_cells_lie_on() -> None:
    """Cells on (2 + x) + 3 x y: at (3, 4) that is 5 + 36, at (10, 10), beyond both, 12 + 300."""
    fan = Fan.through(_cells({(x, y): 2 + x + 3 * x * y for x in (1, 2, 5) for y in (1, 3, 6)}))
    assert fan.line(3) == pytest.approx((5, 9))
    assert fan(3, 4) == pytest.approx(41)
    assert fan(1, 6) == pytest.approx(21)
    assert fan(10, 10) == pytest.approx(312)


def test_many_short_contexts_may_take_less_than_one_long_one() -> None:
    """One sequence of 64 takes 64, four of 16 take 16, and their slopes stay as they were measured.

    Two of 32 take half of 64, no more than the four of 16 that share them: 2 x 1/2 = 4 x 1/4.
    """
    fan = Fan.through(_cells({(1, 0): 0, (1, 64): 64, (4, 0): 0, (4, 64): 16}))
    assert [fan(1, 64), fan(2, 64), fan(4, 64), fan(8, 64)] == pytest.approx([64, 32, 16, 8])
    intercepts, slopes = fan.table(8)
    assert slopes == pytest.approx([fan.line(x)[1] for x in range(9)])
    assert intercepts == pytest.approx(np.zeros(9))


def test_one_sequence_does_not_make_many_slow() -> None:
    """Alone a sequence reads at a fifth of the bandwidth, 64 together at all of it."""
    each_s = {1: 5e-10, 8: 2e-10, 64: 1e-10}
    known = {
        (count, count * context): 5e-6 + slope * count * context
        for count, slope in each_s.items()
        for context in (128, 1024, 32768)
    }
    fan = Fan.through(_cells(known))
    for at, seconds in known.items():
        assert fan(*at) == pytest.approx(seconds, rel=1e-6)


def test_a_row_that_falls_is_flattened() -> None:
    """A duration cannot fall with context; 6 at 0 and 3 at 9 become their weighted mean, 4.

    The fit weighs by 1 / duration, so that errors count in per cent: (6/6 + 3/3) / (1/6 + 1/3).
    """
    fan = Fan.through(_cells({(1, 0): 6, (1, 9): 3}))
    assert [fan(1, 0), fan(1, 9), fan(1, 100)] == pytest.approx([4, 4, 4])


def test_a_row_that_would_start_below_zero_starts_at_zero() -> None:
    """Through (1, 1) and (2, 4) a line would start at -2."""
    fan = Fan.through(_cells({(1, 1): 1, (1, 2): 4}))
    assert fan(1, 0) == 0
    assert 1 < fan(1, 1) < fan(1, 2) < 4


@pytest.mark.parametrize(
    ("x", "y", "basis"),
    [
        (2, 9, "measured"),
        (4, 5, "interpolated"),
        (5, 5, "extrapolated"),
        (2, 10, "extrapolated"),
    ],
)
def test_a_fan_says_what_it_rests_on(x: float, y: float, basis: str) -> None:
    """Rows at 2 and 4, each from 0 to 9: on the first row the line is the measurement."""
    fan = Fan.through(_cells({(row, column): row + column for row in (2, 4) for column in (0, 9)}))
    assert fan.basis(x, y) == basis


def test_a_sheet_is_bilinear() -> None:
    """Corners (1, 0): 1, (1, 4): 3, (3, 0): 5, (3, 4): 11; halfway along both is their mean, 5."""
    sheet = Sheet.through(_cells({(1, 0): 1, (1, 4): 3, (3, 0): 5, (3, 4): 11}))
    assert sheet(2, 2) == 5
    assert [sheet(1, 2), sheet(3, 2), sheet(2, 0), sheet(2, 4)] == [2, 8, 3, 7]


def test_a_sheet_holds_before_its_first_cells_and_goes_on_after_its_last() -> None:
    """The same corners: constant below (1, 0), and beyond (3, 4) as steep as before it."""
    sheet = Sheet.through(_cells({(1, 0): 1, (1, 4): 3, (3, 0): 5, (3, 4): 11}))
    assert sheet(0, 2) == sheet(1, 2)
    assert sheet(2, -1) == sheet(2, 0)
    assert sheet(5, 4) == 11 + (11 - 3)
    assert sheet(3, 8) == 11 + (11 - 5)


def test_rows_of_a_sheet_may_end_early() -> None:
    """The row at 3 ends at 2 with a slope of 3; read at 4 it goes on to 11."""
    sheet = Sheet.through(_cells({(1, 0): 1, (1, 4): 3, (3, 0): 5, (3, 2): 8}))
    assert sheet(3, 4) == 11


def test_a_row_of_a_sheet_is_not_below_the_one_before() -> None:
    """More new tokens after the same context never take less: 2 under 3 is noise."""
    sheet = Sheet.through(_cells({(1, 0): 3, (1, 4): 7, (2, 0): 2, (2, 4): 9}))
    assert [sheet(2, 0), sheet(2, 4)] == [3, 9]


@pytest.mark.parametrize(
    ("x", "y", "basis"),
    [
        (2, 0, "measured"),
        (2, 9, "interpolated"),
        (4, 0, "interpolated"),
        (5, 0, "extrapolated"),
        (2, 10, "extrapolated"),
    ],
)
def test_a_sheet_says_what_it_rests_on(x: float, y: float, basis: str) -> None:
    """Rows at 2 and 4, columns at 0 and 9."""
    corners = {(row, column): row + column for row in (2, 4) for column in (0, 9)}
    assert Sheet.through(_cells(corners)).basis(x, y) == basis


seconds = st.floats(0, 10)


@given(
    cells=st.dictionaries(st.integers(0, 100).map(lambda x: (float(x),)), seconds, min_size=1),
    asked=st.lists(st.floats(0, 200), min_size=2),
)
def test_no_noise_makes_more_take_less(
    cells: dict[tuple[float, ...], float], asked: list[float]
) -> None:
    """A curve through any cells never falls and never goes below zero."""
    curve = Curve.through(_cells(cells))
    found = [curve(x) for x in sorted(asked)]
    assert found[0] >= 0
    assert np.all(np.diff(found) >= -1e-9)


@pytest.mark.parametrize("kind", [Fan, Sheet])
@given(
    noise=st.lists(seconds, min_size=12, max_size=12),
    asked=st.lists(st.floats(0, 200), min_size=2),
    share=st.floats(0, 1),
)
def test_no_noise_turns_a_surface_around(
    kind: type[Fan | Sheet], noise: list[float], asked: list[float], share: float
) -> None:
    """It rises with either coordinate where it was measured, and is never negative.

    A fan rises with the first at an equal share of the second.
    """
    at = [(x, y) for x in (1.0, 4.0, 16.0, 64.0) for y in (1.0, 10.0, 50.0)]
    surface = kind.through(_cells(dict(zip(at, noise, strict=True))))
    shared = kind is Fan
    across = [surface(x, 50 * share * (max(1, x) if shared else 1)) for x in sorted(asked)]
    along = [surface(min(asked), y) for y in sorted(asked)]
    for found in (across, along):
        assert found[0] >= 0
        assert np.all(np.diff(found) >= -1e-9)
