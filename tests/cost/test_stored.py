"""Experts in a store: cells times factors, in proportion between two sizes, else as they were."""

from collections.abc import Sequence

import pytest

from moesim.cost.profile import Profile, Stored, Transfers
from moesim.cost.stored import through_store


def experts_s(profile: Profile) -> list[float]:
    return [cell.median_s for cell in profile.operations["experts"]]


def with_stores(profile: Profile, stores: Sequence[tuple[int, bool, float]]) -> Profile:
    """Return the profile with a store of each number of copies, completeness and factor."""
    places = [cell.at for cell in profile.operations["experts"]]
    stored = [
        Stored(copies=n, complete=whole, factors=[(at[0], at[1], factor) for at in places])
        for n, whole, factor in stores
    ]
    return profile.model_copy(update={"transfers": Transfers(stored=stored)})


@pytest.mark.parametrize(
    ("copies", "complete", "factor"),
    [(8, True, 1.0), (16, True, 1.5), (12, True, 1.25), (99, True, 1.5), (12, False, 2.0)],
)
def test_cells_take_the_factor_of_their_store(
    tiny_profile: Profile, copies: int, complete: bool, factor: float
) -> None:
    """Between 8 copies (1.0) and 16 (1.5) in proportion, beyond as there; one by one 2.0."""
    profile = with_stores(tiny_profile, [(16, True, 1.5), (8, True, 1.0), (8, False, 2.0)])
    found = through_store(profile, copies, complete=complete)
    assert experts_s(found) == pytest.approx([factor * s for s in experts_s(tiny_profile)])
    others = {name: cells for name, cells in found.operations.items() if name != "experts"}
    assert others == {n: c for n, c in profile.operations.items() if n != "experts"}


def test_without_a_measurement_nothing_changes(tiny_profile: Profile) -> None:
    """Old profiles, and stores of another kind, leave the cells as they are."""
    assert through_store(tiny_profile, 8, complete=True) is tiny_profile
    incomplete = with_stores(tiny_profile, [(8, False, 2.0)])
    assert through_store(incomplete, 8, complete=True) is incomplete


def test_a_place_that_was_not_measured_takes_the_middle_factor(tiny_profile: Profile) -> None:
    """Of 1, 2 and 6 that is 2."""
    stored = Stored(copies=8, complete=True, factors=[(900, 1, 1.0), (901, 1, 2.0), (902, 1, 6.0)])
    profile = tiny_profile.model_copy(update={"transfers": Transfers(stored=[stored])})
    found = through_store(profile, 8, complete=True)
    assert experts_s(found) == pytest.approx([2 * s for s in experts_s(tiny_profile)])
