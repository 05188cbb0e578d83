"""Tokenisers: bytes, and the checkpoint's own."""

import json
from pathlib import Path

import pytest
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing

from engine.server.errors import ApiError
from engine.server.tokens import ByteTokeniser, Tokeniser, tokeniser_of
from moesim.errors import EngineError


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Return a folder with a tokeniser of bytes, one merge and two special tokens."""
    letters = sorted(ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate([*letters, "he"])}
    tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[("h", "e")]))
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=False)
    tokenizer.decoder = ByteLevelDecoder()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.post_processor = TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 257)])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    (tmp_path / "config.json").write_text(json.dumps({"eos_token_id": 258}))
    return tmp_path


def spelled(tokeniser: Tokeniser, tokens: list[int]) -> list[str]:
    """Return what each token adds, and what is left at the end."""
    spelling = tokeniser.spelling()
    return [*map(spelling.add, tokens), spelling.end()]


def test_the_checkpoints_own_tokeniser(checkpoint: Path) -> None:
    """With its special tokens at the front only where asked for."""
    tokeniser = tokeniser_of(checkpoint, 300)
    tokens = tokeniser.encode("hey €", special_tokens=True)
    assert (tokeniser.name, tokeniser.eos) == ("tokenizer.json", frozenset({258}))
    assert tokens[:2] == [257, 256]
    assert tokeniser.encode("hey €", special_tokens=False) == tokens[1:]
    assert (tokeniser.piece(256), tokeniser.piece(258)) == ("he", "</s>")
    assert spelled(tokeniser, tokens) == ["", "he", "y", " ", "", "", "€", ""]


def test_what_the_stream_holds_back_comes_at_the_end(checkpoint: Path) -> None:
    """Half a euro sign."""
    tokeniser = tokeniser_of(checkpoint, 300)
    tokens = tokeniser.encode("a€", special_tokens=False)[:-1]
    assert "".join(spelled(tokeniser, tokens)) == "a\ufffd"


def test_without_a_tokeniser_tokens_are_bytes(tmp_path: Path) -> None:
    """256 ends an answer where the vocabulary has it and nothing else is declared."""
    tokeniser = tokeniser_of(tmp_path, 300)
    assert (tokeniser.name, tokeniser.eos) == ("bytes", frozenset({256}))
    assert tokeniser.encode("h€", special_tokens=True) == [104, 226, 130, 172]
    assert tokeniser_of(tmp_path, 256).eos == frozenset()
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [2, 7]}')
    assert tokeniser_of(tmp_path, 300).eos == frozenset({2, 7})


def test_tokens_beyond_the_bytes_are_one_character() -> None:
    """And end a character that was begun."""
    assert spelled(ByteTokeniser(300), [65, 226, 299, 66]) == ["A", "", "\ufffd\ufffd", "B", ""]


def test_bytes_that_the_vocabulary_lacks_are_refused() -> None:
    """The remedy is to give token ids."""
    with pytest.raises(ApiError, match=r"byte 226, the model's vocabulary ends at 96; give token"):
        ByteTokeniser(97).encode("€", special_tokens=True)


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_broken_files_are_named(checkpoint: Path, name: str) -> None:
    """In one line."""
    (checkpoint / name).write_text("{broken")
    with pytest.raises(EngineError, match=name):
        tokeniser_of(checkpoint, 300)


@pytest.mark.parametrize("wrong", ["x", [1, "x"], True, 1.5])
def test_an_end_that_is_no_token(tmp_path: Path, wrong: object) -> None:
    """Rather than answers that never end."""
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": wrong}))
    with pytest.raises(EngineError, match=r"generation_config.json: eos_token_id: .* not a token"):
        tokeniser_of(tmp_path, 300)
