"""Texts of three topics that share no word but stop words, and a gateway trained on them."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest

from engine.gateway.file import save_gateway
from engine.gateway.gateway import Gateway
from engine.gateway.training import train

WORDS = {
    "cooking": "flour butter oven simmer garlic whisk dough saucepan roast pepper broth knead",
    "sailing": "mast rudder harbour keel tide anchor jib starboard buoy windward hull sextant",
    "algebra": "matrix kernel eigenvalue lemma tensor basis rank theorem scalar vector field ring",
}
STOP_WORDS = ("the", "and", "with", "of", "for")

Write = Callable[[str], str]


@pytest.fixture(scope="session")
def topics() -> Mapping[str, list[str]]:
    """Return the words of each topic."""
    return {topic: words.split() for topic, words in WORDS.items()}


@pytest.fixture(scope="session")
def sizes() -> Mapping[str, int]:
    """Return how many texts of each topic there are: 0 is sailing, 1 cooking, 2 algebra."""
    return {"sailing": 50, "cooking": 30, "algebra": 20}


@pytest.fixture(scope="session")
def write(topics: Mapping[str, list[str]]) -> Write:
    """Write a text of a topic: eight of its words, five stop words between them."""
    rng = np.random.default_rng(4)

    def write(topic: str) -> str:
        words = rng.permutation([*rng.choice(topics[topic], 8), *STOP_WORDS])
        return " ".join(words)

    return write


@pytest.fixture(scope="session")
def texts(write: Write, sizes: Mapping[str, int]) -> list[str]:
    """Return a hundred texts, topic after topic."""
    return [write(topic) for topic, size in sizes.items() for _ in range(size)]


@pytest.fixture(scope="session")
def gateway(texts: list[str]) -> Gateway:
    return train(texts, 3, seed=1)


@pytest.fixture
def saved(gateway: Gateway, tmp_path: Path) -> Path:
    path = tmp_path / "gateway.npz"
    save_gateway(gateway, path)
    return path
