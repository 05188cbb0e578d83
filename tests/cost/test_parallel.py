"""What a rank holds: Mixtral counted by hand, and ranks that add up to the model."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.parallel import Shard
from moesim.facts.catalog import load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision

MODELS = ["mixtral-8x7b", "mixtral-8x22b", "llama-3-8b", "llama-3-70b", "qwen3-30b-a3b"]


def model(name: str) -> ModelSpec:
    return load_model(name, architectures=ARCHITECTURES)


def test_mixtral_on_two_devices() -> None:
    """Attention 41,943,040 / 2 a layer, half of each expert, half of the head, 4 heads of 8."""
    shard = Shard(spec=model("mixtral-8x7b"), tensor_parallel=2)
    assert shard.attention_parameters == 20_971_520
    assert shard.expert_parameters == 88_080_384
    assert shard.head_parameters == 65_536_000
    assert (shard.kv_heads, shard.query_width) == (4, 2048)
    assert shard.kv_values_per_token == 2 * 32 * 4 * 128


def test_mixtral_with_experts_dealt_to_eight() -> None:
    """Each has one whole expert of a layer, and the eighth part of the rest."""
    spec = model("mixtral-8x7b")
    shard = Shard(spec=spec, expert_parallel=8)
    assert shard.expert_parameters == spec.expert_parameters
    assert shard.attention_parameters == spec.attention_parameters // 8
    norms = 65 * 4096
    expected = 45_097_156_608 // 8 + (2 * 131_072_000 + 32 * 41_943_040) // 8 + 32 * 32_768 + norms
    assert shard.weight_bytes(Precision()) == 2 * expected


def test_heads_are_kept_by_several_ranks() -> None:
    """Qwen3 has 4 heads of width 128 over 2048: on 8 ranks, K and V of one are 2 x 262,144."""
    spec = model("qwen3-30b-a3b")
    shard = Shard(spec=spec, tensor_parallel=8)
    assert shard.kv_heads == 1
    assert shard.attention_parameters == 2 * 32 * 128 * 2048 // 8 + 2 * 128 * 2048
    assert shard.kv_values_per_token == spec.kv_values_per_token // 4


@pytest.mark.parametrize("name", [*MODELS, "switch-base-8", "demo-moe"])
@pytest.mark.parametrize("weights", ["bf16", "fp8", "int4"])
def test_one_rank_is_the_model(name: str, weights: str) -> None:
    """To the byte, as memory plans count it."""
    spec = model(name)
    precision = Precision.uniform(weights)
    whole = spec.non_expert_bytes(precision) + spec.expert_positions * spec.expert_bytes(precision)
    assert Shard(spec=spec).weight_bytes(precision) == whole
    assert Shard(spec=spec).attention_parameters == spec.attention_parameters
    assert Shard(spec=spec).kv_values_per_token == spec.kv_values_per_token


@given(st.sampled_from(MODELS), st.sampled_from([(2, 1), (4, 1), (8, 1), (2, 4), (1, 8)]))
def test_ranks_hold_the_model_and_little_twice(name: str, cut: tuple[int, int]) -> None:
    """Together at least all of it; routers, norms and repeated heads make 3 % at most."""
    spec = model(name)
    tensor, expert = cut if spec.num_local_experts else (cut[0] * cut[1], 1)
    shard = Shard(spec=spec, tensor_parallel=tensor, expert_parallel=expert)
    together = shard.ranks * shard.weight_bytes(Precision())
    assert spec.weight_bytes <= together <= 1.03 * spec.weight_bytes
