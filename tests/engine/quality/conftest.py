"""A tiny family of either architecture, of tiny texts."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from engine.quality.corpus import Domain
from engine.quality.family import Family, raise_family
from engine.quality.training import Course
from moesim.facts.models import ModelSpec

DECODER = ModelSpec(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=1, head_dim=4, num_local_experts=2, num_experts_per_tok=1,
    vocab_size=256, max_position_embeddings=64, dtype="float32",
)  # fmt: skip
SWITCH = ModelSpec(
    hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2,
    num_key_value_heads=2, head_dim=4, num_local_experts=2, num_experts_per_tok=1,
    vocab_size=256, max_position_embeddings=64, dtype="float32", rms_norm_eps=1e-6,
    model_type="switch_transformers", gated_ffn=False, norm_topk_prob=False,
    tie_word_embeddings=True, num_encoder_layers=2, dense_encoder_layers=(0,), dense_layers=(0,),
    dense_intermediate_size=8, relative_attention_num_buckets=8, expert_capacity=64,
)  # fmt: skip
SPECS = {"decoder": DECODER, "switch": SWITCH}
COURSE = Course(steps=2, rate=1e-2, batch=2, window=16)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Keep tiny matrices off many cores, where they are slower."""
    torch.set_num_threads(1)


def text(seed: int, size: int = 256) -> Tensor:
    """Return random bytes."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(256, (size,), generator=generator, dtype=torch.uint8)


def domain(name: str, seed: int) -> Domain:
    return Domain(name=name, training=text(seed), validation=text(seed + 1), test=text(seed + 2))


DOMAINS = tuple(domain(name, 10 * seed) for seed, name in enumerate(("ada", "bob", "eve")))


def family_in(folder: Path, name: str) -> Family:
    """Train a family of an architecture."""
    return raise_family(SPECS[name], folder, DOMAINS, (COURSE, COURSE), 0, lambda _, __: None)


@pytest.fixture(scope="session")
def specs() -> dict[str, ModelSpec]:
    """Return the shapes by name."""
    return SPECS


@pytest.fixture(scope="session")
def tiny_domains() -> list[Domain]:
    """Return three domains of random bytes."""
    return list(DOMAINS)


@pytest.fixture(params=sorted(SPECS))
def spec(request: pytest.FixtureRequest) -> ModelSpec:
    """Return either shape."""
    return SPECS[request.param]


@pytest.fixture(scope="session", params=sorted(SPECS))
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Family:
    """Return a base and three variants of each architecture."""
    return family_in(tmp_path_factory.mktemp(request.param), request.param)
