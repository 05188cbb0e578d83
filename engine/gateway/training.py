"""Training a gateway: TF-IDF without stop words, truncated SVD, length one, k-means.

The steps are those of Expert Router (arXiv 2404.15153); scikit-learn takes them.
"""

import warnings
from collections.abc import Sequence as Row
from importlib.util import find_spec
from typing import Any

import numpy as np
from numpy.typing import NDArray

from engine.gateway.gateway import LARGEST, Floats, Gateway
from engine.gateway.words import words_of
from moesim.errors import EngineError

DIMENSIONS = 100
"""Of the truncated SVD, after Expert Router."""
MOST_WORDS = 50_000
"""The most frequent words are kept: in 100 dimensions of 8 bytes they take 40 MB."""
STARTS = 10
"""k-means begins so often, keeping the best; one start may well leave two topics in a cluster."""
LEAST_WORDS = 2
"""What a truncated SVD can be taken of."""
NO_WORDS = "texts: have no two words beside stop words; give other texts"
MOST_SEED = 2**32 - 1
"""The largest seed that scikit-learn takes."""


def train(
    texts: Row[str], clusters: int, seed: int = 0, *, most_words: int = MOST_WORDS
) -> Gateway:
    """Find clusters of texts and return the gateway that tells them apart.

    Texts without a word that is kept say nothing about clusters; as prompts they count to the
    largest. Raises EngineError where there are too few texts, or too few that differ.
    """
    _require_scikit_learn()
    _check(texts, clusters, seed, most_words)
    weighted, vectoriser = _weighted(texts, most_words)
    telling = weighted[np.diff(weighted.indptr) > 0]
    found = telling.shape[0]
    if found < clusters:
        raise EngineError(
            f"texts: {found} of {len(texts)} have words beside stop words, fewer than {clusters} "
            "clusters; give more texts"
        )
    space = _space(telling, seed)
    labels, centres = _clustered(_of_length_one(telling @ space), clusters, seed)
    prompts = np.bincount(labels, minlength=clusters).astype(np.int64)
    order = np.argsort(-prompts, kind="stable")
    prompts = prompts[order]
    prompts[LARGEST] += len(texts) - found
    return Gateway(
        vocabulary={word: row for row, word in enumerate(vectoriser.get_feature_names_out())},
        idf=vectoriser.idf_,
        directions=space,
        centres=centres[order],
        prompts=prompts,
        trained={"seed": seed, "scikit_learn": _version()},
    )


def _require_scikit_learn() -> None:
    """Name the command that installs it where it is missing."""
    if find_spec("sklearn") is None:
        raise EngineError("training a gateway needs scikit-learn; pip install 'moesim[gateway]'")


def _version() -> str:
    import sklearn

    return str(sklearn.__version__)


def _check(texts: Row[str], clusters: int, seed: int, most_words: int) -> None:
    if clusters < 1:
        raise EngineError(f"clusters: {clusters} must be 1 or more")
    if not 0 <= seed <= MOST_SEED:
        raise EngineError(f"seed: {seed} must be one of 0 to {MOST_SEED}")
    if most_words < LEAST_WORDS:
        raise EngineError(f"most_words: {most_words} must be {LEAST_WORDS} or more")
    if len(texts) < clusters:
        raise EngineError(
            f"texts: {len(texts)} are fewer than {clusters} clusters; give more texts"
        )


def _weighted(texts: Row[str], most_words: int) -> tuple[Any, Any]:
    """Return TF-IDF as a sparse matrix (N, V), and what knows its words."""
    from sklearn.feature_extraction.text import ENGLISH_STOP_WORDS, TfidfVectorizer

    def telling_words(text: str) -> list[str]:
        return [word for word in words_of(text) if word not in ENGLISH_STOP_WORDS]

    vectoriser = TfidfVectorizer(analyzer=telling_words, max_features=most_words)
    try:
        weighted = vectoriser.fit_transform(texts)
    except ValueError:  # not one word
        raise EngineError(NO_WORDS) from None
    if weighted.shape[1] < LEAST_WORDS:
        raise EngineError(NO_WORDS)
    return weighted, vectoriser


def _space(weighted: Any, seed: int) -> Floats:
    """Return the directions of the words (V, D): the right singular vectors of TF-IDF (N, V)."""
    from sklearn.decomposition import TruncatedSVD

    svd = TruncatedSVD(min(DIMENSIONS, *weighted.shape), random_state=seed)
    # Texts that are all alike explain no variance, which the library divides by.
    with np.errstate(divide="ignore", invalid="ignore"):
        svd.fit(weighted)
    return np.ascontiguousarray(svd.components_.T)


def _of_length_one(points: Floats) -> Floats:
    from sklearn.preprocessing import normalize

    normalised: Floats = normalize(points)
    return normalised


def _clustered(points: Floats, clusters: int, seed: int) -> tuple[NDArray[np.int32], Floats]:
    """Return each point's cluster (N,) and the centres (K, D)."""
    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning

    means = KMeans(clusters, n_init=STARTS, random_state=seed)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", ConvergenceWarning)
            means.fit(points)
    except ConvergenceWarning:  # fewer distinct points than clusters
        raise EngineError(
            f"texts: too few differ for {clusters} clusters; give other texts or fewer clusters"
        ) from None
    return means.labels_, means.cluster_centers_
