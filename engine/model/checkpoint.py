"""Weights from and to Hugging Face checkpoint folders (`config.json` and safetensors files).

Every tensor of a file has one place in the allocated model, into which it is copied as it is read,
so that a checkpoint needs its own size in memory and no more.
"""

import json
import tempfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.decoder_layer import DecoderLayer
from engine.model.layout import layer_places, places
from engine.model.parallel import WHOLE, Rank
from engine.model.quantise import blank_decoder, plain_dtype
from engine.model.reading import (
    SINGLE_FILE,
    Stored,
    check,
    dtype_name,
    headers,
    missing,
    opened,
    spec_of,
    unexpected,
    weight_files,
)
from moesim.errors import EngineError
from moesim.facts.configs import DECODERS
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.files import write_text

LAYERS = "model.layers."
FUSED_SUFFIX = ".mlp.experts.gate_up_proj"


def load_decoder(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    rank: Rank = WHOLE,
    precision: Precision | None = None,
) -> Decoder:
    """Read the checkpoint folder `path`, in its own number format unless told.

    With a `precision` weights are narrowed as they are read; `dtype` is then of the others alone.

    A rank that shares the model takes no more than its part into memory. Raises EngineError where
    the configuration is not a decoder's that we run, or a tensor is missing, of the wrong shape,
    not one of that decoder's or unreadable.
    """
    spec = spec_of(path, DECODERS)
    told = dtype_name(dtype) if dtype is not None else None
    told = plain_dtype(precision, told) if precision else told
    spec = replace(spec, dtype=told or spec.dtype)
    files = weight_files(path)
    stored = [tensor for file in files for tensor in headers(file)]
    # Shapes are compared on tensors without memory, before any weight is allocated or read.
    wanted = _matched(stored, Decoder(spec, "meta"), files)
    fused = _fused(stored)
    model, layers = blank_decoder(spec, device, rank, precision)
    everywhere = places(model, fused).items()
    _read({name: place for name, place in everywhere if not name.startswith(LAYERS)}, wanted, rank)
    for layer in layers:
        own = layer_places(layer, fused).items()
        _read({f"{LAYERS}{layer.index}.{name}": place for name, place in own}, wanted, rank)
    return model


def random_decoder(
    spec: ModelSpec,
    seed: int,
    device: torch.device | str = "cpu",
    rank: Rank = WHOLE,
    precision: Precision | None = None,
) -> Decoder:
    """Create a full-size decoder of normal weights that keep activations and logits near one.

    The same seed gives the same weights on the same kind of device. A rank that shares the model
    makes the layers whole, one by one, and keeps its part.
    """
    if precision:
        spec = replace(spec, dtype=plain_dtype(precision))
    model, layers = blank_decoder(spec, device, rank, precision)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    _randomise(model.named_parameters(recurse=False), generator)
    for layer in layers:
        if rank.count == 1:
            _randomise(layer.named_parameters(), generator)
            continue
        whole = DecoderLayer(spec, layer.index, model.device)
        _randomise(whole.named_parameters(), generator)
        own = layer_places(layer, fused=True)
        for name, tensor in layer_places(whole, fused=True).items():
            rank.fill(own[name], name, tensor)
    if not spec.tie_word_embeddings:
        # As large as what the layers add, so that the router tells tokens apart, not positions.
        model.embed.mul_(spec.hidden_size**0.5)
    return model


def _randomise(weights: Iterable[tuple[str, Tensor]], generator: torch.Generator) -> None:
    """Fill weights, given by name: norms with ones, biases with zeros, matrices at random."""
    for name, weight in weights:
        if weight.dim() == 1:
            weight.fill_(0.0 if name.endswith("bias") else 1.0)
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)


def _read(targets: dict[str, Tensor], wanted: list[Stored], rank: Rank) -> None:
    """Fill places, given by name, from the files that their tensors are in."""
    own = [tensor for tensor in wanted if tensor.name in targets]
    for file in dict.fromkeys(tensor.file for tensor in own):
        with opened(file) as tensors:
            for name in (tensor.name for tensor in own if tensor.file == file):
                rank.fill(targets[name], name, tensors.get_tensor(name))


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
            raise unexpected(tensor)
        check(tensor, tuple(place.shape))
        wanted.append(tensor)
    if expected:
        raise missing(expected, files)
    return wanted


def _redundant(name: str, spec: ModelSpec) -> bool:
    """Tell whether a tensor repeats what the model has: a tied head, or old RoPE constants."""
    tied_head = name == "lm_head.weight" and spec.tie_word_embeddings
    return tied_head or name.endswith(".rotary_emb.inv_freq")
