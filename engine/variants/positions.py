"""Expert positions: where an expert is in a model, the same for all variants of one shape."""

from typing import NamedTuple

from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.moe import MoeLayer
from engine.model.switch.feed_forward import SparseFeedForward
from engine.model.switch.model import Switch
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

Model = Decoder | Switch


class Position(NamedTuple):
    """One expert of one layer; layers count from 0, in an encoder-decoder the encoder's first."""

    layer: int
    expert: int


def positions_of(spec: ModelSpec) -> list[Position]:
    """Return all expert positions of a shape, in order."""
    encoders = spec.num_encoder_layers
    dense = {*spec.dense_encoder_layers, *(encoders + layer for layer in spec.dense_layers)}
    return [
        Position(layer, expert)
        for layer in range(encoders + spec.num_hidden_layers)
        if layer not in dense
        for expert in range(spec.num_local_experts)
    ]


def expert_places(model: Model) -> dict[Position, tuple[Tensor, ...]]:
    """Return where in a model's memory the matrices of each expert are.

    They are gate (I, H), up (I, H) and down (H, I), or in a Switch Transformer wi (I, H) and
    wo (H, I), in the order of `stored`.
    """
    return {
        Position(index, expert): places
        for index, layer in enumerate(_networks(model))
        for expert, places in enumerate(_places(layer))
    }


def _networks(model: Model) -> list[object]:
    if isinstance(model, Decoder):
        return [layer.ffn for layer in model.decoder_layers]
    layers = (*model.encoder.encoder_layers, *model.decoder.decoder_layers)
    return [layer.feed_forward for layer in layers]


def _places(network: object) -> list[tuple[Tensor, ...]]:
    """Return the matrices of each expert of a network; none where it has no experts."""
    if isinstance(network, SparseFeedForward):
        return list(zip(network.wi.data, network.wo.data, strict=True))
    if not isinstance(network, MoeLayer):
        return []
    if not isinstance(network.gate_up, Tensor) or not isinstance(network.down, Tensor):
        raise EngineError("variants: quantised experts cannot be exchanged; load them plain")
    pairs = zip(network.gate_up.data, network.down.data, strict=True)
    return [(*gate_up.chunk(2), down) for gate_up, down in pairs]
