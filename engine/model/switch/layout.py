"""Where each tensor of a Hugging Face Switch Transformer checkpoint lies in a model's memory.

Projections that are one matrix here are two or three there, and each expert has tensors of its own.
A block's sublayers are numbered there: self-attention 0, cross-attention 1 in the decoder, and the
feed-forward network last.
"""

from collections.abc import Iterator, Mapping

from torch import Tensor

from engine.model.switch.attention import CrossAttention, SelfAttention
from engine.model.switch.decoder import SwitchDecoder
from engine.model.switch.encoder import Encoder
from engine.model.switch.feed_forward import DenseFeedForward, SparseFeedForward
from engine.model.switch.model import Switch

SHARED = "shared.weight"
ENCODER_TABLE = "encoder.embed_tokens.weight"
DECODER_TABLE = "decoder.embed_tokens.weight"
HEAD = "lm_head.weight"
TABLES = (SHARED, ENCODER_TABLE, DECODER_TABLE, HEAD)


def places(model: Switch) -> dict[str, Tensor]:
    """Return, by Hugging Face name, the part of the model's memory that holds each tensor."""
    return {
        name: place.data
        for part in (_tables(model), _encoder(model.encoder), _decoder(model.decoder))
        for name, place in part.items()
    }


def _tables(model: Switch) -> dict[str, Tensor]:
    tables: dict[str, Tensor] = {SHARED: model.embed}
    if model.own_tables:
        tables = {ENCODER_TABLE: model.embed, DECODER_TABLE: model.decoder_embed}
    if not model.spec.tie_word_embeddings:
        tables[HEAD] = model.lm_head
    return tables


def _encoder(encoder: Encoder) -> dict[str, Tensor]:
    found = _stack("encoder", encoder)
    for index, layer in enumerate(encoder.encoder_layers):
        block = f"encoder.block.{index}"
        found |= _within(f"{block}.layer.0", _self_attention(layer.attention))
        found |= _within(f"{block}.layer.1", _feed_forward(layer.feed_forward))
    return found


def _decoder(decoder: SwitchDecoder) -> dict[str, Tensor]:
    found = _stack("decoder", decoder)
    for index, layer in enumerate(decoder.decoder_layers):
        block = f"decoder.block.{index}"
        found |= _within(f"{block}.layer.0", _self_attention(layer.attention))
        found |= _within(f"{block}.layer.1", _cross_attention(layer.cross))
        found |= _within(f"{block}.layer.2", _feed_forward(layer.feed_forward))
    return found


def _within(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _stack(name: str, stack: Encoder | SwitchDecoder) -> dict[str, Tensor]:
    attention = f"{name}.block.0.layer.0.SelfAttention"
    return {
        f"{attention}.relative_attention_bias.weight": stack.table,
        f"{name}.final_layer_norm.weight": stack.norm,
    }


def _self_attention(attention: SelfAttention) -> dict[str, Tensor]:
    q, k, v = attention.qkv.chunk(3)
    matrices = {"q": q, "k": k, "v": v, "o": attention.o}
    return {
        "layer_norm.weight": attention.norm,
        **{f"SelfAttention.{name}.weight": matrix for name, matrix in matrices.items()},
    }


def _cross_attention(attention: CrossAttention) -> dict[str, Tensor]:
    k, v = attention.kv.chunk(2)
    matrices = {"q": attention.q, "k": k, "v": v, "o": attention.o}
    return {
        "layer_norm.weight": attention.norm,
        **{f"EncDecAttention.{name}.weight": matrix for name, matrix in matrices.items()},
    }


def _feed_forward(network: DenseFeedForward | SparseFeedForward) -> dict[str, Tensor]:
    found: dict[str, Tensor] = {"layer_norm.weight": network.norm}
    if isinstance(network, DenseFeedForward):
        return {**found, "mlp.wi.weight": network.wi, "mlp.wo.weight": network.wo}
    found["mlp.router.classifier.weight"] = network.gate
    return found | dict(_experts(network))


def _experts(network: SparseFeedForward) -> Iterator[tuple[str, Tensor]]:
    for expert in range(network.num_experts):
        prefix = f"mlp.experts.expert_{expert}"
        yield f"{prefix}.wi.weight", network.wi[expert]
        yield f"{prefix}.wo.weight", network.wo[expert]
