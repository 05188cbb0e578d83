"""Experts that wait in host memory: what an iteration misses, copies over the link, and waits for.

A copy of an expert is on the device or in pinned host memory. An iteration of T tokens, routed
independently by the router's popularity p, hits an expert with probability h = 1 - (1 - p)^T; a hit
on an absent one is a miss. A miss is copied to the device or, where the engine can, computed on the
CPU. Which copies are absent is a cache policy's doing:

| policy | keeps | a miss |
|---|---|---|
| pinned | the most popular copies, or a given set, for good | passes through a staging buffer |
| lfu | in the steady state the most popular copies: the same as `pinned` | likewise |
| lru, lru-by-layer | what ran before decides: `moesim.cost.recency` | |
"""

from dataclasses import dataclass
from math import isfinite
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.errors import ScenarioError
from moesim.serving.iterations import Floats

BETWEEN = (np.finfo(float).tiny, 1 - 2**-53)
"""Shares that have a logarithm: the least and the greatest double between 0 and 1."""


class Pinned:
    """Copies that stay for good: `kept` says which, `shares` is the router's popularity, (L, E)."""

    def __init__(self, popularity: ArrayLike, kept: ArrayLike) -> None:
        self.shares = _checked(popularity)
        self.kept: NDArray[np.bool_] = np.asarray(kept, dtype=bool)
        if self.kept.shape != self.shares.shape:
            raise ScenarioError(
                f"resident copies: a mask of shape {self.kept.shape}; the router's popularity has "
                f"{self.shares.shape} (layers, experts)"
            )

    def layer_misses(self, layer: int, tokens: Floats) -> Floats:
        """Return how likely an iteration misses each expert of one layer, (E, len(tokens))."""
        absent = ~self.kept[layer][:, None]
        return np.asarray(hit_probability(self.shares[layer], tokens) * absent)

    def misses(self, tokens: ArrayLike) -> Floats:
        """Return the expected misses of one iteration, for each number of tokens.

        >>> pinned([[0.5, 0.5, 0.5, 0.5]], 3).misses([0, 1, 2]).tolist()
        [0.0, 0.5, 0.75]
        """
        counts = np.asarray(tokens, dtype=float)
        layers = range(len(self.shares))
        return np.asarray(sum(self.layer_misses(layer, counts).sum(axis=0) for layer in layers))


def pinned(popularity: ArrayLike, copies: int) -> Pinned:
    """Keep the most popular copies for good; of equal ones the lower layer's, the lower expert."""
    shares = _checked(popularity)
    if not 0 <= copies <= shares.size:
        raise ScenarioError(
            f"resident copies: {copies} must be between 0 and the model's {shares.size} experts"
        )
    order = np.argsort(-shares, axis=None, kind="stable")
    kept = np.zeros(shares.size, dtype=bool)
    kept[order[:copies]] = True
    return Pinned(shares, kept.reshape(shares.shape))


def hit_probability(shares: Floats, tokens: Floats) -> Floats:
    """Return how likely an iteration hits each expert, 1 - (1 - p)^T, (len(shares), len(tokens)).

    >>> hit_probability(np.array([0.25, 1.0]), np.array([0.0, 1.0, 2.0])).tolist()
    [[0.0, 0.25, 0.4375], [0.0, 1.0, 1.0]]
    """
    different, place = np.unique(shares, return_inverse=True)  # of a datasheet's all are equal
    return np.asarray(1.0 - (1.0 - different)[:, None] ** tokens)[place]


@dataclass(frozen=True, slots=True, kw_only=True)
class Loading:
    """How the engine gets at an expert that is absent.

    `overlap`: it predicts, a layer ahead, a share `prefetch_accuracy` of a layer's misses, and
    copies them while the layer before computes; for each predicted copy `prefetch_waste` wrong ones
    go over the link too. `cpu_s_per_token_expert`: it computes an absent expert on the CPU where
    that is sooner done (Fiddler, arXiv 2402.07033: 7 ms for each token and expert of Mixtral).
    """

    expert_bytes: float
    bytes_per_s: float
    latency_s: float = 0.0
    overlap: bool = False
    prefetch_accuracy: float = 0.0
    prefetch_waste: float = 0.0
    cpu_s_per_token_expert: float | None = None

    def __post_init__(self) -> None:
        for name in ("expert_bytes", "bytes_per_s", "cpu_s_per_token_expert"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ScenarioError(f"{name}: {value!r} must be a number above zero")
        for name in ("latency_s", "prefetch_waste"):
            value = getattr(self, name)
            if not (isfinite(value) and value >= 0):
                raise ScenarioError(f"{name}: {value!r} must be a number, 0 or more")
        if not 0 <= self.prefetch_accuracy <= 1:
            raise ScenarioError(
                f"prefetch_accuracy: {self.prefetch_accuracy!r} must be between 0 and 1"
            )

    @property
    def copy_s(self) -> float:
        """One copy over a link of its own [s].

        >>> round(Loading(expert_bytes=352.3e6, bytes_per_s=25e9).copy_s, 4)
        0.0141
        """
        return self.latency_s + self.expert_bytes / self.bytes_per_s

    def predicted(self, layers: int) -> Floats:
        """Return what share of each layer's misses is known a layer ahead; none of the first's."""
        ahead = np.full(layers, self.prefetch_accuracy if self.overlap else 0.0)
        ahead[:1] = 0.0
        return ahead


class Misses(NamedTuple):
    """What iterations of 0, 1, ... tokens miss and how they get at it.

    `copied`: misses of each layer that are copied over the link, (L, T + 1); `cpu_s`: what the
    others take on the CPU, over all layers, (T + 1,) [s].
    """

    copied: Floats
    cpu_s: Floats


def expected_misses(resident: Pinned, loading: Loading, *, max_batched_tokens: int) -> Misses:
    """Lay out the misses of iterations up to `max_batched_tokens`, each got by the cheaper way.

    An expert that is hit has T p / h tokens on average; if so many take less time on the CPU than
    its copy on an idle link, they are computed there. The engine decides without knowing what else
    the link carries.
    """
    tokens = np.arange(max_batched_tokens + 1, dtype=float)
    copied, cpu_s = [], np.zeros(len(tokens))
    known: dict[tuple[bytes, bytes], tuple[Floats, Floats]] = {}
    for layer, shares in enumerate(resident.shares):
        alike = (shares.tobytes(), resident.kept[layer].tobytes())
        if alike not in known:
            known[alike] = _misses_in(resident, layer, loading, tokens)
        layer_copied, layer_cpu_s = known[alike]
        copied.append(layer_copied)
        cpu_s += layer_cpu_s
    return Misses(copied=np.array(copied), cpu_s=cpu_s)


def _misses_in(
    resident: Pinned, layer: int, loading: Loading, tokens: Floats
) -> tuple[Floats, Floats]:
    """Return what of one layer is copied, and what the rest takes on the CPU [s], (T + 1,) each."""
    missed = resident.layer_misses(layer, tokens)  # [E, T]
    if loading.cpu_s_per_token_expert is None:
        return missed.sum(axis=0), np.zeros(len(tokens))
    each_s = loading.cpu_s_per_token_expert * tokens_per_hit(resident.shares[layer], tokens)
    sooner = each_s < loading.copy_s
    cpu_s = np.where(sooner, missed * each_s, 0.0).sum(axis=0)
    return np.where(sooner, 0.0, missed).sum(axis=0), cpu_s


def tokens_per_hit(shares: Floats, tokens: Floats) -> Floats:
    """Return how many of an iteration's tokens an expert has if it has any: T p / h, (E, T).

    >>> tokens_per_hit(np.array([0.25]), np.array([1.0, 2.0])).round(3).tolist()
    [[1.0, 1.143]]
    """
    hit = hit_probability(shares, tokens)
    return np.divide(shares[:, None] * tokens, hit, out=np.ones_like(hit), where=hit > 0)


class Loads(NamedTuple):
    """What absent experts cost iterations of 0, 1, ... `max_batched_tokens` tokens, each (T + 1,).

    `copies`: experts copied because they were missed, wrongly predicted ones not counted.
    `link_s`: seconds that the link would be busy at full bandwidth, wrong predictions included.
    `cpu_s`: seconds that the CPU would compute experts with nobody beside.
    `wait_s`: what the iteration is longer by, experts computed on the CPU included.
    """

    copies: Floats
    link_s: Floats
    cpu_s: Floats
    wait_s: Floats

    def link_share(self, unhindered_s: Floats) -> float:
        """Return the largest share of its time that an iteration with tokens needs the link.

        `unhindered_s` is what iterations of so many tokens take at least if nothing is missed,
        all layers' compute included, (T + 1,).
        """
        return self._share(self.link_s, unhindered_s)

    def cpu_share(self, unhindered_s: Floats) -> float:
        """Return the largest share of its time that an iteration with tokens needs the CPU."""
        return self._share(self.cpu_s, unhindered_s)

    def _share(self, busy_s: Floats, unhindered_s: Floats) -> float:
        busy, whole = busy_s[1:], (unhindered_s + self.wait_s)[1:]
        parts = np.divide(busy, whole, out=np.zeros_like(busy), where=busy > 0)
        return min(1.0, float(np.max(parts, initial=0.0)))


def offload_table(
    misses: Misses,
    loading: Loading,
    *,
    layer_s: Floats,
    stretch: float = 1.0,
    cpu_stretch: float = 1.0,
) -> Loads:
    """Lay out what iterations of 0, 1, ... tokens wait for; `layer_s` is a layer's compute.

    Copies go one after another, each `stretch` times as long as on a link of its own. A layer's
    predicted copies, right and wrong, begin with the layer before and hide behind its compute c;
    the others are asked for by the router, and all wait for them:

        wait = max(c, predicted copies) - c + other copies

    on average. Copies are whole: 0.3 predicted ones are one in three layers of ten (`beyond`).
    What the CPU computes is added, `cpu_stretch` times as long as on a CPU of its own; it waits its
    turn too.
    """
    _require_stretch("stretch", stretch, "link")
    _require_stretch("cpu_stretch", cpu_stretch, "CPU")
    if len(layer_s) != len(misses.cpu_s):
        raise ScenarioError(
            f"layer_s: {len(layer_s)} durations for {len(misses.cpu_s)} numbers of tokens; give "
            "one for each from 0 to max_batched_tokens"
        )
    copy_s = stretch * loading.copy_s
    ahead = loading.predicted(len(misses.copied))[:, None]  # [L, 1]
    early = ahead * misses.copied * (1 + loading.prefetch_waste)  # [L, T]
    late = (1 - ahead) * misses.copied  # [L, T]
    wait_s = beyond(early, copy_s, layer_s) + late * copy_s
    return Loads(
        copies=misses.copied.sum(axis=0),
        link_s=loading.copy_s * (early + late).sum(axis=0),
        cpu_s=misses.cpu_s,
        wait_s=wait_s.sum(axis=0) + cpu_stretch * misses.cpu_s,
    )


def beyond(copies: Floats, copy_s: float, window_s: Floats) -> Floats:
    """Return by how much copies, so many on average, outlast the window on average [s].

    Their number is taken to be one of the two whole ones next to its mean, which of all whole
    numbers of that mean outlast it least; to put the mean itself in would be less still.

    >>> beyond(np.array([0.25, 1.5]), 4.0, np.array([2.0, 2.0])).tolist()
    [0.5, 4.0]
    """
    fewer = np.floor(copies)
    least = np.maximum(fewer * copy_s - window_s, 0.0)
    most = np.maximum((fewer + 1) * copy_s - window_s, 0.0)
    return np.asarray(least + (copies - fewer) * (most - least))


def _checked(popularity: ArrayLike) -> Floats:
    shares: Floats = np.asarray(popularity, dtype=float)
    if shares.ndim != 2 or not shares.size:
        raise ScenarioError(
            f"router.popularity: of shape {shares.shape}; give one row a layer, one share an expert"
        )
    if not np.all((shares >= 0) & (shares <= 1)):
        raise ScenarioError("router.popularity: shares must be between 0 and 1")
    return shares


def _require_stretch(name: str, factor: float, what: str) -> None:
    if not (isfinite(factor) and factor >= 1):
        raise ScenarioError(f"{name}: {factor!r} must be 1 or more; the {what} is no faster shared")
