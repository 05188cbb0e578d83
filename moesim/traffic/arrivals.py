"""Arrival processes: when requests come, as renewal processes of a mean rate and burstiness."""

from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

Gaps = Callable[[int], NDArray[np.float64]]


class _Arrivals(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Poisson(_Arrivals):
    """Independent arrivals: exponential gaps, coefficient of variation 1."""

    kind: Literal["poisson"]
    """`poisson`."""
    rate_per_s: float = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Mean requests per second."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times in `[0, duration_s)`."""
        mean = 1 / self.rate_per_s
        return _renewal(lambda n: rng.exponential(mean, n), self.rate_per_s, duration_s)


class Gamma(_Arrivals):
    """Bursty (cv > 1) or regular (cv < 1) arrivals: gamma gaps of shape 1/cv^2."""

    kind: Literal["gamma"]
    """`gamma`."""
    rate_per_s: float = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Mean requests per second."""
    cv: float = Field(ge=0.001, le=20)
    """Coefficient of variation of the gaps: their standard deviation over their mean."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times in `[0, duration_s)`."""
        shape = self.cv**-2
        scale = 1 / (self.rate_per_s * shape)
        return _renewal(lambda n: rng.gamma(shape, scale, n), self.rate_per_s, duration_s)


class Constant(_Arrivals):
    """A request every `1 / rate_per_s` seconds, the first at half a gap."""

    kind: Literal["constant"]
    """`constant`."""
    rate_per_s: float = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Requests per second."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the arrival times in `[0, duration_s)`; nothing is drawn."""
        count = int(np.ceil(duration_s * self.rate_per_s - 0.5))
        return (np.arange(max(count, 0), dtype=np.float64) + 0.5) / self.rate_per_s


def _renewal(gaps: Gaps, rate_per_s: float, duration_s: float) -> NDArray[np.float64]:
    """Sum gaps until they pass `duration_s`; the first arrival comes after one gap."""
    chunk = max(16, int(1.2 * rate_per_s * duration_s) + 16)
    times = np.cumsum(gaps(chunk))
    while times[-1] < duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(gaps(chunk))])
    inside: NDArray[np.float64] = times[times < duration_s]
    return inside
