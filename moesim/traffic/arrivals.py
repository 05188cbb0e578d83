"""Arrival processes: when requests come, as renewal processes of a mean rate and burstiness."""

from collections.abc import Callable
from functools import cache
from math import exp, expm1, gamma, lgamma, log
from typing import Annotated, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AfterValidator, BaseModel, ConfigDict, Field

Gaps = Callable[[int], NDArray[np.float64]]


RAREST = 1e-12
"""The least rate: a request in thirty thousand years; gaps of much lower ones are no numbers
[requests/s]."""


def _not_too_rare(rate_per_s: float) -> float:
    if 0 < rate_per_s < RAREST:
        raise ValueError(f"must be at least {RAREST:g}; raise it")
    return rate_per_s


Rate = Annotated[float, AfterValidator(_not_too_rare)]
"""A mean rate of requests [requests/s]."""


class ArrivalProcess(BaseModel):
    """What every arrival process of a scenario file has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Poisson(ArrivalProcess):
    """Independent arrivals: exponential gaps, coefficient of variation 1."""

    kind: Literal["poisson"]
    """`poisson`."""
    rate_per_s: Rate = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Mean requests per second."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times in `[0, duration_s)`."""
        mean = 1 / self.rate_per_s
        return renewal(lambda n: rng.exponential(mean, n), self.rate_per_s, duration_s)


class Gamma(ArrivalProcess):
    """Bursty (cv > 1) or regular (cv < 1) arrivals: gamma gaps of shape 1/cv^2."""

    kind: Literal["gamma"]
    """`gamma`."""
    rate_per_s: Rate = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Mean requests per second."""
    cv: float = Field(ge=0.001, le=20)
    """Coefficient of variation of the gaps: their standard deviation over their mean."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times in `[0, duration_s)`."""
        shape = self.cv**-2
        scale = 1 / (self.rate_per_s * shape)
        first = gamma_wait(shape, scale, rng)
        return renewal(lambda n: rng.gamma(shape, scale, n), self.rate_per_s, duration_s, first)


class Weibull(ArrivalProcess):
    """Bursty (cv > 1) or regular (cv < 1) arrivals: Weibull gaps, of a longer tail than gamma."""

    kind: Literal["weibull"]
    """`weibull`."""
    rate_per_s: Rate = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Mean requests per second."""
    cv: float = Field(ge=0.01, le=20)
    """Coefficient of variation of the gaps: their standard deviation over their mean."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Draw the arrival times in `[0, duration_s)`."""
        shape = weibull_shape(self.cv)
        scale = 1 / (self.rate_per_s * gamma(1 + 1 / shape))
        # A gap that a moment falls into is longer than most: its law is x f(x) / mean.
        gap = scale * rng.gamma(1 + 1 / shape) ** (1 / shape)
        first = float(rng.random() * gap)
        return renewal(lambda n: scale * rng.weibull(shape, n), self.rate_per_s, duration_s, first)


class Constant(ArrivalProcess):
    """A request every `1 / rate_per_s` seconds, the first at half a gap."""

    kind: Literal["constant"]
    """`constant`."""
    rate_per_s: Rate = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Requests per second."""

    def times_s(self, duration_s: float, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the arrival times in `[0, duration_s)`; nothing is drawn."""
        count = int(np.ceil(duration_s * self.rate_per_s - 0.5))
        return (np.arange(max(count, 0), dtype=np.float64) + 0.5) / self.rate_per_s


def renewal(
    gaps: Gaps, rate_per_s: float, duration_s: float, first_s: float | None = None
) -> NDArray[np.float64]:
    """Sum gaps until they pass `duration_s`; the first arrival comes at `first_s`, or after a gap.

    Where gaps vary, the wait for the first is no gap: the process has run since long before.
    """
    chunk = max(16, int(1.2 * rate_per_s * duration_s) + 16)
    steps = gaps(chunk)
    if first_s is not None:
        steps[0] = first_s
    times = np.cumsum(steps)
    while times[-1] < duration_s:
        times = np.concatenate([times, times[-1] + np.cumsum(gaps(chunk))])
    inside: NDArray[np.float64] = times[times < duration_s]
    return inside


def gamma_wait(shape: float, scale: float, rng: np.random.Generator) -> float:
    """Draw the wait from any moment to the next arrival, gaps being gamma.

    A part, uniform, of the gap that the moment falls into, whose law is x f(x) / mean: gamma again,
    of a shape one higher (Cox, Renewal Theory, 1962, chapter 5). With it `rate_per_s` holds from
    the first second on, however bursty the arrivals.
    """
    return float(rng.random() * rng.gamma(shape + 1, scale))


@cache
def weibull_shape(cv: float) -> float:
    """Return the shape k of the Weibull distribution of coefficient of variation `cv`.

    A Weibull's moments are E[x^n] = scale^n Gamma(1 + n / k), so cv falls as k grows.

    >>> round(weibull_shape(1.0), 9), round(weibull_shape(5**0.5), 9)
    (1.0, 0.5)
    """
    low, high = log(0.03), log(1000)
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if _weibull_cv(exp(middle)) > cv else (low, middle)
    return exp((low + high) / 2)


def _weibull_cv(shape: float) -> float:
    # In logarithms: the moments themselves overflow below a shape of about 0.012.
    return float(expm1(lgamma(1 + 2 / shape) - 2 * lgamma(1 + 1 / shape)) ** 0.5)
