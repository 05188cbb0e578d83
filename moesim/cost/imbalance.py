"""Experts dealt to ranks: how much falls to the most loaded one, for which all others wait.

Rank r has the experts e in its part of a layer, in order. A token reaches expert e with probability
p_e; what the largest of the ranks gets is expected from these alone.

* **Visits** of rank r are a sum over tokens and experts, and by the central limit theorem normal,
  of mean T sum p_e. Ranks share each token's k visits, so that their visits are correlated. They
  are, but for what all have in common, as independent ones of variance T E / (E - 1) sum p_e
  (1 - p_e): the variance of a sample without replacement before its size is fixed (Hajek 1964),
  exact for uniform routing. Few tokens are not normal, but their experts are bound by memory.
* **Distinct** experts: each is hit, independently of the others, with probability
  1 - (1 - p_e)^T, given how many are hit in all, which is taken at its expectation. For uniform
  routing of one token this is exact.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from moesim.cost.experts import expected_distinct

Floats = NDArray[np.float64]

STEPS = 257
"""Points at which the distribution of the largest is integrated."""

REACH = 6.0
"""How far that goes from the means [standard deviations]."""

SPARED = 1e-3
"""Experts that may go unhit in expectation where all are taken to be hit."""


def largest_share(
    popularity: Sequence[Sequence[float]], tokens: float, parts: int
) -> tuple[float, float]:
    """Return the most loaded rank's share of an iteration's visits and of its distinct experts.

    Layers count alike. A token's two experts are on one of two ranks of four 3 times in 7:

    >>> visits, distinct = largest_share([[0.25] * 8], 1, 2)
    >>> round(2 * distinct, 3)
    1.429
    """
    shares = np.asarray(popularity, dtype=float)
    layers, counts = np.unique(shares, axis=0, return_counts=True)
    dealt = layers.reshape(len(layers), parts, -1)  # [L, ranks, experts]
    visits = np.average(largest_visits(dealt, tokens), weights=counts)
    expected = expected_distinct(layers.tolist(), [tokens])[:, 0]  # [L]
    distinct = np.average(
        [largest_distinct(*layer, tokens) for layer in zip(dealt, expected, strict=True)],
        weights=counts,
    )
    all_visits = tokens * np.average(layers.sum(axis=1), weights=counts)
    return (
        float(visits / all_visits),
        float(distinct / np.average(expected, weights=counts)),
    )


def largest_visits(dealt: Floats, tokens: float) -> Floats:
    """Return the expected visits of the most loaded rank, (layers); `dealt` is (L, ranks, S)."""
    _, ranks, own = dealt.shape
    experts = ranks * own
    mean = tokens * dealt.sum(axis=2)  # [L, R]
    spread = np.sqrt(tokens * experts / (experts - 1) * (dealt * (1 - dealt)).sum(axis=2))
    low, high = (mean - REACH * spread).min(axis=1), (mean + REACH * spread).max(axis=1)
    at = np.linspace(low, high, STEPS, axis=1)  # [L, steps]
    below = _normal((at[:, :, None] - mean[:, None]) / np.maximum(spread[:, None], 1e-12))
    largest = high - np.trapezoid(below.prod(axis=2), at, axis=1)
    most = tokens * np.minimum(own, dealt.sum(axis=(1, 2)))
    return np.asarray(np.clip(largest, mean.max(axis=1), most))


def largest_distinct(dealt: Floats, expected: float, tokens: float) -> float:
    """Return the expected distinct experts of the rank with most, in one layer.

    `dealt` is (ranks, S), `expected` how many are hit on all ranks together.
    """
    own = dealt.shape[1]
    if dealt.size - expected < SPARED:
        return float(own)
    counts = _counts(1 - (1 - dealt) ** tokens)  # [R, S + 1]
    kept = np.tril(np.ones((own + 1, own + 1)))  # [most, count]: counts up to the most
    length = 1 << dealt.size.bit_length()  # all counts fit, and transforms of powers are quick
    transformed = np.fft.rfft(counts[:, None] * kept, n=length)  # [R, most, frequency]
    joint = np.fft.irfft(transformed.prod(axis=0), n=length)  # [most, hit in all]
    low = min(int(expected + 1e-9), dealt.size - 1)
    chance = np.maximum(joint[:, low : low + 2], 0.0)  # [most, 2]
    below = chance / np.maximum(chance[-1], 1e-300)
    largest = (1 - below[:-1]).sum(axis=0)
    if chance[-1, 1] < 1e-12:  # more are never hit
        return float(largest[0])
    return float(largest[0] + (largest[1] - largest[0]) * (expected - low))


def _counts(hit: Floats) -> Floats:
    """Return the distribution of how many of each rank's experts are hit, (ranks, S + 1)."""
    counts = np.zeros((hit.shape[0], hit.shape[1] + 1))
    counts[:, 0] = 1.0
    for chance in hit.T[:, :, None]:
        counts[:, 1:] = counts[:, 1:] * (1 - chance) + counts[:, :-1] * chance
        counts[:, :1] *= 1 - chance
    return counts


def _normal(x: Floats) -> Floats:
    """Return the normal distribution function to 2e-4 (Page 1977)."""
    return np.asarray(0.5 * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))))
