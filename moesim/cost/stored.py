"""Experts that run from a store of several variants: the own cells, times a measured factor.

A store of variants holds more copies than one layer has experts, and where some are absent experts
run one after another. Both cost time that the model alone does not take. Factors are by cell, so
that they hold for a profile that is redrawn within its errors too.
"""

from collections.abc import Sequence

import numpy as np

from moesim.cost.experts import experts_curve
from moesim.cost.profile import REPLAY, Cell, Profile, Stored

Place = tuple[float, ...]


def through_store(profile: Profile, copies: int, *, complete: bool) -> Profile:
    """Return the profile of a model whose experts are in a store of so many copies.

    `complete` is whether all have a place on the device; where not, experts run one by one, which
    no graph holds. Else the same profile where that was never measured.
    """
    profile = profile if complete else profile.launched()
    measured = profile.transfers.stored if profile.transfers else []
    alike = sorted((s for s in measured if s.complete == complete), key=lambda each: each.copies)
    if not alike:
        return profile
    factors = _factors(alike, copies)
    cells = [_times(cell, factors) for cell in profile.operations["experts"]]
    operations = {**profile.operations, "experts": cells}
    if REPLAY in operations:
        operations[REPLAY] = _longer(profile, cells)
    return profile.model_copy(update={"operations": operations})


def _longer(profile: Profile, experts: Sequence[Cell]) -> list[Cell]:
    """Return whole replayed iterations, longer by what their experts are."""
    layers, popularity = profile.spec.num_hidden_layers, profile.replayed_router.popularity
    before, after = (
        experts_curve(cells, popularity) for cells in (profile.operations["experts"], experts)
    )
    longer_s = [
        layers * (after(cell.at[0]) - before(cell.at[0])) for cell in profile.operations[REPLAY]
    ]
    return [
        cell.model_copy(update={"median_s": max(0.0, cell.median_s + more_s)})
        for cell, more_s in zip(profile.operations[REPLAY], longer_s, strict=True)
    ]


def _factors(alike: Sequence[Stored], copies: int) -> dict[Place, float]:
    """Return each place's factor; between two sizes of store in proportion, beyond as there."""
    sizes = [each.copies for each in alike]
    tables = [{(tokens, distinct): f for tokens, distinct, f in each.factors} for each in alike]
    common = [place for place in tables[0] if all(place in table for table in tables)]
    return {
        place: float(np.interp(copies, sizes, [table[place] for table in tables]))
        for place in common
    }


def _times(cell: Cell, factors: dict[Place, float]) -> Cell:
    """Return a cell with its factor; the middle one of all where its place was not measured."""
    known = factors.get(cell.at[:2])
    if known is None:
        known = float(np.median(list(factors.values()))) if factors else 1.0
    return cell.model_copy(update={"median_s": cell.median_s * known})
