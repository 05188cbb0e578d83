"""What a table's names mean: models, GPUs and number formats as moesim knows them.

A model that is not shipped may have a shipped one's shape but for a few fields. Those are of the
checkpoints' public config.json files.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from types import MappingProxyType
from typing import Any

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.facts.configs import DECODERS
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision


class UnknownRowError(Exception):
    """A row that cannot be simulated; the text is the reason under which it is counted."""


def nearest(name: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Return the known names that are most like one, as the end of a reason; "" if none is.

    >>> nearest("h100-sx", ["h100-sxm-80gb", "l40s-48gb"])
    ': nearest is h100-sxm-80gb'
    """
    alike = get_close_matches(name, list(known), cutoff=cutoff)
    return f": nearest {'is' if len(alike) == 1 else 'are'} {', '.join(alike)}" if alike else ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Like:
    """A model of a shipped model's shape, but for some keys of its config.json."""

    shipped: str
    but: Mapping[str, Any]


def _like(name: str, **but: Any) -> Like:
    return Like(shipped=name, but=MappingProxyType(but))


_LONG = 131072
"""Context of Llama 3.1 and later [tokens]."""

MODELS: tuple[tuple[str, Like], ...] = (
    (r"mixtral-8x7b", _like("mixtral-8x7b")),
    (r"mixtral-8x22b", _like("mixtral-8x22b")),
    (r"llama-3(\.\d)?-8b", _like("llama-3-8b", max_position_embeddings=_LONG)),
    (r"llama-3(\.\d)?-70b", _like("llama-3-70b", max_position_embeddings=_LONG)),
    (
        r"llama-3\.1-405b",
        _like(
            "llama-3-70b",
            hidden_size=16384,
            intermediate_size=53248,
            num_hidden_layers=126,
            num_attention_heads=128,
            max_position_embeddings=_LONG,
        ),
    ),
    (r"llama-2-70b", _like("llama-3-70b", vocab_size=32000)),
    (
        r"llama-2-7b",
        _like("llama-3-8b", vocab_size=32000, intermediate_size=11008, num_key_value_heads=32),
    ),
    (r"mistral-7b", _like("llama-3-8b", vocab_size=32000, max_position_embeddings=32768)),
    (
        r"qwen3-32b",  # its norms on queries and keys are left out
        _like(
            "llama-3-70b",
            hidden_size=5120,
            intermediate_size=25600,
            num_hidden_layers=64,
            head_dim=128,
            vocab_size=151936,
            max_position_embeddings=40960,
        ),
    ),
    (r"qwen3-30b-a3b", _like("qwen3-30b-a3b")),
    (
        r"qwen3-235b-a22b",
        _like(
            "qwen3-30b-a3b",
            hidden_size=4096,
            moe_intermediate_size=1536,
            num_hidden_layers=94,
            num_attention_heads=64,
        ),
    ),
)
"""Patterns of names, and what each is."""

KNOWN_MODELS = tuple(re.sub(r"\(.*?\)\?|\\", "", pattern) for pattern, _ in MODELS)
"""A plain name for each of them."""

DRESSING = re.compile(
    r"^(?:.*/)?(?:meta-|nvidia-)?|(?:-(?:v0\.\d|instruct|hf|base|fp8|fp4|bf16))+$"
)
"""Owners and finishes that change nothing of a shape."""

DEVICES: tuple[tuple[str, str], ...] = (
    (r"a100-(80gb-)?sxm4?(-80gb)?", "a100-sxm-80gb"),
    (r"a100-(40gb-)?sxm4?-40gb", "a100-sxm-40gb"),
    (r"a100-(80gb-)?pcie(-80gb)?", "a100-pcie-80gb"),
    (r"h100(-sxm5?)?(-80gb)?(-hbm3)?", "h100-sxm-80gb"),
    (r"h100-pcie(-80gb)?", "h100-pcie-80gb"),
    (r"h100-nvl(-94gb)?", "h100-nvl-94gb"),
    (r"h200(-sxm5?)?(-141gb)?(-hbm3e)?", "h200-sxm-141gb"),
    (r"h200-nvl(-141gb)?", "h200-nvl-141gb"),
    (r"l40s(-48gb)?", "l40s-48gb"),
    (r"gh200(-96gb|-480gb)(-hbm3)?", "gh200-96gb"),
    (r"gh200-(grace-hopper-superchip-)?144gb(-hbm3e)?", "gh200-144gb"),
    (r"rtx-pro-6000(-blackwell-workstation-edition)?(-96gb)?", "rtx-pro-6000-96gb"),
)
"""Patterns of GPUs' names, and the shipped devices."""

PRECISIONS = {name.upper(): name for name in ("fp16", "bf16", "fp8", "int8", "int4")} | {
    "W8A16": "int8",
    "W4A16": "int4",
    "AWQ": "int4",
}
"""The formats of weights that are modelled, by their names.

Integers are of weights alone, those of four bits in AWQ's groups (`moesim.facts.precision`): W8A8
is another format, and GPTQ's may be of other widths.
"""


def plain_model(name: str) -> str:
    """Return a model's name in small letters, without whose it is and what it was tuned for."""
    return DRESSING.sub("", name.lower().replace("_", "-").replace(" ", "-"))


@cache
def model_of(name: str) -> ModelSpec:
    """Return the shape that a model's name stands for."""
    for pattern, like in MODELS:
        if re.fullmatch(pattern, plain_model(name)):
            spec = load_model(like.shipped, architectures=DECODERS)
            return ModelSpec.from_config({**spec.to_config(), **like.but}, name)
    alike = nearest(plain_model(name), KNOWN_MODELS)
    return _given(name, f"model {name} is not known{alike}")


def _given(name: str, reason: str) -> ModelSpec:
    """Return the shape of a shipped model or a file of that name."""
    try:
        return load_model(name, architectures=DECODERS)
    except ScenarioError:
        raise UnknownRowError(reason) from None


@cache
def shipped_device(name: str) -> Device:
    """Return a shipped device; its file is read once."""
    return load_device(name)


@cache
def device_of(name: str) -> Device:
    """Return the device that a GPU's name stands for; a limit on its power is not modelled."""
    bare = re.sub(r"\(.*\)$", "", name.lower()).removeprefix("nvidia")
    plain = re.sub(r"[ _-]+", "-", bare.strip(" -_"))
    for pattern, shipped_name in DEVICES:
        if re.fullmatch(pattern, plain):
            return shipped_device(shipped_name)
    known = shipped("hardware")
    if plain in known:
        return shipped_device(plain)
    raise UnknownRowError(f"gpu {name} is not known{nearest(plain, known)}")


def precision_of(name: str, spec: ModelSpec, device: Device, kv: str | None) -> Precision:
    """Return the formats of a model's weights and of its KV cache, `kv` if the engine says so.

    Where nothing is said, weights are in the checkpoint's own format.
    """
    if not name:
        return Precision.of_dtype(spec.dtype)
    if name.upper() not in PRECISIONS:
        raise UnknownRowError(f"precision {name} is not modelled: one of {', '.join(PRECISIONS)}")
    weights = PRECISIONS[name.upper()]
    if weights == "fp8" and device.fp8_flop_per_s is None:
        raise UnknownRowError(f"{device.name} has no fp8")
    plain = Precision.uniform(weights)
    return Precision(experts=weights, rest=weights, kv=kv if kv and weights == kv else plain.kv)
