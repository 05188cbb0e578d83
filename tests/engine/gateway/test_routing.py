"""Where prompts go: clusters found again, scikit-learn's own pipeline as the oracle, odd texts."""

import re
import sys
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from sklearn.cluster import KMeans
from sklearn.decomposition import TruncatedSVD
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer

from engine.gateway.gateway import LARGEST, Gateway
from engine.gateway.training import train
from engine.gateway.words import words_of
from moesim.errors import EngineError

Write = Callable[[str], str]


def test_topics_are_told_apart(
    gateway: Gateway, write: Write, sizes: Mapping[str, int], topics: Mapping[str, list[str]]
) -> None:
    """Texts never seen go where their topic went, the largest topic first."""
    for cluster, topic in enumerate(sizes):
        assert gateway.route_many(write(topic) for _ in range(20)) == [cluster] * 20
        assert set(gateway.topic(cluster)) <= set(topics[topic])


def test_shares_are_those_of_the_training_prompts(
    gateway: Gateway, texts: list[str], sizes: Mapping[str, int]
) -> None:
    """What `route` does with them, and what was put in."""
    assert gateway.shares == [0.5, 0.3, 0.2]
    assert list(gateway.prompts) == list(sizes.values())
    assert Counter(gateway.route_many(texts)) == dict(enumerate(gateway.prompts))


def _zipf_texts(count: int) -> list[str]:
    """Return texts of a vocabulary as skewed as language, clusters blurred, with numbers."""
    rng = np.random.default_rng(7)
    words = [f"{a}{b}{c}{d}" for a in "bdgk" for b in "aeiou" for c in "lmnr" for d in "aeiou"]
    texts = []
    for _ in range(count):
        shift = 80 * rng.integers(5)
        ranks = (rng.zipf(1.3, 30) + shift) % len(words)
        texts.append(" ".join([*(words[rank] for rank in ranks), f"the {rng.integers(10**6)},50."]))
    return texts


def _pipeline(texts: list[str], clusters: int, seed: int) -> object:
    """Return the same steps as scikit-learn strings them together, with its own words."""

    def number_is_00(text: str) -> str:
        return re.sub(r"\b\d+(?:[.,]\d+)*\b", "00", text.lower())

    return make_pipeline(
        TfidfVectorizer(preprocessor=number_is_00, stop_words="english"),
        TruncatedSVD(100, random_state=seed),
        Normalizer(),
        KMeans(clusters, n_init=10, random_state=seed),
    ).fit(texts)


@pytest.mark.parametrize("seed", [0, 3])
def test_routes_are_those_of_a_scikit_learn_pipeline(seed: int) -> None:
    """On texts seen and unseen, but for the names of the clusters."""
    texts = _zipf_texts(600)
    seen, unseen = texts[:200], texts[200:]
    gateway, oracle = train(seen, 5, seed), _pipeline(seen, 5, seed)
    assert gateway.directions.shape == (len(oracle[0].vocabulary_), 100)
    labels = oracle.predict(seen)
    by_size = np.argsort(-np.bincount(labels), kind="stable")
    name = {label: cluster for cluster, label in enumerate(by_size)}
    assert gateway.route_many(seen) == [name[label] for label in labels]
    assert gateway.route_many(unseen) == [name[label] for label in oracle.predict(unseen)]
    assert len(set(gateway.route_many(unseen))) == 5


def test_the_same_seed_finds_the_same_clusters(texts: list[str]) -> None:
    first, again = train(texts, 3, seed=5), train(texts, 3, seed=5)
    for name in ("idf", "directions", "centres", "prompts"):
        assert np.array_equal(getattr(first, name), getattr(again, name)), name


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("The Mast, the MAST", ["the", "mast", "the", "mast"]),
        ("3 of 1,000.5", ["#", "of", "#"]),
        ("2024-05-01", ["#", "#", "#"]),
        ("h100 2nd v1.5 x", ["h100", "2nd", "v1", "#"]),
        ("# C# §", []),
        ("größe 数学 ٣", ["größe", "数学", "#"]),
        ("", []),
    ],
)
def test_words(text: str, words: list[str]) -> None:
    """Lower case, two characters or more, numbers all alike."""
    assert words_of(text) == words


def test_one_number_is_like_another(texts: list[str]) -> None:
    """A number is a word of its cluster, whichever it is."""
    numbered = [f"{text} {17 * number}" for number, text in enumerate(texts[:50])]
    gateway = train([*numbered, *texts[50:]], 3)
    assert gateway.route("3") == gateway.route("1,234.5 and 99") == 0
    assert "#" in gateway.vocabulary
    assert not any(word.isdecimal() for word in gateway.vocabulary)


def test_stop_words_say_nothing(gateway: Gateway) -> None:
    assert not set(gateway.vocabulary) & {"the", "and", "with", "of", "for"}


@pytest.mark.parametrize("text", ["", "   ", "the of and", "zyzzyva quux", "?!"])
def test_what_says_nothing_goes_to_the_largest(gateway: Gateway, text: str) -> None:
    """Not to the centre nearest to the origin, which here is another."""
    nearest_to_origin = int(np.argmin((gateway.centres**2).sum(axis=1)))
    assert nearest_to_origin != LARGEST
    assert gateway.route(text) == LARGEST


def test_rounding_is_no_topic() -> None:
    """`dust` has no part in the space but 1e-17, which happens to point to the other cluster."""
    gateway = Gateway(
        vocabulary={"mast": 0, "oven": 1, "dust": 2},
        idf=np.ones(3),
        directions=np.array([[1.0, 0.0], [0.0, 1.0], [0.0, 1e-17]]),
        centres=np.eye(2),
        prompts=np.array([2, 1]),
        trained={},
    )
    assert gateway.route_many(["mast", "oven", "dust", "dust oven"]) == [0, 1, LARGEST, 1]


def test_texts_without_words_count_to_the_largest(texts: list[str]) -> None:
    gateway = train([*texts, "", "of the"], 3)
    assert list(gateway.prompts) == [52, 30, 20]


def test_only_the_most_frequent_words_are_kept(texts: list[str]) -> None:
    counts = Counter(word for text in texts for word in words_of(text))
    gateway = train(texts, 2, most_words=5)
    least = min(counts[word] for word in gateway.vocabulary)
    others = counts.keys() - gateway.vocabulary.keys() - {"the", "and", "with", "of", "for"}
    assert len(gateway.vocabulary) == 5
    assert least >= max(counts[word] for word in others)


@given(some.text(max_size=60))
def test_every_text_has_a_cluster(gateway: Gateway, text: str) -> None:
    """Whatever is in it, and the same however often its words are said."""
    assert 0 <= gateway.route(text) < gateway.clusters
    assert gateway.route(text) == gateway.route(f"{text} {text}")


@pytest.mark.parametrize(
    ("texts", "clusters", "expected"),
    [
        (["mast keel"], 2, "1 are fewer than 2 clusters"),
        ([], 1, "0 are fewer than 1 clusters"),
        (["mast keel", "mast keel", "keel mast"], 2, "too few differ for 2 clusters"),
        (["mast keel", "the", "of"], 2, "1 of 3 have words beside stop words, fewer than 2"),
        (["the", "of"], 1, "no two words"),
        (["mast", "mast"], 1, "no two words"),
        (["mast keel"], 0, "clusters: 0"),
    ],
)
def test_what_cannot_be_trained(texts: list[str], clusters: int, expected: str) -> None:
    with pytest.raises(EngineError, match=expected):
        train(texts, clusters)


def test_a_seed_that_is_none(texts: list[str]) -> None:
    with pytest.raises(EngineError, match="seed: -1"):
        train(texts, 2, seed=-1)


def test_a_missing_extra_is_named(texts: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """With the command that installs it; routing needs no scikit-learn."""
    gateway = train(texts, 3)
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(EngineError, match=r"pip install 'moesim\[gateway\]'"):
        train(texts, 3)
    assert gateway.route("the mast") == 0
