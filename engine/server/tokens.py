"""Text to tokens and back: the checkpoint's own tokeniser, or bytes where it has none."""

import codecs
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from engine.server.errors import ApiError
from moesim.errors import EngineError

TOKENISER_FILE = "tokenizer.json"
DECLARING_FILES = ("generation_config.json", "config.json")
"""Where a checkpoint says which tokens end an answer, the first that does so holds."""
BYTES = 256
UNKNOWN = "\ufffd"


class Spelling(Protocol):
    """Spells one answer, token by token."""

    def add(self, token: int) -> str:
        """Return the text that is certain by now and was not returned before."""

    def end(self) -> str:
        """Return what is left."""


class Tokeniser(Protocol):
    """What the server asks of a tokeniser."""

    name: str
    """What `/v1/models` calls it."""
    eos: frozenset[int]
    """The tokens that end an answer."""

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Return a text's tokens, with those that the model expects around it if asked for."""

    def piece(self, token: int) -> str:
        """Return what one token looks like by itself."""

    def raw(self, token: int) -> bytes:
        """Return the bytes that one token stands for."""

    def spelling(self) -> Spelling:
        """Begin an answer."""


def tokeniser_of(checkpoint: Path, vocabulary: int) -> Tokeniser:
    """Return the tokeniser of a checkpoint folder; bytes where it has no `tokenizer.json`."""
    eos = _declared_eos(checkpoint)
    file = checkpoint / TOKENISER_FILE
    if file.exists():
        return FileTokeniser(file, eos)
    return ByteTokeniser(vocabulary, eos)


def _declared_eos(checkpoint: Path) -> frozenset[int]:
    """Return the ends of an answer that a checkpoint declares, none if it declares none."""
    for name in DECLARING_FILES:
        found = _content(checkpoint / name).get("eos_token_id")
        if found is None:
            continue
        tokens = found if isinstance(found, list) else [found]
        if not all(type(token) is int for token in tokens):
            raise EngineError(
                f"{checkpoint / name}: eos_token_id: {found!r} is not a token or a list of them; "
                "correct it, or leave it out"
            )
        return frozenset(tokens)
    return frozenset()


def _content(file: Path) -> Mapping[str, Any]:
    if not file.exists():
        return {}
    try:
        content = json.loads(file.read_text())
    except (OSError, ValueError) as wrong:
        raise EngineError(f"{file}: not readable as JSON ({wrong}); save it again") from None
    return content if isinstance(content, dict) else {}


class ByteTokeniser:
    """A token a byte of UTF-8, for checkpoints of random weights.

    Tokens 0 to 255 are the bytes and 256 ends an answer, unless the checkpoint declares another
    end. All others are written as U+FFFD, one character each. A vocabulary below 256 has no tokens
    for the higher bytes.
    """

    name = "bytes"

    def __init__(self, vocabulary: int, eos: frozenset[int] = frozenset()) -> None:
        self.eos = eos or frozenset({BYTES} if vocabulary > BYTES else ())
        self._vocabulary = vocabulary

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Return the bytes of a text; there is nothing to put around them."""
        tokens = list(text.encode())
        if tokens and max(tokens) >= self._vocabulary:
            raise ApiError(
                400,
                f"the text has byte {max(tokens)}, the model's vocabulary ends at "
                f"{self._vocabulary - 1}; give token ids",
                param="prompt",
            )
        return tokens

    def piece(self, token: int) -> str:
        """Return one byte as text, U+FFFD where it is not a character by itself."""
        return self.raw(token).decode(errors="replace")

    def raw(self, token: int) -> bytes:
        """Return one byte; of the tokens beyond, those of U+FFFD."""
        return bytes([token]) if token < BYTES else UNKNOWN.encode()

    def spelling(self) -> Spelling:
        """Begin an answer."""
        return _ByteSpelling()


class _ByteSpelling:
    """Holds back the bytes of a character until it is whole."""

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def add(self, token: int) -> str:
        if token < BYTES:
            return self._decoder.decode(bytes([token]))
        return self.end() + UNKNOWN

    def end(self) -> str:
        text = self._decoder.decode(b"", final=True)
        self._decoder.reset()
        return text


class FileTokeniser:
    """A checkpoint's own `tokenizer.json`, read by Hugging Face's `tokenizers`."""

    name = TOKENISER_FILE

    def __init__(self, file: Path, eos: frozenset[int]) -> None:
        try:
            from tokenizers import Tokenizer
        except ModuleNotFoundError:
            raise EngineError(
                f"{file}: needs the package tokenizers; pip install 'moesim[server]'"
            ) from None
        try:
            self._tokenizer = Tokenizer.from_file(str(file))
        # The library raises bare exceptions for whatever it cannot read.
        except Exception as wrong:
            raise EngineError(f"{file}: not a tokeniser ({wrong}); save it again") from None
        self.eos = eos

    def encode(self, text: str, special_tokens: bool) -> list[int]:
        """Return a text's tokens."""
        return list(self._tokenizer.encode(text, add_special_tokens=special_tokens).ids)

    def piece(self, token: int) -> str:
        """Return one token's text, special tokens included."""
        return str(self._tokenizer.decode([token], skip_special_tokens=False))

    def raw(self, token: int) -> bytes:
        """Return one token's text in UTF-8; of half a character, that of U+FFFD."""
        return self.piece(token).encode()

    def spelling(self) -> Spelling:
        """Begin an answer; special tokens are left out."""
        return _FileSpelling(self._tokenizer)


class _FileSpelling:
    """Spells through the library's stream, which holds back what may still change."""

    def __init__(self, tokenizer: Any) -> None:
        from tokenizers.decoders import DecodeStream

        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._tokens: list[int] = []
        self._told = ""

    def add(self, token: int) -> str:
        self._tokens.append(token)
        text = self._stream.step(self._tokenizer, token) or ""
        self._told += text
        return text

    def end(self) -> str:
        whole = self._tokenizer.decode(self._tokens, skip_special_tokens=True)
        return whole.removeprefix(self._told) if whole.startswith(self._told) else ""
