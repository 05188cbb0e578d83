"""Weights from and to Hugging Face checkpoint folders (`config.json` and safetensors files).

Every tensor of a file has one place in the allocated model, into which it is copied as it is read,
so that a checkpoint needs its own size in memory and no more.
"""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from engine.model.decoder import Decoder
from engine.model.layout import places
from moesim.errors import EngineError, ScenarioError
from moesim.facts.configs import DECODERS
from moesim.facts.models import DTYPE_BYTES, ModelSpec, read_config
from moesim.files import write_text

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
FUSED_SUFFIX = ".mlp.experts.gate_up_proj"
READABLE_DTYPES = ("F64", "F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class Stored:
    """What a file says of one tensor, before it is read."""

    file: Path
    name: str
    shape: tuple[int, ...]
    dtype: str


def load_decoder(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Decoder:
    """Read the checkpoint folder `path`, in its own number format unless `dtype` is given.

    Raises EngineError where the configuration is not a decoder's that we run, or a tensor is
    missing, of the wrong shape, not one of that decoder's or unreadable.
    """
    spec = _spec_of(path)
    if dtype is not None:
        spec = replace(spec, dtype=_dtype_name(dtype))
    files = _weight_files(path)
    stored = [tensor for file in files for tensor in _headers(file)]
    # Shapes are compared on tensors without memory, before any weight is allocated or read.
    wanted = _matched(stored, Decoder(spec, "meta"), files)
    model = Decoder(spec, device)
    targets = places(model, _fused(stored))
    for file in files:
        with _opened(file) as tensors:
            for name in (tensor.name for tensor in wanted if tensor.file == file):
                targets[name].copy_(tensors.get_tensor(name))
    return model


def random_decoder(spec: ModelSpec, seed: int, device: torch.device | str = "cpu") -> Decoder:
    """Create a full-size decoder of normal weights that keep activations and logits near one.

    The same seed gives the same weights on the same kind of device.
    """
    model = Decoder(spec, device)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    if not spec.tie_word_embeddings:
        # As large as what the layers add, so that the router tells tokens apart, not positions.
        model.embed.mul_(spec.hidden_size**0.5)
    return model


def save_decoder(model: Decoder, path: Path) -> None:
    """Write the checkpoint folder `path`, one tensor a projection of each expert."""
    if path.exists():
        raise EngineError(f"{path}: exists already; choose another folder or remove this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as draft:
        folder = Path(draft) / path.name
        folder.mkdir()
        write_text(folder / "config.json", json.dumps(model.spec.to_config(), indent=2) + "\n")
        tensors = {name: place.cpu() for name, place in places(model, fused=False).items()}
        save_file(tensors, folder / SINGLE_FILE, metadata={"format": "pt"})
        folder.rename(path)


def _spec_of(path: Path) -> ModelSpec:
    try:
        return read_config(path, DECODERS)
    except ScenarioError as wrong:
        raise EngineError(str(wrong)) from None


def _dtype_name(dtype: torch.dtype) -> str:
    name = str(dtype).removeprefix("torch.")
    if name not in DTYPE_BYTES:
        raise EngineError(f"dtype: {name} is not one of {', '.join(DTYPE_BYTES)}")
    return name


def _weight_files(path: Path) -> list[Path]:
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
def _opened(file: Path) -> Iterator[Any]:
    try:
        with safe_open(file, framework="pt") as tensors:
            yield tensors
    except (SafetensorError, OSError) as wrong:
        raise EngineError(
            f"{file}: not readable as safetensors ({wrong}); download or save it again"
        ) from None


def _headers(file: Path) -> list[Stored]:
    with _opened(file) as tensors:
        slices = {name: tensors.get_slice(name) for name in tensors.keys()}  # noqa: SIM118 not a dict
        return [
            Stored(file, name, tuple(part.get_shape()), part.get_dtype())
            for name, part in slices.items()
        ]


def _fused(stored: list[Stored]) -> bool:
    return any(tensor.name.endswith(FUSED_SUFFIX) for tensor in stored)


def _matched(stored: list[Stored], model: Decoder, files: list[Path]) -> list[Stored]:
    """Return the tensors to read, after comparing what is stored with what the model needs."""
    expected = places(model, _fused(stored))
    wanted = []
    for tensor in stored:
        if _redundant(tensor.name, model.spec):
            continue
        place = expected.pop(tensor.name, None)
        if place is None:
            raise EngineError(
                f"{tensor.file}: {tensor.name}: unexpected or repeated tensor; "
                "give a checkpoint of the model that config.json describes"
            )
        _check(tensor, tuple(place.shape))
        wanted.append(tensor)
    if expected:
        file = files[0] if len(files) == 1 else files[0].parent / INDEX_FILE
        raise EngineError(
            f"{file}: {next(iter(expected))}: missing tensor (of {len(expected)} missing); "
            "give a complete checkpoint of the model that config.json describes"
        )
    return wanted


def _redundant(name: str, spec: ModelSpec) -> bool:
    """Tell whether a tensor repeats what the model has: a tied head, or old RoPE constants."""
    tied_head = name == "lm_head.weight" and spec.tie_word_embeddings
    return tied_head or name.endswith(".rotary_emb.inv_freq")


def _check(tensor: Stored, shape: tuple[int, ...]) -> None:
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
