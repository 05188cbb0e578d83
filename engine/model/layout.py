"""Where each tensor of a Hugging Face checkpoint lies in a decoder's memory.

Query, key and value projections are one matrix here and three there; so are a plain network's gate
and up projections one and two. The experts of a layer are two tensors here; there they are the
same two (fused), or three for each expert.
"""

from dataclasses import dataclass

from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.decoder_layer import DecoderLayer
from engine.model.moe import MoeLayer


@dataclass(frozen=True, slots=True)
class ExpertNames:
    """What an architecture calls a layer's router and an expert's three projections on disk."""

    router: str
    expert: str
    gate: str
    up: str
    down: str


EXPERT_NAMES = {
    "mixtral": ExpertNames(
        "block_sparse_moe.gate.weight", "block_sparse_moe.experts", "w1", "w3", "w2"
    ),
    "qwen3_moe": ExpertNames("mlp.gate.weight", "mlp.experts", "gate_proj", "up_proj", "down_proj"),
}
"""By `model_type`; fused experts are called alike in all."""


def places(model: Decoder, fused: bool) -> dict[str, Tensor]:
    """Return, by Hugging Face name, the part of the model's memory that holds each tensor."""
    found: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embed.data,
        "model.norm.weight": model.norm.data,
    }
    if not model.spec.tie_word_embeddings:
        found["lm_head.weight"] = model.lm_head.data
    for layer in model.decoder_layers:
        for name, place in layer_places(layer, fused).items():
            found[f"model.layers.{layer.index}.{name}"] = place
    return found


def layer_places(layer: DecoderLayer, fused: bool) -> dict[str, Tensor]:
    """Return the places of one layer's tensors, by their names within the layer."""
    return {**_attention_places(layer), **_ffn_places(layer, fused)}


def _attention_places(layer: DecoderLayer) -> dict[str, Tensor]:
    places = {
        "input_layernorm.weight": layer.input_norm.data,
        "post_attention_layernorm.weight": layer.post_norm.data,
        **_projection_places(layer, "weight", layer.qkv.data),
        "self_attn.o_proj.weight": layer.o.data,
    }
    if layer.q_norm is not None and layer.k_norm is not None:
        places["self_attn.q_norm.weight"] = layer.q_norm.data
        places["self_attn.k_norm.weight"] = layer.k_norm.data
    if layer.qkv_bias is not None and layer.o_bias is not None:
        places |= _projection_places(layer, "bias", layer.qkv_bias.data)
        places["self_attn.o_proj.bias"] = layer.o_bias.data
    return places


def _projection_places(layer: DecoderLayer, kind: str, qkv: Tensor) -> dict[str, Tensor]:
    """Divide weight or bias of all heads, (N + 2 G) * D rows, into its three parts."""
    heads, kv_heads = layer.spec.num_attention_heads, layer.spec.num_key_value_heads
    keys, values = heads * layer.spec.head_dim, (heads + kv_heads) * layer.spec.head_dim
    return {
        f"self_attn.q_proj.{kind}": qkv[:keys],
        f"self_attn.k_proj.{kind}": qkv[keys:values],
        f"self_attn.v_proj.{kind}": qkv[values:],
    }


def _ffn_places(layer: DecoderLayer, fused: bool) -> dict[str, Tensor]:
    if isinstance(layer.ffn, MoeLayer):
        names = EXPERT_NAMES[layer.spec.model_type]
        return _fused_places(layer.ffn) if fused else _expert_places(layer.ffn, names)
    gate, up = layer.ffn.gate_up.data.chunk(2)
    return {
        "mlp.gate_proj.weight": gate,
        "mlp.up_proj.weight": up,
        "mlp.down_proj.weight": layer.ffn.down.data,
    }


def _fused_places(moe: MoeLayer) -> dict[str, Tensor]:
    return {
        "mlp.gate.weight": moe.gate.data,
        "mlp.experts.gate_up_proj": moe.gate_up.data,
        "mlp.experts.down_proj": moe.down.data,
    }


def _expert_places(moe: MoeLayer, names: ExpertNames) -> dict[str, Tensor]:
    places: dict[str, Tensor] = {names.router: moe.gate.data}
    for expert in range(moe.num_experts):
        prefix = f"{names.expert}.{expert}"
        gate, up = moe.gate_up.data[expert].chunk(2)
        places[f"{prefix}.{names.gate}.weight"] = gate
        places[f"{prefix}.{names.up}.weight"] = up
        places[f"{prefix}.{names.down}.weight"] = moe.down.data[expert]
    return places
