"""Where each tensor of a Hugging Face Mixtral checkpoint lies in a decoder's memory.

Query, key and value projections are one matrix here and three there. The experts of a layer are
two tensors here; there they are the same two (fused), or three for each expert.
"""

from torch import Tensor

from engine.model.decoder import Decoder, DecoderLayer


def places(model: Decoder, fused: bool) -> dict[str, Tensor]:
    """Return, by Hugging Face name, the part of the model's memory that holds each tensor."""
    found: dict[str, Tensor] = {
        "model.embed_tokens.weight": model.embed.data,
        "model.norm.weight": model.norm.data,
    }
    if not model.spec.tie_word_embeddings:
        found["lm_head.weight"] = model.lm_head.data
    for layer in model.decoder_layers:
        experts = _fused_places(layer) if fused else _expert_places(layer)
        for name, place in {**_attention_places(layer), **experts}.items():
            found[f"model.layers.{layer.index}.{name}"] = place
    return found


def _attention_places(layer: DecoderLayer) -> dict[str, Tensor]:
    keys = layer.spec.num_attention_heads * layer.spec.head_dim
    values = keys + layer.spec.num_key_value_heads * layer.spec.head_dim
    return {
        "input_layernorm.weight": layer.input_norm.data,
        "post_attention_layernorm.weight": layer.post_norm.data,
        "self_attn.q_proj.weight": layer.qkv.data[:keys],
        "self_attn.k_proj.weight": layer.qkv.data[keys:values],
        "self_attn.v_proj.weight": layer.qkv.data[values:],
        "self_attn.o_proj.weight": layer.o.data,
    }


def _fused_places(layer: DecoderLayer) -> dict[str, Tensor]:
    return {
        "mlp.gate.weight": layer.moe.gate.data,
        "mlp.experts.gate_up_proj": layer.moe.gate_up.data,
        "mlp.experts.down_proj": layer.moe.down.data,
    }


def _expert_places(layer: DecoderLayer) -> dict[str, Tensor]:
    """Name an expert's gate projection w1, its up projection w3 and its down projection w2."""
    places: dict[str, Tensor] = {"block_sparse_moe.gate.weight": layer.moe.gate.data}
    for expert in range(layer.moe.num_experts):
        prefix = f"block_sparse_moe.experts.{expert}"
        gate, up = layer.moe.gate_up.data[expert].chunk(2)
        places[f"{prefix}.w1.weight"] = gate
        places[f"{prefix}.w2.weight"] = layer.moe.down.data[expert]
        places[f"{prefix}.w3.weight"] = up
    return places
