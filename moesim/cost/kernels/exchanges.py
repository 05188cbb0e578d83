"""Exchanges between ranks: all-reduces over the bytes of a vector."""

from collections.abc import Iterable

import numpy as np

from moesim.cost.kernels.curves import MICRO, Floats, LogCurve
from moesim.cost.kernels.tables import Collective

ALL_REDUCE = "all_reduce"


class Exchanges:
    """The all-reduces of a device, by number of ranks."""

    def __init__(self, curves: Iterable[Collective]) -> None:
        self._by_ranks = {
            curve.ranks: LogCurve.through(curve.bytes, np.asarray(curve.us) * MICRO)
            for curve in curves
            if curve.operation == ALL_REDUCE
        }

    def all_reduce_s(self, ranks: int, sizes: Floats) -> tuple[Floats, str] | None:
        """Return the durations of messages of `sizes` bytes, and their basis; None where unknown.

        Between numbers of ranks in the table the next larger one's. Beyond the longest message
        the time goes with the bytes.
        """
        known = [count for count in sorted(self._by_ranks) if count >= ranks]
        if not known:
            return None
        curve = self._by_ranks[known[0]]
        end = float(np.exp(curve.log_xs[-1]))
        seconds = curve(np.maximum(sizes, 1.0)) * np.maximum(1.0, sizes / end)
        reach = "extrapolated" if sizes.max() > end or known[0] != ranks else "interpolated"
        return seconds, reach
