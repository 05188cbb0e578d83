"""Three variants of one tiny base, saved by transformers in each of the formats of checkpoints."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    SwitchTransformersConfig,
    SwitchTransformersForConditionalGeneration,
)

NAMES = ("ada", "bob", "eve")
MIXTRAL = {
    "vocab_size": 23, "hidden_size": 16, "intermediate_size": 12, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 4, "num_local_experts": 3,
    "num_experts_per_tok": 2, "max_position_embeddings": 64, "sliding_window": None,
}  # fmt: skip
SWITCH = {
    "vocab_size": 23, "d_model": 16, "d_kv": 4, "d_ff": 12, "num_layers": 2,
    "num_sparse_encoder_layers": 1, "num_decoder_layers": 2, "num_sparse_decoder_layers": 1,
    "num_heads": 4, "num_experts": 3, "relative_attention_num_buckets": 8,
    "decoder_start_token_id": 0,
}  # fmt: skip

Folders = dict[str, Path]
Save = Callable[..., Folders]


def changed(model: Any, seed: int) -> Any:
    """Add noise to all weights, of a size that differs from tensor to tensor."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in model.parameters():
            size = 0.05 * torch.rand(1, generator=generator)
            weight.add_(size * torch.randn(weight.shape, generator=generator))
    return model


def saved_variants(root: Path, build: Callable[[], Any], **options: Any) -> Folders:
    """Write a variant for each name; all are of one base."""
    folders = {}
    for seed, name in enumerate(NAMES, start=1):
        torch.manual_seed(0)
        folders[name] = root / name
        changed(build(), seed).save_pretrained(folders[name], **options)
    return folders


def mixtral(**changes: Any) -> MixtralForCausalLM:
    """Build the base of the decoders, its shape changed by keyword."""
    return MixtralForCausalLM(MixtralConfig(**{**MIXTRAL, **changes}))


def switch() -> SwitchTransformersForConditionalGeneration:
    """Build the base of the encoder-decoders."""
    return SwitchTransformersForConditionalGeneration(SwitchTransformersConfig(**SWITCH))


@pytest.fixture(scope="session")
def separate(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return Mixtrals with three tensors an expert."""
    return saved_variants(tmp_path_factory.mktemp("separate"), mixtral)


@pytest.fixture(scope="session")
def fused(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return the same Mixtrals with two tensors a layer, in several files each."""
    root = tmp_path_factory.mktemp("fused")
    return saved_variants(root, mixtral, save_original_format=False, max_shard_size="10KB")


@pytest.fixture(scope="session")
def switches(tmp_path_factory: pytest.TempPathFactory) -> Folders:
    """Return Switch Transformers."""
    return saved_variants(tmp_path_factory.mktemp("switch"), switch)


@pytest.fixture(scope="session", params=["separate", "fused", "switches"])
def folders(request: pytest.FixtureRequest) -> Folders:
    """Return the variants in each format."""
    found: Folders = request.getfixturevalue(request.param)
    return found


@pytest.fixture(scope="session")
def other_shape(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a Mixtral with wider experts."""
    folder = tmp_path_factory.mktemp("other") / "wide"
    mixtral(intermediate_size=20).save_pretrained(folder)
    return folder
