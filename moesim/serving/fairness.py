"""How evenly tenants are served: Jain's index over their speeds.

J = (sum x)^2 / (n sum x^2) is 1 where all n tenants are served alike and 1/n where one gets
everything (Jain, Chiu and Hawe 1984, DEC-TR-301).
"""

import numpy as np

from moesim.serving.columns import Columns, Table
from moesim.serving.iterations import Floats


def jain(values: Floats) -> float:
    """Return Jain's index of non-negative values, (n,); nothing for anybody is even.

    >>> jain(np.array([1.0, 1.0])), jain(np.array([1.0, 0.0, 0.0, 0.0]))
    (1.0, 0.25)
    """
    squares = len(values) * float((values * values).sum())
    return float(values.sum()) ** 2 / squares if squares else 1.0


def fairness(records: Table) -> float | None:
    """Return Jain's index of the tenants' mean speeds; None where there is a single tenant.

    The speed of a request is its output tokens per second of turnaround; of one that was refused,
    or is not finished, 0.
    """
    columns = Columns.of(records)
    names, tenant = np.unique(columns["tenant"], return_inverse=True)
    if len(names) < 2:
        return None
    turnaround_s = columns["finish_s"] - columns["arrival_s"]
    with np.errstate(divide="ignore"):
        speed = np.where(np.isnan(turnaround_s), 0.0, columns["output_tokens"] / turnaround_s)
    return jain(np.bincount(tenant, weights=speed) / np.bincount(tenant))
