"""The four domains: the same on every run, with nothing in two of their parts."""

import hashlib
from itertools import combinations

import pytest

from engine.quality.corpus import Domain, Shares, divided, domains
from moesim.errors import EngineError

SHARES = Shares(training=16 << 10, validation=4 << 10, test=8 << 10)


@pytest.fixture(scope="module")
def found() -> list[Domain]:
    return domains(SHARES)


def paragraphs(part: object) -> set[str]:
    """Return the whole paragraphs of a part, in the spacing of words alone."""
    content = bytes(part.tolist()).decode()  # type: ignore[attr-defined]
    return {" ".join(one.split()) for one in content.split("\n\n")[1:-1]} - {""}


def test_four_domains_of_the_size_asked_for(found: list[Domain]) -> None:
    assert [domain.name for domain in found] == ["python", "cpp", "prose", "yaml"]
    for domain in found:
        sizes = (domain.training.numel(), domain.validation.numel(), domain.test.numel())
        assert sizes == (16 << 10, 4 << 10, 8 << 10)


def test_no_paragraph_is_in_two_parts(found: list[Domain]) -> None:
    """But for those that were cut in two at the end of a text, which the parts begin or end with.

    A cut paragraph is shorter than the whole one, so that it is not the same.
    """
    for domain in found:
        parts = (domain.training, domain.validation, domain.test)
        for one, other in combinations(map(paragraphs, parts), 2):
            assert len(one) > 5
            assert not one & other


def test_they_are_the_same_again(found: list[Domain]) -> None:
    again = domains(SHARES)
    assert [domain.digest for domain in again] == [domain.digest for domain in found]
    assert len({domain.digest for domain in found}) == 4


def test_texts_are_in_the_order_of_their_hashes() -> None:
    """Whatever order they are found in; each gives at most a twelfth of a part."""
    texts = [(f"text {number}", f"{number:04}" * 6 + "\n\n") for number in range(40)]
    shares = Shares(training=120, validation=60, test=60)
    one, other = divided("d", texts, shares), divided("d", texts[::-1], shares)
    assert one.digest == other.digest
    order = sorted(texts, key=lambda text: hashlib.sha256(text[0].encode()).digest())
    assert bytes(one.test.tolist()).decode() == "".join(content[:5] for _, content in order[:12])


def test_repeated_paragraphs_are_left_out() -> None:
    """A licence in every text is there once, with other spaces too."""
    texts = [(str(number), f"The  licence\n\nBody {number:03}\n\n") for number in range(90)]
    one = divided("d", texts, Shares(training=300, validation=300, test=300))
    whole = b"".join(bytes(part.tolist()) for part in (one.test, one.validation, one.training))
    assert whole.count(b"The") == 1


def test_too_little_text() -> None:
    with pytest.raises(EngineError, match="d: this host has 10 bytes where 60 are wanted; lower"):
        divided("d", [("a", "one"), ("b", "two")], Shares(training=120, validation=60, test=60))
