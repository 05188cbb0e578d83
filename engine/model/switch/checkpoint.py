"""Weights of Switch Transformers from and to Hugging Face checkpoint folders.

Read like a decoder's: each tensor is copied into its place in the allocated model, after all
shapes have been compared. Experts are `experts.expert_N.wi` and `.wo`, in old files and new.
"""

import json
import tempfile
from collections.abc import Mapping, Set
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from engine.model.reading import (
    SINGLE_FILE,
    Stored,
    check,
    dtype_name,
    headers,
    missing,
    opened,
    unexpected,
    weight_files,
)
from engine.model.switch.config import SwitchConfig, read_switch_config
from engine.model.switch.layout import DECODER_TABLE, ENCODER_TABLE, SHARED, TABLES, places
from engine.model.switch.model import Switch
from moesim.errors import EngineError, ScenarioError
from moesim.facts.models import ModelSpec
from moesim.files import write_text


def load_switch(
    path: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None
) -> Switch:
    """Read the checkpoint folder `path`, in its own number format unless `dtype` is given.

    Raises EngineError where the configuration is not a Switch Transformer's that we run, or a
    tensor is missing, of the wrong shape, not one of that model's or unreadable.
    """
    config = _config_of(path, dtype)
    spec = config.spec
    files = weight_files(path)
    stored = [tensor for file in files for tensor in headers(file)]
    names = {tensor.name for tensor in stored}
    own = not spec.tie_word_embeddings and {ENCODER_TABLE, DECODER_TABLE} <= names
    # Shapes are compared on tensors without memory, before any weight is allocated or read.
    wanted = _matched(stored, _placed(Switch(config, "meta", own), names), files)
    model = Switch(config, device, own)
    _read(wanted, _placed(model, names))
    return model


def random_switch(spec: ModelSpec, seed: int, device: torch.device | str = "cpu") -> Switch:
    """Create a full-size model of normal weights that keep activations and logits near one.

    The same seed gives the same weights on the same kind of device.
    """
    model = Switch(SwitchConfig(spec=spec), device)
    generator = torch.Generator(device=model.device).manual_seed(seed)
    for weight in model.parameters():
        if weight.dim() == 1:
            weight.fill_(1.0)
        else:
            weight.normal_(std=weight.shape[-1] ** -0.5, generator=generator)
    # Scores are not divided by the root of the head size, so that queries are, as in T5.
    for queries in _query_projections(model):
        queries.mul_(spec.head_dim**-0.5)
    # As large as what the layers add, so that the router tells tokens apart, not positions.
    model.embed.mul_(spec.hidden_size**0.5)
    if spec.tie_word_embeddings:
        # Smaller where it is the head too, or the likeliest token would always be the last one.
        model.embed.mul_(spec.hidden_size**-0.25)
        model.decoder.norm.mul_(spec.hidden_size**0.25)
    return model


def save_switch(model: Switch, path: Path) -> None:
    """Write the checkpoint folder `path`, two tensors an expert."""
    if path.exists():
        raise EngineError(f"{path}: exists already; choose another folder or remove this one")
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}-") as draft:
        folder = Path(draft) / path.name
        folder.mkdir()
        write_text(folder / "config.json", json.dumps(model.config.to_config(), indent=2) + "\n")
        tensors = {name: place.cpu().contiguous() for name, place in places(model).items()}
        save_file(tensors | _copies(model), folder / SINGLE_FILE, metadata={"format": "pt"})
        folder.rename(path)


def _config_of(path: Path, dtype: torch.dtype | None) -> SwitchConfig:
    try:
        return read_switch_config(path, None if dtype is None else dtype_name(dtype))
    except ScenarioError as wrong:
        raise EngineError(str(wrong)) from None


def _placed(model: Switch, names: Set[str]) -> dict[str, Tensor]:
    """Return the places of tensors; the shared table's by the name by which it is stored."""
    found = places(model)
    same = TABLES if model.spec.tie_word_embeddings else (SHARED, ENCODER_TABLE, DECODER_TABLE)
    stored = [name for name in same if name in names]
    if SHARED in found and stored:
        found[stored[0]] = found.pop(SHARED)
    return found


def _matched(stored: list[Stored], expected: dict[str, Tensor], files: list[Path]) -> list[Stored]:
    """Return the tensors to read, after comparing what is stored with what the model needs."""
    wanted = []
    for tensor in stored:
        place = expected.pop(tensor.name, None)
        if place is None and tensor.name in TABLES:
            continue  # one more copy of a table that another name stands for
        if place is None:
            raise unexpected(tensor)
        check(tensor, tuple(place.shape))
        wanted.append(tensor)
    if expected:
        raise missing(expected, files)
    return wanted


def _read(wanted: list[Stored], targets: Mapping[str, Tensor]) -> None:
    for file in sorted({tensor.file for tensor in wanted}):
        with opened(file) as tensors:
            for name in (tensor.name for tensor in wanted if tensor.file == file):
                targets[name].copy_(tensors.get_tensor(name))


def _query_projections(model: Switch) -> list[Tensor]:
    encoder, decoder = model.encoder.encoder_layers, model.decoder.decoder_layers
    own = [layer.attention for layer in encoder] + [layer.attention for layer in decoder]
    first = [attention.qkv.data.chunk(3)[0] for attention in own]
    return [*first, *(layer.cross.q.data for layer in decoder)]


def _copies(model: Switch) -> dict[str, Tensor]:
    """Return the tables under the names that transformers looks for without tied embeddings."""
    if model.spec.tie_word_embeddings:
        return {}
    shared, own = model.embed.cpu(), model.decoder_embed.cpu()
    return {SHARED: shared.clone(), ENCODER_TABLE: shared.clone(), DECODER_TABLE: own.clone()}
