"""How long a gateway takes for a prompt, here and now, one prompt after the other."""

import time
from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import asdict, dataclass

import numpy as np

from engine.gateway.gateway import Gateway

REPEATS = 3
"""Of each prompt the median of so many is kept: one interruption does not count."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Spell:
    """What prompts of like lengths take."""

    characters: int
    """The longest that belongs here; the next shorter spell ends at half of it."""
    prompts: int
    median_s: float
    p90_s: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """What prompts take, by their length, and where they go."""

    prompts: int
    mean_s: float
    """What a scenario's `classify_s` is: one prompt follows another, so that the load is the mean
    times the rate."""
    median_s: float
    p90_s: float
    by_length: tuple[Spell, ...]
    counts: tuple[int, ...]
    """Prompts by cluster."""

    def content(self) -> Mapping[str, object]:
        """Return the durations as plain data."""
        content = asdict(self)
        del content["counts"]
        return content


def measure(gateway: Gateway, texts: Row[str], repeats: int = REPEATS) -> Latency:
    """Time the classification of each text, after all were classified once without a clock."""
    clusters = gateway.route_many(texts)
    rounds = [[_seconds(gateway, text) for text in texts] for _ in range(repeats)]
    seconds = np.median(rounds, axis=0)
    bounds = np.array([_bound(len(text)) for text in texts])
    return Latency(
        prompts=len(texts),
        mean_s=float(seconds.mean()),
        median_s=float(np.median(seconds)),
        p90_s=float(np.quantile(seconds, 0.9)),
        by_length=tuple(
            Spell(
                characters=int(bound),
                prompts=int((bounds == bound).sum()),
                median_s=float(np.median(seconds[bounds == bound])),
                p90_s=float(np.quantile(seconds[bounds == bound], 0.9)),
            )
            for bound in np.unique(bounds)
        ),
        counts=tuple(int(n) for n in np.bincount(clusters, minlength=gateway.clusters)),
    )


def _seconds(gateway: Gateway, text: str) -> float:
    begin = time.perf_counter()
    gateway.route(text)
    return time.perf_counter() - begin


def _bound(characters: int) -> int:
    """Return the power of two that is no less.

    >>> [_bound(n) for n in (0, 1, 2, 3, 64, 65)]
    [1, 1, 2, 4, 64, 128]
    """
    return 1 << max(0, characters - 1).bit_length()
