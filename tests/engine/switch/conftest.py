"""Tiny Switch Transformers by transformers, our oracle, and prompts to encode."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

SHAPE = {
    "vocab_size": 97,
    "d_model": 32,
    "d_kv": 6,  # times 4 heads is not d_model
    "d_ff": 48,
    "num_layers": 6,
    "num_sparse_encoder_layers": 3,
    "num_decoder_layers": 4,  # transformers cannot generate with more than in the encoder
    "num_sparse_decoder_layers": 2,
    "num_heads": 4,
    "num_experts": 4,
    "expert_capacity": 3,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20,
    "decoder_start_token_id": 0,
}

Oracle = SwitchTransformersForConditionalGeneration


@pytest.fixture(scope="session")
def switch() -> Callable[..., Oracle]:
    """Build a tiny random Switch Transformer, its shape changed by keyword.

    Layers weigh more than transformers makes them, and tokens of the head the same, so that
    answers differ from prompt to prompt: else a model repeats its last token.
    """

    def build(**changes: Any) -> Oracle:
        torch.manual_seed(0)
        model = Oracle(SwitchTransformersConfig(**{**SHAPE, **changes})).eval()
        for name, weight in model.named_parameters():
            if "block" in name and weight.dim() == 2:
                weight.data.mul_(2.5)
        head = model.lm_head.weight.data
        head.mul_(head.shape[1] ** 0.5 / head.norm(dim=1, keepdim=True))
        return model

    return build


@pytest.fixture(scope="session")
def oracle(switch: Callable[..., Oracle]) -> Oracle:
    """Return the tiny Switch Transformer that most tests compare with."""
    return switch()


@pytest.fixture(scope="session")
def checkpoint(oracle: Oracle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the folder of the oracle, as transformers writes it."""
    folder = tmp_path_factory.mktemp("switch") / "model"
    oracle.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def prompts() -> list[list[int]]:
    """Return four prompts of 9, 30, 1 and 14 tokens, some beyond the largest exact distance."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randint(2, SHAPE["vocab_size"], (length,), generator=generator).tolist()
        for length in (9, 30, 1, 14)
    ]


@pytest.fixture(scope="session")
def answers() -> list[list[int]]:
    """Return what the decoder reads, by prompt: the start token, then 11, 20, 0 and 5 others."""
    generator = torch.Generator().manual_seed(2)
    return [
        [0, *torch.randint(2, SHAPE["vocab_size"], (length,), generator=generator).tolist()]
        for length in (11, 20, 0, 5)
    ]
