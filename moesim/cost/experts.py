"""What a layer's experts cost: how many distinct ones an iteration hits, and how long that takes.

A token reaches expert e of a layer with probability p_e (its share; the shares of a layer sum to
top-k). For T tokens routed independently the expected number of distinct experts is the sum over e
of 1 - (1 - p_e)^T. Uniform routing of 8 experts, top-2, gives 8 (1 - 0.75^T).

The duration depends on tokens and distinct experts. It is read off the measured rows at the number
of experts expected for their tokens, and interpolated between rows along that path.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.cost.curves import Curve, curve_of, rows_of
from moesim.cost.profile import Cell


def expected_distinct(
    popularity: Sequence[Sequence[float]], tokens: Sequence[float]
) -> NDArray[np.float64]:
    """Return the expected distinct experts for each number of tokens, (layers, len(tokens)).

    >>> expected_distinct([[0.25] * 8], [0, 1, 2]).round(3).tolist()
    [[0.0, 2.0, 3.5]]
    """
    shares = np.clip(np.asarray(popularity, dtype=float), 0.0, 1.0)  # [L, E]
    missed = (1.0 - shares)[:, :, None] ** np.asarray(tokens, dtype=float)  # [L, E, T]
    return np.asarray((1.0 - missed).sum(axis=1))


def experts_curve(cells: Sequence[Cell], popularity: Sequence[Sequence[float]]) -> Curve:
    """Return the duration of one layer's experts over the iteration's tokens, mean over layers.

    Cells are at (tokens, distinct experts); at each measured number of tokens the layers' expected
    distinct experts choose where the row is read.
    """
    rows = rows_of(cells)
    distinct = expected_distinct(popularity, list(rows))  # [L, rows]
    points = []
    for (tokens, row), expected in zip(rows.items(), distinct.T, strict=True):
        over_distinct = curve_of(row)
        points.append((tokens, float(np.mean([over_distinct(d) for d in expected]))))
    return curve_of(points)
