"""The model that is calibrated: a checkpoint folder, or random weights of a shipped shape."""

import hashlib
import json
from dataclasses import asdict, replace
from pathlib import Path

import torch

from engine.model.checkpoint import load_decoder, random_decoder
from engine.model.decoder import Decoder
from moesim.errors import CalibrationError
from moesim.facts.catalog import load_model
from moesim.facts.models import ModelSpec
from moesim.facts.precision import OF_DTYPE, Precision


def device_of(name: str | None = None) -> torch.device:
    """Return the device to use: CUDA if there is one, else the CPU, unless told."""
    return torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))


def dtype_of(name: str) -> str:
    """Return the number format that `name` is short for; CalibrationError with those there are.

    >>> dtype_of("bf16"), dtype_of("float32")
    ('bfloat16', 'float32')
    """
    known = {short: dtype for dtype, short in OF_DTYPE.items()}
    if name in OF_DTYPE:
        return name
    if name not in known:
        raise CalibrationError(f"--dtype: {name!r} is not one of {', '.join(known)}")
    return known[name]


def open_model(
    name: str,
    device: torch.device,
    precision: Precision | None = None,
    *,
    dtype: str | None = None,
) -> Decoder:
    """Load the checkpoint folder `name`, or make random weights (seed 0) of a config's shape.

    In its own number format, unless `dtype` names another; with a `precision` weights are narrowed
    as they come. Raises CalibrationError for what is not a decoder, before any weight is read.
    """
    spec = load_model(name)
    if spec.num_encoder_layers:
        raise CalibrationError(
            f"{name}: model_type: {spec.model_type!r} can be served but not calibrated; "
            "give a decoder"
        )
    if Path(name).is_dir():
        told = getattr(torch, dtype) if dtype else None
        return load_decoder(Path(name), device, told, precision=precision)
    spec = replace(spec, dtype=dtype or spec.dtype)
    return random_decoder(spec, seed=0, device=device, precision=precision)


def model_digest(name: str, spec: ModelSpec, precision: Precision | None = None) -> str:
    """Hash a model's configuration and, for a checkpoint, its files' names, sizes and headers.

    With a `precision` that weights are narrowed to it is another model.
    """
    parts = [json.dumps(spec.to_config(), sort_keys=True)]
    if precision is not None:
        parts.append(json.dumps(asdict(precision), sort_keys=True))
    if Path(name).is_dir():
        for file in sorted(Path(name).glob("*.safetensors")):
            with file.open("rb") as stream:
                head = hashlib.sha256(stream.read(1 << 20)).hexdigest()
            parts.append(f"{file.name} {file.stat().st_size} {head}")
    else:
        parts.append("random weights, seed 0")
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
