"""How many distinct experts an iteration hits, from the router's measured popularity.

A token reaches expert e of a layer with probability p_e (its share; the shares of a layer sum to
top-k). For T tokens routed independently the expected number of distinct experts is the sum over e
of 1 - (1 - p_e)^T. Uniform routing of 8 experts, top-2, gives 8 (1 - 0.75^T).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray


def expected_distinct(
    popularity: Sequence[Sequence[float]], max_tokens: int
) -> NDArray[np.float64]:
    """Return the expected distinct experts, (layers, max_tokens + 1), for 0..max_tokens tokens.

    >>> expected_distinct([[0.25] * 8], 2).round(3).tolist()
    [[0.0, 2.0, 3.5]]
    """
    shares = np.clip(np.asarray(popularity, dtype=float), 0.0, 1.0)  # [L, E]
    tokens = np.arange(max_tokens + 1)
    missed = (1.0 - shares)[:, :, None] ** tokens  # [L, E, T+1]
    return np.asarray((1.0 - missed).sum(axis=1))
