"""Shares as they are written, and what they come to in whole units."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.slices.part import Part, read_part
from engine.slices.shares import portions, read_share
from moesim.errors import EngineError


@pytest.mark.parametrize(
    ("text", "share"), [("1/2", (1, 2)), ("40%", (2, 5)), (" 12.5 % ", (1, 8)), ("1", (1, 1))]
)
def test_a_share_is_a_fraction_or_a_percentage(text: str, share: tuple[int, int]) -> None:
    assert read_share(text) == Fraction(*share)


@pytest.mark.parametrize("text", ["", "half", "0", "-1/2", "3/2", "1/0", "50 % of it", "nan"])
def test_what_is_no_share_is_refused(text: str) -> None:
    with pytest.raises(EngineError, match=r"--share: .* is no share of a device; write it as 1/2"):
        read_share(text)


@given(
    units=st.integers(1, 200),
    parts=st.lists(st.integers(1, 100), min_size=1, max_size=6),
)
def test_portions_are_never_more_than_their_shares(units: int, parts: list[int]) -> None:
    """Nor less by a unit or more, and all of them are on the device."""
    shares = [Fraction(part, sum(parts)) for part in parts]
    if any(units * share < 1 for share in shares):
        with pytest.raises(EngineError, match="is less than one"):
            portions(units, shares, "cores")
        return
    found = portions(units, shares, "cores")
    assert sum(found) <= units
    assert all(0 <= units * share - count < 1 for share, count in zip(shares, found, strict=True))


def test_what_is_advised_is_enough() -> None:
    """Of three groups a third is one; 33.3 % would be none."""
    with pytest.raises(EngineError, match=r"10 % of 3 groups is less than one; give 33.4 % or"):
        portions(3, [Fraction(1, 10)], "groups")
    assert portions(3, [read_share("33.4 %")], "groups") == [1]


def test_more_than_one_device_is_refused() -> None:
    with pytest.raises(EngineError, match="shares: 60 %, 50 % are more than one device"):
        portions(10, [Fraction(3, 5), Fraction(1, 2)], "cores")


def test_a_part_is_read_back() -> None:
    part = Part(units=56, of=132, what="SMs")
    assert str(part) == "56/132 SMs"
    assert read_part(str(part)) == part
    assert part.share == Fraction(14, 33)
