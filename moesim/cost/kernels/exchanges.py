"""Exchanges between ranks: all-reduces over the bytes of a vector."""

from collections.abc import Iterable, Iterator

import numpy as np

from moesim.cost.kernels.curves import MICRO, Floats, LogCurve
from moesim.cost.kernels.tables import Collective
from moesim.facts.hardware import Device

ALL_REDUCE = "all_reduce"

CONTRADICTS = 2.0
"""Times the duration by the device's file from which on a table is of another kind of host. Fits of
one host's tables are off by 1.6 at most (benchmarks/fit_collectives.py)."""


def contradictions(curves: Iterable[Collective], device: Device) -> Iterator[str]:
    """Yield where long all-reduces take far longer or shorter than the device's file says."""
    for curve in curves:
        reduce = device.all_reduce.get(curve.ranks)
        if curve.operation != ALL_REDUCE or reduce is None:
            continue
        size, taken_us = max(zip(curve.bytes, curve.us, strict=True))
        ratio = taken_us * MICRO / reduce.seconds(size)
        if not 1 / CONTRADICTS < ratio < CONTRADICTS:
            yield (
                f"collectives: all-reduces of {size:,} B over {curve.ranks} devices take "
                f"{ratio:.2g} times as long as by the file of {device.name}: another kind of host"
            )


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
