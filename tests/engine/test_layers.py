"""Rotary positions: by hand, and as transformers has them for published models."""

from math import pi
from typing import Any

import pytest
import torch
from torch.testing import assert_close
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from engine.model.layers import inverse_frequencies, stretched
from moesim.facts.configs import RopeScaling

CPU = torch.device("cpu")
LLAMA_31: dict[str, Any] = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def test_stretching_by_hand() -> None:
    """In 8192 positions 4 and 5 turns stay, 1 and 0.5 become an eighth, 2.5 becomes 0.5625."""
    turns = torch.tensor([5.0, 4.0, 2.5, 1.0, 0.5])
    slowed = stretched(turns * 2 * pi / 8192, RopeScaling(**LLAMA_31)) * 8192 / (2 * pi)
    assert_close(slowed, turns * torch.tensor([1.0, 1.0, 0.5625, 0.125, 0.125]))


@pytest.mark.parametrize(
    ("head_dim", "scaling"), [(128, LLAMA_31), (64, {**LLAMA_31, "factor": 32.0}), (128, None)]
)
def test_frequencies_are_those_of_transformers(
    head_dim: int, scaling: dict[str, Any] | None
) -> None:
    """Llama 3.1 8B, Llama 3.2 1B and Llama 3 8B, as their model cards' configurations have it."""
    kind = {"rope_type": "llama3" if scaling else "default", "rope_theta": 5e5}
    config = LlamaConfig(
        hidden_size=32 * head_dim,
        max_position_embeddings=131072,
        rope_parameters={**kind, **(scaling or {})},
    )
    ours = inverse_frequencies(head_dim, 5e5, RopeScaling(**scaling) if scaling else None, CPU)
    assert_close(ours, LlamaRotaryEmbedding(config).inv_freq, rtol=1e-6, atol=0)
