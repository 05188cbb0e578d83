"""Answers as text: nothing lost, stop texts cut, half characters held back."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.server.tokens import ByteTokeniser
from engine.server.transcript import Ending, Transcript, Written

BYTES = ByteTokeniser(300)


def written(text: str, ending: Ending) -> list[Written]:
    """Return what each byte of a text adds, up to the end."""
    transcript, added = Transcript(BYTES, ending), []
    for token in text.encode():
        added.append(transcript.add(token))
        if added[-1].finish:
            break
    return added


@given(st.text(min_size=1), st.lists(st.text("ab", min_size=1, max_size=4), max_size=3))
def test_streamed_text_is_the_text_up_to_the_first_stop(text: str, stops: list[str]) -> None:
    """The first that is complete; whatever is held back on the way comes out at the end."""
    size = len(text.encode())
    added = written(text, Ending(max_tokens=size, texts=tuple(stops)))
    found = [(text.index(stop) + len(stop), text.index(stop)) for stop in stops if stop in text]
    cut = min(found, default=(0, len(text)))[1]
    assert "".join(part.text for part in added) == text[:cut]
    assert added[-1].finish == ("length" if cut == len(text) else "stop")


@given(st.text("ab", min_size=1), st.text("ab", min_size=1, max_size=3))
def test_a_kept_stop_ends_the_text(text: str, stop: str) -> None:
    """With `shown` the text ends with what ended it."""
    ending = Ending(max_tokens=len(text), texts=(stop,), shown=True)
    told = "".join(part.text for part in written(text, ending))
    assert told == (text[: text.index(stop) + len(stop)] if stop in text else text)


def test_only_what_may_become_a_stop_is_held_back() -> None:
    """`ab` may go on to `abc`, `abx` may not."""
    added = written("xababx", Ending(max_tokens=99, texts=("abc",)))
    assert [part.text for part in added] == ["x", "", "", "ab", "", "abx"]


def test_a_character_is_told_whole() -> None:
    """The euro sign is three bytes."""
    added = written("€!", Ending(max_tokens=99))
    assert [part.text for part in added] == ["", "", "€", "!"]


def test_half_a_character_at_the_end_is_replaced() -> None:
    """The length is reached in the middle of it."""
    added = written("€", Ending(max_tokens=2))
    assert [part.text for part in added] == ["", "\ufffd"]


@pytest.mark.parametrize(
    ("ending", "last"),
    [
        (Ending(max_tokens=9, eos=frozenset({66})), Written("", "stop")),
        (Ending(max_tokens=9, tokens=frozenset({66})), Written("", "stop", 66)),
        (Ending(max_tokens=9, tokens=frozenset({66}), shown=True), Written("B", "stop", 66)),
        (Ending(max_tokens=2, eos=frozenset({66})), Written("", "stop")),
        (Ending(max_tokens=2, texts=("B",)), Written("", "stop", "B")),
        (Ending(max_tokens=2), Written("B", "length")),
    ],
)
def test_what_ended_the_answer(ending: Ending, last: Written) -> None:
    """A stop counts before the length."""
    assert written("AB", ending) == [Written("A"), last]
