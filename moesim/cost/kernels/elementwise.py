"""Kernels that only pass over activations: measured ones, else the memory roofline.

A pass reads and writes its tokens once. `PASS_SHARE` of the bandwidth and `PASS_S` to launch are
what AIConfigurator's system files take for such kernels on all three devices
(`mem_bw_empirical_scaling_factor`, `mem_empirical_constant_latency`; NVIDIA, Apache-2.0), as a
correction by observation: they are not measured here.
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np

from moesim.cost.expected import PASS_S, Rates
from moesim.cost.kernels.curves import MICRO, Floats, LogCurve
from moesim.cost.kernels.tables import Elementwise

PASS_SHARE = 0.8

VALUE_BYTES = 2
"""Bytes of an activation: 16 bits."""


class Passes:
    """All elementwise kernels of a device."""

    def __init__(self, curves: Iterable[Elementwise], rates: Rates) -> None:
        self._rates = rates
        self._by: dict[str, dict[int, LogCurve]] = defaultdict(dict)
        for curve in curves:
            self._by[curve.name][curve.width] = LogCurve.through(
                curve.tokens, np.maximum.accumulate(np.asarray(curve.us) * MICRO)
            )

    def has(self, name: str, width: int) -> bool:
        """Whether the kernel was measured at this width."""
        return width in self._by.get(name, {})

    def seconds(self, name: str, width: int, moved: float, tokens: Floats) -> tuple[Floats, str]:
        """Return the durations and their basis; `moved` are the values that a token moves."""
        if self.has(name, width):
            curve = self._by[name][width]
            end = float(np.exp(curve.log_xs[-1]))
            return curve(tokens) * np.maximum(1.0, tokens / end), curve.basis(tokens)
        rate = self._rates.bytes_per_s * PASS_SHARE
        return PASS_S + VALUE_BYTES * moved * tokens / rate, "roofline"
