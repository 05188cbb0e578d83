"""Parameters against transformers, which builds each model without memory and counts tensors."""

import json
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM

from moesim.facts.catalog import shipped
from moesim.facts.models import ModelSpec

SMALL: dict[str, dict[str, Any]] = {
    "biased Qwen, some layers without experts": {
        "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 96,
        "moe_intermediate_size": 24, "num_hidden_layers": 5, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 24, "num_experts": 8, "num_experts_per_tok": 3,
        "vocab_size": 100, "max_position_embeddings": 64, "decoder_sparse_step": 2,
        "mlp_only_layers": [1], "attention_bias": True,
    },
    "tied and biased Llama": {
        "model_type": "llama", "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 3,
        "num_attention_heads": 4, "num_key_value_heads": 1, "vocab_size": 100,
        "max_position_embeddings": 64, "attention_bias": True, "tie_word_embeddings": True,
    },
    "uneven Switch": {
        "model_type": "switch_transformers", "d_model": 16, "d_ff": 32, "d_kv": 4, "num_heads": 2,
        "num_layers": 5, "num_decoder_layers": 4, "num_sparse_encoder_layers": 5,
        "num_sparse_decoder_layers": 1, "num_experts": 4, "expert_capacity": 8, "vocab_size": 50,
        "relative_attention_num_buckets": 8,
    },
    "Switch that asks for no sparse layers and gets one": {
        "model_type": "switch_transformers", "d_model": 16, "d_ff": 32, "d_kv": 4, "num_heads": 2,
        "num_layers": 4, "num_decoder_layers": 1, "num_sparse_encoder_layers": 0,
        "num_sparse_decoder_layers": 0, "num_experts": 4, "expert_capacity": 8, "vocab_size": 50,
    },
    "Switch that asks for more sparse layers than it has": {
        "model_type": "switch_transformers", "d_model": 16, "d_ff": 32, "d_kv": 4, "num_heads": 2,
        "num_layers": 4, "num_decoder_layers": 3, "num_sparse_encoder_layers": 5,
        "num_sparse_decoder_layers": 4, "num_experts": 4, "expert_capacity": 8, "vocab_size": 50,
    },
}  # fmt: skip
SHIPPED = {name: json.loads(path.read_text()) for name, path in shipped("models").items()}
CONFIGS = SHIPPED | SMALL


def built(config: dict[str, Any]) -> torch.nn.Module:
    """Build transformers' model of a configuration on the device that holds nothing."""
    options = {key: value for key, value in config.items() if key != "model_type"}
    theirs = AutoConfig.for_model(config["model_type"], **options)
    whole = AutoModelForSeq2SeqLM if theirs.is_encoder_decoder else AutoModelForCausalLM
    with torch.device("meta"):
        model: torch.nn.Module = whole.from_config(theirs)
    return model


@pytest.mark.parametrize("name", CONFIGS)
def test_all_parameters(name: str) -> None:
    """Shipped models, and shapes in which every option is used."""
    tensors = built(CONFIGS[name]).parameters()
    assert ModelSpec.from_config(CONFIGS[name]).parameters == sum(one.numel() for one in tensors)


@pytest.mark.parametrize("name", CONFIGS)
def test_experts(name: str) -> None:
    """The experts' tensors are told by their names."""
    tensors = built(CONFIGS[name]).named_parameters()
    experts = sum(tensor.numel() for path, tensor in tensors if ".experts." in path)
    assert ModelSpec.from_config(CONFIGS[name]).experts_parameters == experts


@pytest.mark.parametrize("name", CONFIGS)
def test_what_we_write_is_the_same_model(name: str) -> None:
    """Our own configuration of a shape, read by transformers."""
    spec = ModelSpec.from_config(CONFIGS[name])
    tensors = built(spec.to_config()).parameters()
    assert spec.parameters == sum(one.numel() for one in tensors)
