"""The forward passes for training: transformers' logits and gradients, of decoder and Switch."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

from engine.model.decoder import Decoder
from engine.model.layout import places
from engine.model.loading import load_model
from engine.model.switch.model import Switch
from engine.quality.forward import logits, next_nats
from engine.quality.loss import nats
from engine.quality.seq2seq import answer_logits, answer_nats

DECODER = {
    "vocab_size": 31, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 4,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "sliding_window": None,
    "initializer_range": 0.3,
}  # fmt: skip
SWITCH = {
    "vocab_size": 31, "d_model": 16, "d_kv": 6, "d_ff": 24, "num_layers": 2,
    "num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1,
    "num_heads": 4, "num_experts": 4, "expert_capacity": 3, "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 20, "decoder_start_token_id": 0, "dropout_rate": 0.0,
    "initializer_factor": 2.0,
}  # fmt: skip


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def windows(count: int, width: int) -> torch.Tensor:
    """Return windows of tokens other than the padding."""
    return torch.randint(1, 31, (count, width), generator=torch.Generator().manual_seed(1))


def saved(oracle: Any, folder: Path) -> Decoder | Switch:
    """Return the engine's model of an oracle's weights."""
    oracle.save_pretrained(folder)
    return load_model(folder)


def test_a_decoder_as_transformers_has_it(tmp_path: Path) -> None:
    """Logits of three windows at once, the loss, and its gradient on experts and router."""
    oracle = MixtralForCausalLM(MixtralConfig(**DECODER)).eval()
    model = saved(oracle, tmp_path / "model")
    assert isinstance(model, Decoder)
    tokens = windows(3, 12)
    torch.testing.assert_close(
        logits(model, tokens), oracle(tokens).logits.detach(), rtol=1e-4, atol=1e-4
    )
    model.requires_grad_(True)
    loss = next_nats(model, tokens)
    expected = oracle(tokens, labels=tokens).loss
    torch.testing.assert_close(loss, expected, rtol=1e-5, atol=1e-5)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(
        model.embed.grad, oracle.model.embed_tokens.weight.grad, rtol=1e-3, atol=1e-5
    )
    gate = places(model, fused=False).keys()
    assert "model.layers.1.block_sparse_moe.gate.weight" in gate
    mine = model.moe_layers[1].gate.grad
    theirs = dict(oracle.named_parameters())["model.layers.1.mlp.gate.weight"].grad
    torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("tied", [True, False])
def test_a_switch_as_transformers_has_it(tmp_path: Path, tied: bool) -> None:
    """Logits of three answers of 9 bytes to prompts of 9, with experts that are full at 3."""
    config = SwitchTransformersConfig(**SWITCH, tie_word_embeddings=tied)
    oracle = SwitchTransformersForConditionalGeneration(config).eval()
    model = saved(oracle, tmp_path / "model")
    assert isinstance(model, Switch)
    tokens = windows(3, 18)
    prompts, answers = tokens[:, :9], tokens[:, 9:].contiguous()
    expected = oracle(input_ids=prompts, labels=answers).logits
    torch.testing.assert_close(
        answer_logits(model, prompts, answers), expected.detach(), rtol=1e-4, atol=1e-4
    )
    loss = cross_entropy(expected.flatten(0, 1), answers.flatten())
    model.requires_grad_(True)
    mine = answer_nats(model, tokens)
    torch.testing.assert_close(mine, loss, rtol=1e-5, atol=1e-5)
    mine.backward()
    loss.backward()
    for stack, theirs in ((model.encoder, oracle.encoder), (model.decoder, oracle.decoder)):
        first = theirs.block[0].layer[0].SelfAttention.relative_attention_bias
        torch.testing.assert_close(stack.table.grad, first.weight.grad, rtol=1e-3, atol=1e-5)


def test_each_model_has_its_loss(tmp_path: Path) -> None:
    decoder = saved(MixtralForCausalLM(MixtralConfig(**DECODER)), tmp_path / "decoder")
    config = SwitchTransformersConfig(**SWITCH)
    switch = saved(SwitchTransformersForConditionalGeneration(config), tmp_path / "switch")
    assert isinstance(decoder, Decoder)
    assert isinstance(switch, Switch)
    tokens = windows(2, 10)
    assert nats(decoder, tokens) == next_nats(decoder, tokens)
    assert nats(switch, tokens) == answer_nats(switch, tokens)
