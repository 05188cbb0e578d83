"""A model of any architecture that runs: a decoder or a Switch Transformer, as it is written."""

from pathlib import Path

import torch

from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.quantise import precision_of
from engine.model.reading import spec_of
from engine.model.switch.checkpoint import load_switch, random_switch, save_switch
from engine.model.switch.config import MODEL_TYPE
from engine.model.switch.model import Switch
from moesim.facts.configs import DECODERS
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision


def load_model(
    path: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    precision: Precision | None = None,
) -> Decoder | Switch:
    """Read the checkpoint folder `path`, in its own number format unless `dtype` is given.

    With a `precision`, which only decoders take, weights are narrowed as they are read. Raises
    EngineError where `config.json` is not of an architecture that runs, or the weights are not that
    model's.
    """
    if precision or spec_of(path).model_type != MODEL_TYPE:
        return load_decoder(path, device, dtype, precision=precision)
    return load_switch(path, device, dtype)


def told_precision(path: Path, weights: str | None, rest: str | None) -> Precision | None:
    """Return what a command says of a checkpoint's formats, None where they stay as they are.

    `weights` is the format of all, `rest` of all but the experts. Raises EngineError for a model
    that cannot be narrowed.
    """
    if weights is None and rest is None:
        return None
    return precision_of(spec_of(path, DECODERS).dtype, weights, rest)


def random_model(
    spec: ModelSpec, seed: int, device: torch.device | str = "cpu"
) -> Decoder | Switch:
    """Create a full-size model of normal weights that keep activations and logits near one."""
    make = random_switch if spec.model_type == MODEL_TYPE else random_decoder
    return make(spec, seed, device)


def save_model(model: Decoder | Switch, path: Path) -> None:
    """Write the checkpoint folder `path`, as Hugging Face transformers reads it."""
    if isinstance(model, Switch):
        save_switch(model, path)
    else:
        save_decoder(model, path)
