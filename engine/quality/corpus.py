"""Four domains of text that lie wherever Python and torch are installed, divided by hash.

    python    the standard library's modules
    cpp       headers of torch's C++ interface
    prose     Python's language reference, as `help()` shows it
    yaml      torchgen's declarations of operators and derivatives

Which texts, and how they are divided, follows from their names and contents alone: sorted, then in
the order of their hashes. A paragraph that was there before is left out, so that licences and other
boilerplate are not what a held-out text is recognised by.
"""

import hashlib
import sysconfig
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain
from pathlib import Path

import torch
from torch import Tensor

from moesim.errors import EngineError

Texts = Iterator[tuple[str, str]]
"""Names and contents."""

PART_BYTES = 4096
"""Long files without parts of their own are cut at the paragraph that ends so many bytes."""
FEWEST_TEXTS = 12
"""Texts that each of training, validation and test consists of at least."""
LARGEST_BYTES = 1 << 18
"""Larger files are tables or generated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shares:
    """How many bytes of a domain are for what."""

    training: int
    validation: int
    test: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Domain:
    """A domain's bytes, (n,) each: to learn from, to choose settings by, and to be measured on."""

    name: str
    training: Tensor
    validation: Tensor
    test: Tensor

    @property
    def digest(self) -> str:
        """Hash of all bytes."""
        parts = (self.training, self.validation, self.test)
        whole = b"".join(bytes(part.tolist()) for part in parts)
        return hashlib.sha256(whole).hexdigest()[:16]


def domains(shares: Shares) -> list[Domain]:
    """Gather the four domains; EngineError where a host has too little of one."""
    return [divided(name, texts(), shares) for name, texts in SOURCES.items()]


def divided(name: str, texts: Iterable[tuple[str, str]], shares: Shares) -> Domain:
    """Divide texts into three parts by the hash of their names: none is in two of them."""
    order = sorted(texts, key=lambda text: hashlib.sha256(text[0].encode()).digest())
    unrepeated = _unrepeated(content for _, content in order)
    parts = [
        _taken(name, unrepeated, size) for size in (shares.test, shares.validation, shares.training)
    ]
    return Domain(name=name, test=parts[0], validation=parts[1], training=parts[2])


def _taken(name: str, texts: Iterator[str], size: int) -> Tensor:
    """Take texts until there are `size` bytes, of each no more than a part of them."""
    longest = size // FEWEST_TEXTS
    found = b""
    while len(found) < size:
        content = next(texts, None)
        if content is None:
            raise EngineError(
                f"quality: {name}: this host has {len(found)} bytes where {size} are wanted; "
                "lower --training-kib"
            )
        found += content.encode()[:longest]
    return torch.frombuffer(bytearray(found[:size]), dtype=torch.uint8)


def _unrepeated(texts: Iterable[str]) -> Iterator[str]:
    """Leave out paragraphs that were in an earlier text, or earlier in this one."""
    seen: set[str] = set()
    for content in texts:
        kept = []
        for paragraph in content.split("\n\n"):
            key = " ".join(paragraph.split())
            if key and key not in seen:
                seen.add(key)
                kept.append(paragraph)
        if kept:
            yield "\n\n".join(kept) + "\n\n"


def _files(root: Path, pattern: str, left_out: frozenset[str] = frozenset()) -> Texts:
    """Read a folder's files that are ASCII and of ordinary size, but for some folders."""
    for path in sorted(root.rglob(pattern)):
        name = path.relative_to(root)
        if left_out.isdisjoint(name.parts) and path.stat().st_size <= LARGEST_BYTES:
            content = path.read_bytes()
            if content.isascii():
                yield name.as_posix(), content.decode()


def _python() -> Texts:
    left_out = {"site-packages", "dist-packages", "test", "tests", "encodings", "pydoc_data"}
    return _files(Path(sysconfig.get_path("stdlib")), "*.py", frozenset(left_out))


def _cpp() -> Texts:
    return _files(Path(torch.__file__).parent / "include" / "torch", "*.h")


def _prose() -> Texts:
    from pydoc_data.topics import topics

    return _parts("topics", "\n\n".join(content for _, content in sorted(topics.items())))


def _yaml() -> Texts:
    root = Path(str(files("torchgen"))) / "packaged"
    found = sorted(root.rglob("*.yaml"))
    return chain.from_iterable(_parts(path.name, path.read_text()) for path in found)


def _parts(name: str, content: str) -> Texts:
    """Cut a long text between paragraphs."""
    part, number = "", 0
    for paragraph in content.split("\n\n"):
        part += paragraph + "\n\n"
        if len(part) >= PART_BYTES:
            yield f"{name} {number}", part
            part, number = "", number + 1
    yield f"{name} {number}", part


SOURCES: dict[str, Callable[[], Texts]] = {
    "python": _python,
    "cpp": _cpp,
    "prose": _prose,
    "yaml": _yaml,
}
"""Where each domain's texts come from."""
