"""Parameters and bytes of published models, and configurations that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_model
from moesim.facts.models import ModelSpec, read_config

CONFIG: dict[str, Any] = {
    "model_type": "mixtral",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "vocab_size": 100,
    "max_position_embeddings": 512,
    "torch_dtype": "bfloat16",
}


def test_mixtral_has_its_published_parameters() -> None:
    """Mixtral-8x7B as the tensors of its published checkpoint add up."""
    mixtral = load_model("mixtral-8x7b")
    assert mixtral.attention_parameters == 41_943_040
    assert mixtral.expert_parameters == 176_160_768
    assert mixtral.experts_parameters == 45_097_156_608
    assert mixtral.non_expert_parameters == 1_605_636_096
    assert mixtral.parameters == 46_702_792_704


def test_mixtral_takes_its_published_bytes() -> None:
    """93.406 GB in bf16; a token's KV is 2 x 32 layers x 8 heads x 128 x 2 B = 131,072 B."""
    mixtral = load_model("mixtral-8x7b")
    assert mixtral.weight_bytes == 93_405_585_408
    assert mixtral.kv_bytes_per_token == 131_072


def test_a_tiny_model_by_hand() -> None:
    """Hidden 8, heads 2 + 2 x 1 of 4; two layers of four 16-wide experts; 32 words.

    Attention 8 x 4 x (2 x 2 + 2 x 1) = 192; an expert 3 x 8 x 16 = 384, 8 of them 3072; a layer's
    router 4 x 8 = 32 and norms 16; embeddings 2 x 32 x 8 = 512 and a last norm of 8.
    Non-expert: 2 (192 + 32 + 16) + 512 + 8 = 1000.
    """
    tiny = ModelSpec(
        hidden_size=8,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=4,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=32,
        max_position_embeddings=64,
        dtype="float32",
    )
    assert (tiny.experts_parameters, tiny.non_expert_parameters) == (3072, 1000)
    assert tiny.weight_bytes == 4 * 4072
    assert tiny.kv_bytes_per_token == 2 * 2 * 1 * 4 * 4


def test_tied_embeddings_count_once() -> None:
    """Tying saves exactly one table of vocab x hidden."""
    untied = ModelSpec.from_config(CONFIG)
    tied = ModelSpec.from_config({**CONFIG, "tie_word_embeddings": True})
    assert untied.parameters - tied.parameters == 100 * 64


def test_old_and_new_keys_mean_the_same() -> None:
    """Transformers 4 wrote `rope_theta` and `torch_dtype`, 5 `rope_parameters` and `dtype`."""
    old = {**CONFIG, "rope_theta": 5e5}
    new = {key: value for key, value in CONFIG.items() if key != "torch_dtype"}
    new |= {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}, "dtype": "bfloat16"}
    assert ModelSpec.from_config(old) == ModelSpec.from_config(new)
    assert ModelSpec.from_config(old).rope_theta == 5e5


def test_a_spec_survives_its_own_config() -> None:
    """What `to_config` writes reads back as the same spec."""
    spec = ModelSpec.from_config({**CONFIG, "head_dim": 32, "tie_word_embeddings": True})
    assert ModelSpec.from_config(json.loads(json.dumps(spec.to_config()))) == spec


def test_head_dim_defaults_to_an_equal_share() -> None:
    """64 hidden over 4 heads is 16 each, unless the config says otherwise."""
    assert ModelSpec.from_config(CONFIG).head_dim == 16
    assert ModelSpec.from_config({**CONFIG, "head_dim": 24}).head_dim == 24


def test_no_key_value_heads_means_one_for_each_head() -> None:
    """Absent or null `num_key_value_heads` is plain multi-head attention."""
    assert ModelSpec.from_config({**CONFIG, "num_key_value_heads": None}).num_key_value_heads == 4


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model_type": "llama"}, ["model_type", "'llama'", "mixtral"]),
        ({"sliding_window": 4096}, ["sliding_window", "4096"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_parameters.rope_type", "'yarn'"]),
        ({"hidden_size": 0}, ["hidden_size", "0"]),
        ({"vocab_size": -5}, ["vocab_size", "-5"]),
        ({"torch_dtype": "int3"}, ["dtype", "int3", "bfloat16"]),
        ({"num_key_value_heads": 3}, ["num_attention_heads", "4", "3"]),
        ({"num_experts_per_tok": 9}, ["num_experts_per_tok", "9", "4"]),
    ],
)
def test_a_wrong_field_is_named(change: dict[str, Any], words: list[str]) -> None:
    """The message holds the file, the field and the value."""
    with pytest.raises(ScenarioError) as caught:
        ModelSpec.from_config({**CONFIG, **change}, "some/config.json")
    for word in ["some/config.json", *words]:
        assert word in str(caught.value)


@pytest.mark.parametrize("field", [key for key in CONFIG if key.startswith(("num", "h", "v"))])
def test_a_missing_field_is_named(field: str) -> None:
    """Every size must be there, but for the key-value heads, which have a default."""
    config = {key: value for key, value in CONFIG.items() if key != field}
    if field == "num_key_value_heads":
        assert ModelSpec.from_config(config).num_key_value_heads == 4
        return
    with pytest.raises(ScenarioError, match=f"config.json: {field}: missing"):
        ModelSpec.from_config(config, "config.json")


def test_a_checkpoint_folder_is_read_by_its_config(tmp_path: Path) -> None:
    """A folder stands for the config.json inside it."""
    (tmp_path / "config.json").write_text(json.dumps(CONFIG))
    assert read_config(tmp_path) == read_config(tmp_path / "config.json")


@pytest.mark.parametrize(
    ("text", "words"),
    [("{", "not readable as JSON"), ("[1]", "expected a JSON object, found list")],
)
def test_a_broken_config_is_one_line(tmp_path: Path, text: str, words: str) -> None:
    """Truncated or of another kind: the file is named."""
    path = tmp_path / "config.json"
    path.write_text(text)
    with pytest.raises(ScenarioError, match=words) as caught:
        read_config(path)
    assert str(path) in str(caught.value)


def test_a_folder_without_config_says_so(tmp_path: Path) -> None:
    """The message says which file was looked for."""
    with pytest.raises(ScenarioError, match=r"config\.json: no such file"):
        read_config(tmp_path)
