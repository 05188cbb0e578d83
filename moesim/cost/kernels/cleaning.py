"""What public tables get wrong, taken out before anything is drawn through them.

More work cannot take less time. Where it does by more than `SPIKE`, one of the two points is wrong:
the one that contradicts most others goes (spikes of a single size, cliffs of kernels that were not
tuned). What little contradiction is left is levelled out by the rising curve that is nearest in the
logarithm: pool adjacent violators (Ayer et al. 1955; Barlow et al. 1972).
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]

SPIKE = 1.25
"""Ratio by which a smaller size may be slower than a larger: tiles and waves make steps of up to a
quarter in NVIDIA's tables, their spikes are of half and more."""


def kept(seconds: Sequence[float]) -> list[int]:
    """Return the places of the points that remain, of durations in order of size.

    >>> kept([1.0, 8.0, 2.0, 3.0])
    [0, 2, 3]
    """
    values = np.asarray(seconds, dtype=float)
    places = np.arange(len(values))
    while len(places):
        against = _contradictions(values[places])
        if not against.any():
            break
        places = np.delete(places, int(np.argmax(against)))
    return [int(place) for place in places]


def _contradictions(values: Floats) -> NDArray[np.intp]:
    """Count for each point the others that it cannot be true beside."""
    later = np.triu(np.ones((len(values), len(values)), dtype=bool), 1)
    wrong = (values[:, None] > SPIKE * values[None, :]) & later
    return np.asarray(wrong.sum(axis=0) + wrong.sum(axis=1))


def levelled(seconds: Sequence[float]) -> Floats:
    """Return the rising durations that are nearest in the logarithm.

    >>> levelled([1.0, 4.0, 1.0, 8.0]).round(6).tolist()
    [1.0, 2.0, 2.0, 8.0]
    """
    blocks: list[tuple[float, int]] = []
    for value in np.log(np.asarray(seconds, dtype=float)):
        mean, count = float(value), 1
        while blocks and blocks[-1][0] > mean:
            before, several = blocks.pop()
            mean = (before * several + mean * count) / (several + count)
            count += several
        blocks.append((mean, count))
    means, counts = zip(*blocks, strict=True)
    return np.asarray(np.exp(np.repeat(means, counts)))
