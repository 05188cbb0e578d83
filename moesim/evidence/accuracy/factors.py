"""One factor for each engine version on each device: what iterations take over what is predicted.

It is the median over rates and times per token, and never fitted on what it is judged by: the rows
of one pair of prompt and answer lengths are judged with the factor of all other pairs. The time to
the first token has no say in it: that hangs on who waits for whom as much as on iterations. The
interval is that of the same other rows' residuals, of first tokens apart where there are twenty:
so many it takes to hold nine in ten. A device is one under whatever names a table has for it.
"""

from collections.abc import Sequence
from math import exp, log
from statistics import median

import numpy as np
import pandas as pd

from moesim.evidence.accuracy.predictions import quantile
from moesim.simulation.replications import COVERAGE

FIRST = "TTFT"
"""What times to the first token are called."""

FEWEST = 5
"""Rows from which a factor is fitted at least."""

FEWEST_FOLDS = 3
"""Pairs of lengths at least, so that each is judged by more than one other."""

FACTORED = ("software", "device")
"""What has one factor."""

ENOUGH = 20
"""Rows of a kind from which an interval is theirs alone, so that one lies beyond either end."""


def with_factors(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows with `factor`, `fitted`, `fitted_low` and `fitted_high`; NaN without.

    Rows have `software`, `device`, `isl`, `osl`, `kind` (rate or latency), `figure`, `measured`,
    `bare` (predicted by the profile alone), and `scales`: whether slower iterations make the
    figure worse by just that factor.
    """
    rows = rows.copy()
    names = ["factor", "fitted", "fitted_low", "fitted_high"]
    rows[names] = np.nan
    for _, group in rows[rows["scales"]].groupby(list(FACTORED)):
        if folds_of(group) < FEWEST_FOLDS:
            continue
        for _, fold in group.groupby(["isl", "osl"], dropna=False):
            others = group.drop(fold.index)
            settled = paced(others)
            if len(settled) < FEWEST:
                continue
            factor = median(slowness(settled))
            for place, row in fold.iterrows():
                alike = others[others["figure"] == FIRST] if row["figure"] == FIRST else settled
                ends = _ends(sorted(slowness(alike if len(alike) >= ENOUGH else others)))
                values = [_slowed(row, exp(x)) for x in (factor, *ends)]
                rows.loc[place, names] = [exp(factor), values[0], *sorted(values[1:])]
    return rows


def folds_of(rows: pd.DataFrame) -> int:
    """Return how many pairs of prompt and answer lengths rows have."""
    return rows.groupby(["isl", "osl"], dropna=False).ngroups


def factorless(rows: pd.DataFrame) -> list[str]:
    """Say for which software and device no factor was fitted, and what rows that would take."""
    said = []
    for names, group in rows[rows["scales"]].groupby(list(FACTORED), sort=False):
        if group["factor"].isna().all():
            software, device = names
            said.append(
                f"{software or '(no software)'} on {device} has {len(paced(group)):,} rates or "
                f"times per token, of {folds_of(group)} pairs of prompt and answer lengths; it "
                f"needs {FEWEST_FOLDS} pairs, and beside the rows of each pair {FEWEST} of others"
            )
    return said


def slowness(rows: pd.DataFrame) -> list[float]:
    """Return the logarithm of measured over predicted durations."""
    sign = np.where(rows["kind"] == "rate", -1.0, 1.0)
    return list(sign * np.log(rows["measured"] / rows["bare"]))


def paced(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows that go with the pace of iterations alone: all but times to first tokens."""
    return rows[rows["figure"] != FIRST]


def _ends(slower: Sequence[float]) -> tuple[float, float]:
    beyond = (1 - COVERAGE) / 2
    return quantile(slower, beyond), quantile(slower, 1 - beyond)


def _slowed(row: pd.Series, factor: float) -> float:
    predicted = float(row["bare"])
    return predicted / factor if row["kind"] == "rate" else predicted * factor


def full_factor(rows: pd.DataFrame) -> float:
    """Return the factor over all rows, as it would be used on others; 1 without rows."""
    slower = slowness(paced(rows))
    return exp(median(slower)) if slower else 1.0


def spread(rows: pd.DataFrame) -> float:
    """Return the standard deviation of the logarithms of measured over predicted."""
    slower = slowness(paced(rows))
    return float(np.std(slower)) if slower else log(1.0)
