"""The worst rows of a table, with what each hangs on."""

from dataclasses import dataclass

import pandas as pd

from moesim.evidence.accuracy.causes import Cause, cause_of
from moesim.evidence.accuracy.outcome import Accuracy

SHOWN = 12
"""Worst rows that are explained."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Worst:
    """A row that is far off, its error (with the factor where there is one), and its cause."""

    row: pd.Series
    error: float
    factored: bool
    cause: Cause


def worst(found: Accuracy, count: int = SHOWN) -> list[Worst]:
    """Return the rows with the largest errors, largest first, at most one an experiment.

    An error is that of the logarithm, so that half counts as much as double. With a factor it is
    the error that the factor leaves.
    """
    rows = found.rows.assign(place=range(len(found.rows)))
    rows = rows[rows["judged"]]
    left = rows["fitted_error"].where(rows["fitted_error"].notna(), rows["error"])
    size = (left + 1).map(_distance)
    shown: list[Worst] = []
    seen = set()
    for index in size.sort_values(ascending=False).index:
        row = rows.loc[index]
        figure = found.figures[int(row["place"])]
        if figure.experiment in seen:
            continue
        seen.add(figure.experiment)
        factored = bool(pd.notna(row["fitted_error"]))
        value = row["fitted"] if factored else row["predicted"]
        cause = cause_of(figure, float(value), found.costs, found.paces.get(figure))
        shown.append(Worst(row=row, error=float(left[index]), factored=factored, cause=cause))
        if len(shown) == count:
            break
    return shown


def _distance(ratio: float) -> float:
    return max(ratio, 1 / ratio)
