"""A trained gateway: the words it knows, the directions they point in, the clusters' centres.

V words, D dimensions, K clusters.
"""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from engine.gateway.words import words_of

Floats = NDArray[np.float64]
LARGEST = 0
"""Clusters are numbered from the largest in training; it takes what fits nowhere."""
ROUNDING = 1e-9
"""A projection shorter than this part of its vector is rounding (float64 has 2e-16), no topic."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Gateway:
    """Sends a prompt to the nearest centre; a prompt without a known word to the largest cluster.

    The origin, where such a prompt lies, is as near to the most mixed cluster as to any other, so
    that nearness says nothing there; the largest is right most often.
    """

    vocabulary: Mapping[str, int]
    """Word to row of `idf` and `directions`."""
    idf: Floats
    """How rare each word is, ln((1 + n) / (1 + texts with it)) + 1  (V,)."""
    directions: Floats
    """Each word in the space of the SVD  (V, D)."""
    centres: Floats
    """The clusters' centres among vectors of length one  (K, D)."""
    prompts: NDArray[np.int64]
    """Training prompts of each cluster  (K,)."""
    trained: Mapping[str, str | int]
    """How: the seed, the version of scikit-learn."""

    @property
    def clusters(self) -> int:
        """How many clusters there are."""
        return len(self.centres)

    @property
    def shares(self) -> list[float]:
        """Each cluster's share of the training prompts, the largest first."""
        return [float(count) for count in self.prompts / self.prompts.sum()]

    def route(self, text: str) -> int:
        """Return the cluster of a prompt."""
        point = self._placed(text)
        if point is None:
            return LARGEST
        return int(np.argmin(((self.centres - point) ** 2).sum(axis=1)))

    def route_many(self, texts: Iterable[str]) -> list[int]:
        """Return the cluster of each prompt."""
        return [self.route(text) for text in texts]

    def topic(self, cluster: int, count: int = 5) -> list[str]:
        """Return the words that point most nearly towards a cluster's centre."""
        towards = self.directions @ self.centres[cluster]
        words = list(self.vocabulary)
        return [words[row] for row in np.argsort(-towards, kind="stable")[:count]]

    def _placed(self, text: str) -> Floats | None:
        """Return a text as a vector of length one (D,); None where it says nothing we know.

        The length of a TF-IDF vector cancels here, so it is not brought to one first.
        """
        known = (self.vocabulary.get(word) for word in words_of(text))
        counts = Counter(row for row in known if row is not None)
        rows = np.fromiter(counts.keys(), dtype=np.intp, count=len(counts))
        weights = np.fromiter(counts.values(), dtype=float, count=len(counts)) * self.idf[rows]
        point: Floats = weights @ self.directions[rows]
        length = np.linalg.norm(point)
        if length <= ROUNDING * np.linalg.norm(weights):
            return None
        return point / length
