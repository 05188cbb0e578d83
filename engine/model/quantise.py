"""Narrowing a decoder's weights, each part to the format that is chosen for it.

Matrices of experts take one format, those of attention and of plain networks another; embeddings,
head, norms, biases and routers stay in the format of activations. Layer follows layer, so that
beside the narrowed weights one whole layer needs room, whether the model was there before
(`quantise`) or is read meanwhile (`blank_decoder`).
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from engine.model.allocation import allocating
from engine.model.decoder import Decoder
from engine.model.decoder_layer import DecoderLayer
from engine.model.layers import inverse_frequencies
from engine.model.moe import MoeLayer
from engine.model.parallel import WHOLE, Rank, decoder_of
from engine.model.projection import TILE, TILE_BYTES
from engine.model.quantised import CODINGS, Quantised
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, OF_DTYPE, Precision

DTYPE_OF = {name: dtype for dtype, name in OF_DTYPE.items()}
"""Configurations' names of the formats that nothing is narrowed in."""


def precision_of(dtype: str, weights: str | None, rest: str | None) -> Precision:
    """Return what is meant by a format of all weights and another of all but the experts.

    Without either, weights stay in their own `dtype`.

    >>> precision_of("bfloat16", "int4", "int8")
    Precision(experts='int4', rest='int8', kv='bf16')
    """
    base = Precision.of_dtype(dtype) if weights is None else Precision.uniform(weights)
    return base if rest is None else replace(base, rest=rest)


def quantise(model: Decoder, precision: Precision) -> None:
    """Narrow a loaded model in place; what is not narrowed stays in the model's format.

    Raises EngineError where the model's device cannot hold a format, where a format that is no
    narrowing is not the model's own, and where the model is narrowed already.
    """
    plain = OF_DTYPE[model.spec.dtype]
    _check(precision, plain)
    _require(precision, model.device)
    for layer in model.decoder_layers:
        _narrow(layer, precision)
    model.precision = replace(precision, kv=plain)


def plain_dtype(precision: Precision, dtype: str | None = None) -> str:
    """Return the dtype of what is not narrowed: what the precision implies, unless told."""
    plain = OF_DTYPE[dtype] if dtype else precision.plain
    _check(precision, plain)
    return DTYPE_OF[plain]


def blank_decoder(
    spec: ModelSpec,
    device: torch.device | str,
    rank: Rank = WHOLE,
    precision: Precision | None = None,
) -> tuple[Decoder, Iterator[DecoderLayer]]:
    """Return a rank's decoder and its layers, all to be filled with weights, in this order.

    Where there is something to narrow, a layer is allocated when it is taken, and narrowed when the
    next one is.
    """
    if precision is None or not _narrowed(precision):
        model = decoder_of(spec, rank, device)
        return model, iter(model.decoder_layers)
    place = torch.device(device)
    _require(precision, place)
    model = decoder_of(spec, rank, "meta")
    what = f"weights: {model.spec.parameters} parameters in {' and '.join(_narrowed(precision))}"
    remedy = "use a smaller model, a narrower format or a larger device"
    with allocating(what, bytes_of(model.spec, precision), place, remedy):
        _allocate_outer(model, place)
    return model, _layer_by_layer(model, precision, place, remedy)


def bytes_of(spec: ModelSpec, precision: Precision) -> int:
    """Return the bytes of a model's weights as `moesim.facts` reckons with them [B]."""
    experts = spec.expert_positions * spec.expert_bytes(precision)
    return experts + spec.non_expert_bytes(precision)


def held_bytes(model: Any) -> int:
    """Return the bytes of the weights that a model really holds [B]."""
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


def scratch_bytes(model: Any) -> int:
    """Return the room on a GPU in which tiles of weights are dequantised [B]."""
    narrowed = (part for part in model.modules() if isinstance(part, Quantised))
    largest = max((part.shape[-2] * part.width for part in narrowed), default=0)
    return TILE_BYTES * min(TILE["cuda"], largest)


def _narrowed(precision: Precision) -> list[str]:
    """Return the formats that are asked for and narrower than what models are trained in."""
    formats = sorted({precision.experts, precision.rest})
    return [name for name in formats if FORMATS[name].quantised]


def _check(precision: Precision, plain: str) -> None:
    for field in ("experts", "rest"):
        name = getattr(precision, field)
        if not FORMATS[name].quantised and name != plain:
            raise EngineError(
                f"precision.{field}: {name} does not go with activations in {plain}; "
                f"take {plain} or one of {', '.join(CODINGS)}"
            )
    if FORMATS[precision.kv].quantised:
        raise EngineError(
            f"precision.kv: {precision.kv}: the engine keeps keys and values as it does "
            f"activations; take {plain}"
        )


def _require(precision: Precision, device: torch.device) -> None:
    """Try the formats on a weight of two numbers."""
    for name in _narrowed(precision):
        try:
            Quantised.of(torch.ones(1, 2, device=device), name).dequantised()
        except (RuntimeError, TypeError) as wrong:
            raise EngineError(
                f"precision: {name}: not possible on {device} "
                f"({str(wrong).splitlines()[0]}); take another format or device"
            ) from None


def _allocate_outer(model: Decoder, device: torch.device) -> None:
    """Allocate what stands outside the layers of a model that was made on `meta`."""
    spec = model.spec
    model.to_empty(device=device, recurse=False)
    if spec.tie_word_embeddings:
        model.lm_head = model.embed
    model.frequencies = inverse_frequencies(
        spec.head_dim, spec.rope_theta, spec.rope_scaling, device
    )


def _layer_by_layer(
    model: Decoder, precision: Precision, device: torch.device, remedy: str
) -> Iterator[DecoderLayer]:
    for layer in model.decoder_layers:
        size = held_bytes(layer)
        with allocating(f"layer {layer.index}, before it is narrowed", size, device, remedy):
            layer.to_empty(device=device)
        yield layer
        with allocating(f"layer {layer.index}, narrowed", size, device, remedy):
            _narrow(layer, precision)
    model.precision = replace(precision, kv=OF_DTYPE[model.spec.dtype])


def _narrow(layer: DecoderLayer, precision: Precision) -> None:
    """Replace a layer's matrices one by one."""
    inner = precision.experts if isinstance(layer.ffn, MoeLayer) else precision.rest
    holders: list[tuple[nn.Module, str, str]] = [
        (layer, "qkv", precision.rest),
        (layer, "o", precision.rest),
        (layer.ffn, "gate_up", inner),
        (layer.ffn, "down", inner),
    ]
    for holder, name, number in holders:
        if FORMATS[number].quantised:
            narrowed = Quantised.of(getattr(holder, name).data, number)
            delattr(holder, name)  # a module cannot take a parameter's name
            setattr(holder, name, narrowed)
