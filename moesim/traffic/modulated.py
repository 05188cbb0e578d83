"""Arrival processes whose rate changes over time: on and off by chance, or by the hour.

Both draw a process of rate 1 on a clock that runs as fast as requests are expected, and read off
when that clock shows each arrival: the inverse of the cumulative rate, which is exact.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from moesim.traffic.arrivals import ArrivalProcess, Rate, gamma_wait, renewal

Floats = NDArray[np.float64]


class OnOff(ArrivalProcess):
    """Poisson arrivals that stop and start: an interrupted Poisson process.

    On and off periods are exponential and alternate; the process begins in equilibrium, so the mean
    rate is `on_rate_per_s * on_s / (on_s + off_s)` from the first second on.
    """

    kind: Literal["on-off"]
    """`on-off`."""
    on_rate_per_s: Rate = Field(gt=0, le=1e5, allow_inf_nan=False)
    """Requests per second while on: the peak, not the mean."""
    on_s: float = Field(ge=1e-3, le=1e7, allow_inf_nan=False)
    """Mean length of an on period [s]."""
    off_s: float = Field(ge=1e-3, le=1e7, allow_inf_nan=False)
    """Mean length of an off period [s]."""

    def pieces(self, duration_s: float) -> float:
        """Return about how many periods there are in so long."""
        return 2 * duration_s / (self.on_s + self.off_s)

    @property
    def rate_per_s(self) -> float:
        """Mean requests per second."""
        return self.on_rate_per_s * self.on_s / (self.on_s + self.off_s)

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Floats:
        """Draw the arrival times in `[0, duration_s)`."""
        edges, on = self._periods(duration_s, rng)
        expected = _cumulated(edges, np.where(on, self.on_rate_per_s, 0.0))
        return _through(edges, expected, 1.0, rng)

    def _periods(
        self, duration_s: float, rng: np.random.Generator
    ) -> tuple[Floats, NDArray[np.bool_]]:
        """Draw the edges of the periods, from 0 to `duration_s`, and which of them are on."""
        on_first = bool(rng.random() < self.on_s / (self.on_s + self.off_s))
        means = np.array([self.on_s, self.off_s] if on_first else [self.off_s, self.on_s])
        # What is left of an exponential period is exponential, so the first is drawn as any.
        chunk = 16 + int(1.2 * duration_s / means.sum())
        ends = np.cumsum(rng.exponential(means, (chunk, 2)))
        while ends[-1] < duration_s:
            more = np.cumsum(rng.exponential(means, (chunk, 2)))
            ends = np.concatenate([ends, ends[-1] + more])
        inside = ends[ends < duration_s]
        edges = np.concatenate([[0.0], inside, [duration_s]])
        return edges, (np.arange(edges.size - 1) % 2 == 0) == on_first


class Diurnal(ArrivalProcess):
    """Arrivals whose rate repeats over a period in equal steps, such as the 24 hours of a day."""

    kind: Literal["diurnal"]
    """`diurnal`."""
    rates_per_s: tuple[float, ...] = Field(min_length=1, max_length=1000)
    """Mean requests per second in each step of the period; 24 values are the hours of a day."""
    period_s: float = Field(default=86_400.0, ge=1, le=1e7, allow_inf_nan=False)
    """How long until the rates repeat [s]."""
    start_s: float = Field(default=0.0, ge=0, le=1e7, allow_inf_nan=False)
    """Where in the period the simulation begins [s]."""
    cv: float = Field(default=1.0, ge=0.001, le=20)
    """Burstiness within a step: the coefficient of variation of the gaps at a steady rate."""

    @model_validator(mode="after")
    def _rates(self) -> Self:
        if not all(0 <= rate <= 1e5 for rate in self.rates_per_s):
            raise ValueError("rates_per_s must be numbers from 0 to 100000")
        if not any(self.rates_per_s):
            raise ValueError("rates_per_s must not all be zero")
        return self

    def pieces(self, duration_s: float) -> float:
        """Return about how many steps there are in so long."""
        return duration_s * len(self.rates_per_s) / self.period_s

    @property
    def rate_per_s(self) -> float:
        """Mean requests per second over a whole period."""
        return float(np.mean(self.rates_per_s))

    def times_s(self, duration_s: float, rng: np.random.Generator) -> Floats:
        """Draw the arrival times in `[0, duration_s)`."""
        step_s = self.period_s / len(self.rates_per_s)
        first, last = int(self.start_s // step_s), int((self.start_s + duration_s) // step_s)
        edges = np.clip(np.arange(first, last + 2) * step_s - self.start_s, 0.0, duration_s)
        rates = np.array(self.rates_per_s)[np.arange(first, last + 1) % len(self.rates_per_s)]
        return _through(edges, _cumulated(edges, rates), self.cv, rng)


def _cumulated(edges: Floats, rates: Floats) -> Floats:
    """Return how many requests are expected by each edge, the rates holding between them."""
    return np.concatenate([[0.0], np.cumsum(rates * np.diff(edges))])


def _through(edges: Floats, expected: Floats, cv: float, rng: np.random.Generator) -> Floats:
    """Draw gamma gaps of mean 1 as a count of expected requests; return when each is reached."""
    shape = cv**-2
    if expected[-1] <= 0:
        return np.empty(0)
    first = gamma_wait(shape, 1 / shape, rng)
    counts = renewal(lambda n: rng.gamma(shape, 1 / shape, n), 1.0, float(expected[-1]), first)
    return _inverse(counts, edges, expected)


def _inverse(counts: Floats, edges: Floats, expected: Floats) -> Floats:
    """Return when `expected` reaches each count, linear between edges."""
    step = np.searchsorted(expected, counts, side="right") - 1
    share = (counts - expected[step]) / (expected[step + 1] - expected[step])
    begin, end = edges[step], edges[step + 1]
    # Rounding must not lift an arrival onto the edge that ends its step.
    return np.minimum(begin + share * (end - begin), np.nextafter(end, 0))
