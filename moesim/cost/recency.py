"""One cache of the last used expert copies of several variants: what the next iteration misses.

The iterations that went before decide. A copy of layer l that was last hit in iteration j is still
there if the copies hit since have room beside it: those of layers from l on in the iterations from
j on, those of layers below l in the iterations after j and in the next one. On average that is

    D = sum over sets of [G_from_l(tokens from j on) + G_below_l(tokens after j, and the next's)],

G(m) = sum over a set's copies of 1 - (1 - p)^m. A set is the copies that one variant uses alone, or
those that all share. The copy is there with the probability that a normal variable of that mean,
and of the variance of `touched`, is no more than the places C of the cache; it
was last hit in j with the probability

    (1 - p)^(tokens after j) - (1 - p)^(tokens from j on).

This is Che's approximation (Che, Tung and Wang, IEEE JSAC 20(7), 2002) with D counted back from
each request, in place of one characteristic time for requests whose rates never change. What the
cache begins with is taken to be any C of its N copies: of those that were never hit a share
(C - D) / (N - D) is there.
"""

from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from moesim.cost.offload import BETWEEN, Loading, Misses, hit_probability, tokens_per_hit
from moesim.serving.iterations import Floats

Mask = NDArray[np.bool]

FINE = 64
"""Numbers of tokens up to which distinct copies are laid out one by one."""

STEP = 1.05
"""Ratio of the numbers of tokens beyond: off by half of it, 2.5 %, at most."""

OCTAVE = 4
"""Sizes of the next iteration, in each doubling, that misses are found at; straight between."""

AGES = 8
"""Iterations are looked back on together if they are within an eighth of their age."""

FORGOTTEN = 1e-3
"""Share of a copy's hits that may lie further back than is looked."""

FAR = 4.0
"""Standard deviations at which a copy is taken to be there or gone: one in 30,000 is not."""

_DEVIATIONS = np.linspace(-FAR, FAR, 161)
_NORMAL = np.array([NormalDist().cdf(z) for z in _DEVIATIONS])


class Run(NamedTuple):
    """Equal iterations one after another: whose they are, the tokens of each, how many."""

    place: int
    tokens: int
    iterations: int


class Past(NamedTuple):
    """Iterations of one size that are about equally old, looked at together.

    Tokens of each variant after them (`since`), from them on (`until`), and from the middle one on.
    """

    place: int
    tokens: int
    since: tuple[int, ...]
    until: tuple[int, ...]
    middle: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Copies:
    """Copies that some variants use, and how many of them so many tokens hit.

    `mean` and `variance` are by layer and size, (L, M); `below` those of the layers under each, and
    `total` those of all.
    """

    members: frozenset[int]
    places: NDArray[np.int64]
    mean: Floats
    variance: Floats
    below: tuple[Floats, Floats]
    total: tuple[list[float], list[float]]
    sizes: list[float]

    @classmethod
    def of(cls, members: Sequence[int], shares: Floats, mask: Mask) -> "Copies":
        """Lay out copies of popularity `shares` at the positions of a mask, (L, E) each."""
        sizes = _sizes_for(shares[mask])
        mean, variance = np.zeros((2, len(shares), len(sizes)))
        for layer, (row, here) in enumerate(zip(shares, mask, strict=True)):
            mean[layer], variance[layer] = touched(row[here], sizes)
        under = tuple(np.cumsum(each, axis=0) - each for each in (mean, variance))
        return cls(
            members=frozenset(members),
            places=mask.sum(axis=1),
            mean=mean,
            variance=variance,
            below=(under[0], under[1]),
            total=(mean.sum(axis=0).tolist(), variance.sum(axis=0).tolist()),
            sizes=sizes.tolist(),
        )

    def at(self, tokens: int) -> int:
        """Return the place of the size next to a number of tokens."""
        return min(bisect_left(self.sizes, tokens), len(self.sizes) - 1)

    def all_at(self, tokens: ArrayLike) -> NDArray[np.intp]:
        """Return the places of the sizes next to numbers of tokens."""
        found = np.searchsorted(self.sizes, np.asarray(tokens), side="left")
        return np.minimum(found, len(self.sizes) - 1)

    def of_members(self, tokens: Sequence[int]) -> int:
        """Return the tokens of those who use the copies, of each variant's."""
        return sum(tokens[member] for member in self.members)


class Recency:
    """A cache of the last used of several variants' copies, with places for `room` of them.

    `popularity` is each variant's, (L, E); at the positions of `shared`, (L, E), one copy is for
    all. `by_layer` divides the places among the layers, whose copies compete with each other alone.
    """

    def __init__(
        self,
        popularity: Sequence[ArrayLike],
        shared: Mask,
        room: int,
        loadings: Sequence[Loading],
        *,
        most_tokens: int,
        by_layer: bool = False,
    ) -> None:
        shares = [np.asarray(each, dtype=float) for each in popularity]
        self._shared = shared & (len(shares) > 1)
        self._unhit = [np.log1p(-np.clip(each, *BETWEEN)) for each in shares]  # [L, E]
        layers, self._by_layer = len(shared), by_layer
        each, more = divmod(room, layers)
        self._room: Floats = np.full(layers, float(room))
        if by_layer:
            self._room = each + (np.arange(layers) < more).astype(float)
        self._sets = [
            Copies.of([place], own, ~self._shared) for place, own in enumerate(shares)
        ] + [Copies.of(range(len(shares)), np.mean(shares, axis=0), self._shared)]
        self._sets = [each for each in self._sets if each.places.any()]
        copies = np.sum([each.places for each in self._sets], axis=0).astype(float)
        self._copies = copies if by_layer else np.full(layers, copies.sum())
        self._reach = int(max(each.sizes[-1] for each in self._sets))
        self._sizes = _next_sizes(most_tokens)
        sizes, tokens = np.concatenate([[0.0], self._sizes]), np.arange(most_tokens + 1)
        self._right = np.clip(np.searchsorted(sizes, tokens), 1, len(sizes) - 1)
        low, high = sizes[self._right - 1], sizes[self._right]
        self._part = (tokens - low) / (high - low)
        self._left = 1 - self._part
        self._hits = [
            _Hits.of(own, self._sizes, load) for own, load in zip(shares, loadings, strict=True)
        ]

    def misses(self, place: int, past: Sequence[Past]) -> Misses:
        """Return what the next iteration misses, a variant's of 0, 1, ... tokens."""
        absent = self._absent(place, past)  # [L, E, sizes]
        hits = self._hits[place]
        missed = hits.likely * absent
        if hits.computed is None:
            return Misses(self._laid_out(missed.sum(axis=1)), np.zeros(len(self._right)))
        cpu_s = (np.where(hits.computed, missed, 0.0) * hits.cpu_s).sum(axis=(0, 1))
        copied = np.where(hits.computed, 0.0, missed).sum(axis=1)  # [L, sizes]
        return Misses(copied=self._laid_out(copied), cpu_s=self._laid_out(cpu_s[None])[0])

    def past(self, place: int, history: Sequence[Run]) -> tuple[Past, ...]:
        """Return what a variant's next iteration depends on, the latest first.

        `history` are the iterations before it, the oldest first.
        """
        return tuple(self._looked_back(place, history))

    def about(self, tokens: int) -> int:
        """Return the number that stands for an iteration's tokens.

        The next above of eight in a doubling, up to where all experts have been hit.

        >>> quarter = np.full((2, 8), 0.25)
        >>> load = Loading(expert_bytes=1.0, bytes_per_s=1.0)
        >>> recency = Recency([quarter], quarter > 1, 9, [load], most_tokens=64)
        >>> [recency.about(tokens) for tokens in (1, 15, 16, 17, 30)]
        [1, 15, 16, 18, 26]
        """
        step = 1 << max(0, tokens.bit_length() - 4)
        return min(-(-tokens // step) * step, self._reach)

    def _laid_out(self, found: Floats) -> Floats:
        """Return rows of values at the sizes as rows at all numbers of tokens, (rows, T + 1)."""
        rows = np.concatenate([np.zeros((len(found), 1)), found], axis=1)
        return np.asarray(rows[:, self._right - 1] * self._left + rows[:, self._right] * self._part)

    def _looked_back(self, variant: int, history: Sequence[Run]) -> Iterator[Past]:
        since = [0] * len(self._unhit)
        for place, tokens, iterations in reversed(history):
            left = iterations
            while left:
                if self._forgotten(variant, since):
                    return
                count = min(left, max(1, since[place] // (AGES * tokens)))
                before = tuple(since)
                since[place] = min(since[place] + count * tokens, self._reach)
                middle = list(before)
                middle[place] = min(middle[place] + (count + 1) // 2 * tokens, self._reach)
                yield Past(place, tokens, before, tuple(since), tuple(middle))
                if before[place] == self._reach:
                    break  # the run goes on, all of it as old
                left -= count

    def _forgotten(self, place: int, since: Sequence[int]) -> bool:
        """Whether all that a variant uses was hit later, or nothing from before is there."""
        sizes = [each.at(each.of_members(since)) for each in self._sets]
        for each, size in zip(self._sets, sizes, strict=True):
            if place in each.members and size < len(each.sizes) - 1:
                break
        else:
            return True
        if not self._by_layer:
            mean = variance = 0.0
            for each, size in zip(self._sets, sizes, strict=True):
                mean, variance = mean + each.total[0][size], variance + each.total[1][size]
            return bool(mean > self._room[0] + FAR * sqrt(variance) + 1)
        pairs = list(zip(self._sets, sizes, strict=True))
        means = sum(each.mean[:, size] for each, size in pairs)
        variances = sum(each.variance[:, size] for each, size in pairs)
        return bool(np.all(means > self._room + FAR * np.sqrt(variances) + 1))

    def _absent(self, place: int, past: Sequence[Past]) -> Floats:
        """Return how likely each copy that a variant uses is absent, (L, E, sizes)."""
        everything = past[-1].until if past else (0,) * len(self._unhit)
        rows = [(p.middle, p.place, p.tokens) for p in past]
        mean, variance = self._distinct_since(place, [*rows, (everything, -1, 0)])
        left = np.maximum(self._copies - mean[-1], 1e-9)
        gone = 1 - np.clip((self._room - mean[-1]) / left, 0.0, 1.0)  # [T, L]
        spare = (self._room + 0.5 - mean[:-1]) / np.sqrt(np.maximum(variance[:-1], 1e-9))
        evicted = 1 - np.interp(spare, _DEVIATIONS, _NORMAL)  # [J, T, L]
        own = [index for index, p in enumerate(past) if p.place == place]
        absent = self._missing([place], [past[index] for index in own], evicted[own])
        absent += self._not_hit([place], [everything]) * gone.T[:, None, :]
        if not self._shared.any():
            return absent
        everybody = range(len(self._unhit))
        common = self._missing(everybody, past, evicted)
        common += self._not_hit(everybody, [everything]) * gone.T[:, None, :]
        return np.where(self._shared[:, :, None], common, absent)

    def _missing(self, members: Sequence[int], past: Sequence[Past], evicted: Floats) -> Floats:
        """Return how likely copies that `members` use were hit, and evicted since, (L, E, T).

        `evicted` is how likely that is, if they were last hit in each of the iterations, (J, T, L).
        """
        if not past:
            return np.zeros((*self._shared.shape, len(self._sizes)))
        last = self._not_hit(members, [p.since for p in past])
        last -= self._not_hit(members, [p.until for p in past])  # [L, E, J]
        return last @ evicted.transpose(2, 0, 1)

    def _not_hit(self, members: Sequence[int], tokens: Sequence[Sequence[int]]) -> Floats:
        """Return how likely so many tokens of each variant do not hit a copy, (L, E, J)."""
        counts = np.array(tokens, dtype=float)  # [J, variants]
        exponent: Floats = np.zeros(())
        for member in members:
            exponent = exponent + self._unhit[member][:, :, None] * counts[:, member]
        return np.exp(exponent)

    def _distinct_since(
        self, place: int, past: Sequence[tuple[Sequence[int], int, int]]
    ) -> tuple[Floats, Floats]:
        """Return mean and variance of the copies that are hit in between, (J, T, L) each.

        From the tokens of each variant since, of which an iteration's of so many were the first, to
        layer L of the next one, of T tokens.
        """
        shape = (len(past), len(self._sizes), len(self._room))
        mean, variance = np.zeros(shape), np.zeros(shape)
        for each in self._sets:
            tokens = np.array([each.of_members(since) for since, _, _ in past])
            whole = each.all_at(tokens)  # [J]
            if self._by_layer:
                mean += each.mean[:, whole].T[:, None, :]
                variance += each.variance[:, whole].T[:, None, :]
                continue
            first = np.array([size if owner in each.members else 0 for _, owner, size in past])
            coming = self._sizes if place in each.members else np.zeros_like(self._sizes)
            part = each.all_at((tokens - first)[:, None] + coming)  # [J, T]
            for total, under, found in zip((mean, variance), each.below, each.total, strict=True):
                above = np.array(found)[whole][:, None] - under[:, whole].T  # [J, L]
                total += above[:, None, :] + under.T[part]
        return mean, variance


class _Hits(NamedTuple):
    """What iterations of the sizes hit: how `likely`, which experts the CPU computes, how long."""

    likely: Floats
    computed: Mask | None
    cpu_s: Floats | float

    @classmethod
    def of(cls, shares: Floats, sizes: Floats, loading: Loading) -> "_Hits":
        """Lay a variant's hits out by layer, expert and size, (L, E, sizes)."""
        likely = np.array([hit_probability(row, sizes) for row in shares])
        if loading.cpu_s_per_token_expert is None:
            return cls(likely, None, 0.0)
        tokens = np.array([tokens_per_hit(row, sizes) for row in shares])
        cpu_s = loading.cpu_s_per_token_expert * tokens
        return cls(likely, cpu_s < loading.copy_s, cpu_s)


def touched(shares: Floats, sizes: Floats) -> tuple[Floats, Floats]:
    """Return mean and variance of a layer's copies hit by so many tokens, (M,) each.

    Were the experts of a token drawn independently, the variance would be the sum of q (1 - q) with
    q = (1 - p)^m. But every token takes exactly k, and given the sum of its draws the variance is
    what remains of a regression on it (Hájek, Ann. Math. Statist. 35, 1964): it is less by
    m (sum of p q)^2 / sum of p (1 - p), so that one token leaves none.
    """
    unhit = (1 - shares)[:, None] ** sizes  # [E, M]
    spread = float((shares * (1 - shares)).sum())
    told = sizes * (shares[:, None] * unhit).sum(axis=0) ** 2
    explained = told / spread if spread else np.zeros_like(told)
    variance = (unhit * (1 - unhit)).sum(axis=0) - explained
    return (1 - unhit).sum(axis=0), np.maximum(variance, 0.0)


def _sizes_for(shares: Floats) -> Floats:
    """Return the numbers of tokens at which distinct copies are laid out: 0, 1, ... and further.

    Beyond the last one even the rarest copy has been hit, but for the forgotten.
    """
    rarest = shares[shares > 0].min(initial=1.0)
    most = np.ceil(np.log(FORGOTTEN) / np.log1p(-min(rarest, BETWEEN[1]))) + 1
    further = FINE * STEP ** np.arange(1, 1 + max(0.0, np.log(most / FINE) / np.log(STEP)))
    sizes = np.append(np.arange(FINE + 1.0), np.round(further))
    return np.append(sizes[sizes < most], most)


def _next_sizes(most: int) -> Floats:
    """Return the sizes of the next iteration at which misses are found, from 1 to `most`."""
    powers = np.arange(np.ceil(OCTAVE * np.log2(max(most, 1))))
    return np.unique(np.append(np.floor(2 ** (powers / OCTAVE)), most))
