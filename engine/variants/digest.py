"""A checkpoint's digest: by it a file that was made from a checkpoint knows that one again."""

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

from engine.model.reading import weight_files
from moesim.errors import EngineError, ScenarioError
from moesim.facts.models import read_config

SAMPLES = 4
SAMPLE_BYTES = 1024
"""Of each tensor so much is hashed, spread over its length: fine-tuning that changes a tensor
changes nearly all of its values. Mixtral's 995 tensors make 4 MB to read of 93 GB."""


def digest(path: Path) -> str:
    """Hash a checkpoint folder: its shape, and all tensors' names, formats, sizes and samples."""
    try:
        spec = read_config(path)
    except ScenarioError as wrong:
        raise EngineError(str(wrong)) from None
    whole = hashlib.sha256(json.dumps(spec.to_config(), sort_keys=True).encode())
    for file in weight_files(path):
        whole.update(file.name.encode())
        try:
            with file.open("rb") as stream:
                for piece in _pieces(stream):
                    whole.update(piece)
        except (OSError, ValueError, KeyError, TypeError) as wrong:
            raise EngineError(
                f"{file}: not readable as safetensors ({wrong}); download or save it again"
            ) from None
    return whole.hexdigest()[:16]


def _pieces(stream: BinaryIO) -> Iterator[bytes]:
    """Yield a safetensors file's header, and samples of each tensor that it names."""
    size = stream.seek(0, 2)
    stream.seek(0)
    length = int.from_bytes(stream.read(8), "little")
    if length > size:
        raise ValueError(f"a header of {length} bytes in a file of {size}")
    header = stream.read(length)
    yield header
    described: dict[str, Any] = json.loads(header)
    described.pop("__metadata__", None)
    for tensor in described.values():
        start, end = (8 + length + offset for offset in tensor["data_offsets"])
        for sample in _starts(start, end):
            stream.seek(sample)
            yield stream.read(min(SAMPLE_BYTES, end - sample))


def _starts(start: int, end: int) -> list[int]:
    """Return where samples of the bytes from `start` to `end` begin, the first and the last of all.

    >>> _starts(0, 9024)
    [0, 2666, 5333, 8000]
    """
    last = max(start, end - SAMPLE_BYTES)
    spread = range(SAMPLES)
    return sorted({start + (last - start) * sample // (SAMPLES - 1) for sample in spread})
