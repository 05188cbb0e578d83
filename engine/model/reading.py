"""Reading safetensors files: what is in a checkpoint folder, compared before any weight is read."""

import json
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from moesim.errors import EngineError, ScenarioError
from moesim.facts.configs import RUNNABLE
from moesim.facts.models import DTYPE_BYTES, ModelSpec, read_config

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
READABLE_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file says of one tensor, before it is read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def spec_of(path: Path, architectures: Collection[str] = RUNNABLE) -> ModelSpec:
    """Read a folder's `config.json`; EngineError where it is not of one of the `architectures`."""
    try:
        return read_config(path, architectures)
    except ScenarioError as wrong:
        raise EngineError(str(wrong)) from None


def weight_files(path: Path) -> list[Path]:
    """Return the safetensors files of a folder, by its index where it is sharded."""
    if (path / SINGLE_FILE).exists():
        return [path / SINGLE_FILE]
    index = path / INDEX_FILE
    if not index.exists():
        raise EngineError(
            f"{path}: neither {SINGLE_FILE} nor {INDEX_FILE}; "
            "give a checkpoint saved as safetensors (save_pretrained writes one)"
        )
    try:
        names = set(json.loads(index.read_text())["weight_map"].values())
        files = sorted(path / name for name in names)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as wrong:
        raise EngineError(
            f"{index}: not a safetensors index ({type(wrong).__name__}: {wrong}); "
            "download or save it again"
        ) from None
    if not files:
        raise EngineError(f"{index}: weight_map: names no file; download or save it again")
    return files


@contextmanager
def opened(file: Path) -> Iterator[Any]:
    """Open a safetensors file; EngineError for what goes wrong while it is open."""
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as wrong:
        raise EngineError(
            f"{file}: not readable as safetensors ({wrong}); download or save it again"
        ) from None


def headers(file: Path) -> list[Stored]:
    """Return what a file says of each of its tensors."""
    with opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 not a dict
        return [
            Stored(file, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        ]


def check(tensor: Stored, shape: tuple[int, ...]) -> None:
    """Raise EngineError where a tensor has another shape than its place, or no readable format."""
    if tensor.shape != shape:
        raise EngineError(
            f"{tensor.file}: {tensor.name}: shape {list(tensor.shape)} is not {list(shape)}; "
            "config.json belongs to another model"
        )
    if tensor.dtype not in READABLE_DTYPES:
        raise EngineError(
            f"{tensor.file}: {tensor.name}: dtype {tensor.dtype} is not one of "
            f"{', '.join(READABLE_DTYPES)}; give a checkpoint that is not quantised"
        )


def unexpected(tensor: Stored) -> EngineError:
    """Return the error of a tensor that has no place, or whose place is taken."""
    return EngineError(
        f"{tensor.file}: {tensor.name}: unexpected or repeated tensor; "
        "give a checkpoint of the model that config.json describes"
    )


def missing(names: Collection[str], files: list[Path]) -> EngineError:
    """Return the error of places that no file has a tensor for."""
    file = files[0] if len(files) == 1 else files[0].parent / INDEX_FILE
    return EngineError(
        f"{file}: {next(iter(names))}: missing tensor (of {len(names)} missing); "
        "give a complete checkpoint of the model that config.json describes"
    )


def dtype_name(dtype: torch.dtype) -> str:
    """Return the name of a number format that models run in."""
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise EngineError(f"dtype: {name} is not one of {', '.join(DTYPE_BYTES)}")
    return name
