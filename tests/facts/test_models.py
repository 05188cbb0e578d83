"""Parameters and bytes of published models, and configurations that must be refused."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_model
from moesim.facts.configs import ARCHITECTURES, RopeScaling
from moesim.facts.models import ModelSpec, read_config
from moesim.facts.precision import Precision

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


QWEN: dict[str, Any] = {
    "model_type": "qwen3_moe",
    "hidden_size": 64,
    "intermediate_size": 96,
    "moe_intermediate_size": 24,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "num_experts": 8,
    "num_experts_per_tok": 3,
    "vocab_size": 100,
    "max_position_embeddings": 512,
}

SWITCH: dict[str, Any] = {
    "model_type": "switch_transformers",
    "d_model": 16,
    "d_ff": 32,
    "d_kv": 8,
    "num_heads": 2,
    "num_layers": 4,
    "num_decoder_layers": 2,
    "num_sparse_encoder_layers": 2,
    "num_sparse_decoder_layers": 1,
    "num_experts": 4,
    "expert_capacity": 64,
    "vocab_size": 50,
}

LLAMA: dict[str, Any] = {key: value for key, value in CONFIG.items() if "experts" not in key} | {
    "model_type": "llama"
}


LLAMA3_ROPE: dict[str, Any] = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 128,
}


def shape(name: str) -> ModelSpec:
    """Return a shipped model, whether it runs or not."""
    return load_model(name, architectures=ARCHITECTURES)


def test_mixtral_has_its_published_parameters() -> None:
    """Mixtral-8x7B as the tensors of its published checkpoint add up."""
    mixtral = load_model("mixtral-8x7b")
    assert mixtral.attention_parameters == 41_943_040
    assert mixtral.expert_parameters == 176_160_768
    assert mixtral.experts_parameters == 45_097_156_608
    assert mixtral.non_expert_parameters == 1_605_636_096
    assert mixtral.parameters == 46_702_792_704


@pytest.mark.parametrize(
    ("name", "parameters"),
    [
        ("mixtral-8x7b", 46_702_792_704),
        ("mixtral-8x22b", 140_620_634_112),
        ("llama-3-8b", 8_030_261_248),
        ("llama-3-70b", 70_553_706_496),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("switch-base-8", 619_339_008),
    ],
)
def test_a_shipped_model_has_its_published_parameters(name: str, parameters: int) -> None:
    """As Hugging Face counts the tensors of the published checkpoint."""
    assert shape(name).parameters == parameters
    assert sum(shape(name).parameters_by_part.values()) == parameters


def test_active_parameters_are_the_published() -> None:
    """12.9 B of Mixtral's 46.7 B, 39 B of 141 B, 3.3 B of Qwen3's 30.5 B (model cards)."""
    assert round(shape("mixtral-8x7b").active_parameters / 1e9, 1) == 12.9
    assert round(shape("mixtral-8x22b").active_parameters / 1e9) == 39
    assert 3.3 <= shape("qwen3-30b-a3b").active_parameters / 1e9 < 3.4
    assert shape("llama-3-8b").active_parameters == shape("llama-3-8b").parameters


def test_the_embedding_is_looked_up_not_multiplied() -> None:
    """Mixtral computes 25.5 GFLOP a token: 2 x (12.88 B - 0.13 B of the embedding)."""
    mixtral = shape("mixtral-8x7b")
    assert mixtral.flop_per_token == 2 * (12_879_925_248 - 131_072_000)
    tied = ModelSpec.from_config({**CONFIG, "tie_word_embeddings": True})
    assert tied.flop_per_token == ModelSpec.from_config(CONFIG).flop_per_token


def test_expert_positions_are_layers_times_experts() -> None:
    """32 x 8; 48 x 128; (6 + 6) x 8; none."""
    names = ("mixtral-8x7b", "qwen3-30b-a3b", "switch-base-8", "llama-3-8b")
    assert [shape(name).expert_positions for name in names] == [256, 6144, 96, 0]


def test_a_tiny_switch_by_hand() -> None:
    """Width 16, heads 2 of 8, FFN 32, 4 experts; 4 encoder layers, 2 decoder layers; 50 words.

    An attention 4 x 16 x 16 = 1024: 4 in the encoder, 2 + 2 in the decoder. An FFN 2 x 16 x 32 =
    1024: experts in encoder layers 1 and 3 and decoder layer 1, so 12 of them, and 3 plain ones.
    Routers 3 x 4 x 16 = 192. Norms of 16: 4 x 2 + 1, 2 x 3 + 1, so 16 x 16 = 256. Relative
    positions 2 x 32 x 2 = 128. Words 50 x 16 = 800, shared by encoder, decoder and head.
    """
    tiny = ModelSpec.from_config(SWITCH)
    assert (tiny.dense_encoder_layers, tiny.dense_layers) == ((0, 2), (0,))
    assert tiny.parameters_by_part == {
        "embedding": 800,
        "attention": 8 * 1024 + 128,
        "router": 192,
        "experts": 12 * 1024,
        "dense_ffn": 3 * 1024,
        "norms": 256,
        "head": 0,
    }
    assert tiny.active_parameters == tiny.non_expert_parameters + 3 * 1024
    assert tiny.kv_values_per_token == 2 * 2 * 16


def test_qwen_layers_without_experts() -> None:
    """Those named, and those between the steps: of four layers at step 2, layers 1 and 3 have."""
    stepped = ModelSpec.from_config({**QWEN, "decoder_sparse_step": 2})
    assert stepped.dense_layers == (0, 2)
    assert (stepped.intermediate_size, stepped.dense_intermediate_size) == (24, 96)
    named = ModelSpec.from_config({**QWEN, "mlp_only_layers": [3]})
    assert named.dense_layers == (3,)
    assert ModelSpec.from_config(QWEN).expert_layers == 4


def test_quantised_experts_leave_the_rest_alone() -> None:
    """An expert of 176,160,768 parameters: 352 MB, 176 MB, and with 20 bits a group 91.5 MB."""
    mixtral = shape("mixtral-8x7b")
    assert mixtral.expert_bytes(Precision()) == 352_321_536
    assert mixtral.expert_bytes(Precision(experts="fp8")) == 176_160_768
    int4 = 176_160_768 // 2 + 176_160_768 // 128 * 20 // 8
    assert mixtral.expert_bytes(Precision(experts="int4")) == int4
    assert mixtral.non_expert_bytes(Precision(experts="int4")) == 2 * 1_605_636_096


def test_embeddings_norms_and_routers_stay_in_16_bits() -> None:
    """Of Mixtral's non-expert set only attention is narrowed: 32 x 41,943,040 parameters."""
    mixtral = shape("mixtral-8x7b")
    attention = 32 * 41_943_040
    plain = 2 * (1_605_636_096 - attention)
    assert mixtral.non_expert_bytes(Precision.uniform("fp8")) == attention + plain
    assert mixtral.non_expert_bytes(Precision.uniform("fp32")) == 4 * 1_605_636_096


def test_whole_models_weigh_what_their_dtype_says() -> None:
    """Experts and the rest, counted apart, are all the weights."""
    for name in ("mixtral-8x7b", "switch-base-8", "llama-3-8b"):
        spec = shape(name)
        own = Precision.of_dtype(spec.dtype)
        experts = spec.expert_positions * spec.expert_bytes(own)
        assert experts + spec.non_expert_bytes(own) == spec.weight_bytes


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


@pytest.mark.parametrize(
    "config",
    [
        {**QWEN, "mlp_only_layers": [0, 2], "norm_topk_prob": True},
        {**LLAMA, "attention_bias": True, "rope_parameters": LLAMA3_ROPE},
        SWITCH,
    ],
    ids=lambda config: str(config["model_type"]),
)
def test_every_architecture_survives_its_own_config(config: dict[str, Any]) -> None:
    """Whatever it is called there."""
    spec = ModelSpec.from_config(config)
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
        ({"model_type": "gpt2"}, ["model_type", "'gpt2'", "mixtral", "llama"]),
        ({"sliding_window": 511}, ["sliding_window", "511", "512"]),
        ({"sliding_window": "all"}, ["sliding_window", "'all'"]),
        ({"head_dim": 15}, ["head_dim", "15", "even"]),
        ({"rope_parameters": {"rope_type": "yarn"}}, ["rope_parameters.rope_type", "'yarn'"]),
        ({"rope_scaling": {"type": "linear"}}, ["rope_scaling.rope_type", "'linear'"]),
        ({"rope_scaling": ["llama3"]}, ["rope_scaling", "['llama3']"]),
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


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({**LLAMA, "mlp_bias": True}, "mlp_bias: True"),
        ({**LLAMA, "attention_bias": "yes"}, "attention_bias: 'yes'"),
        ({**LLAMA, "partial_rotary_factor": 0.5}, "partial_rotary_factor: 0.5"),
        ({**LLAMA, "rope_scaling": {"rope_type": "llama3"}}, "rope_scaling: factor: missing"),
        (
            {**LLAMA, "rope_parameters": {**LLAMA3_ROPE, "low_freq_factor": 4}},
            "rope_parameters: low_freq_factor: 4.0 must be below high_freq_factor 4.0",
        ),
        ({**LLAMA, "rope_parameters": {**LLAMA3_ROPE, "factor": -8}}, "factor: -8 must be"),
        ({**QWEN, "mlp_only_layers": 3}, "mlp_only_layers: 3"),
        ({**QWEN, "sliding_window": 64, "use_sliding_window": True}, "sliding_window: 64"),
        ({**SWITCH, "feed_forward_proj": "gated-gelu"}, "feed_forward_proj: 'gated-gelu'"),
        ({**SWITCH, "router_bias": True}, "router_bias: True"),
        ({**SWITCH, "num_sparse_decoder_layers": -1}, "num_sparse_decoder_layers: -1"),
    ],
)
def test_what_would_compute_otherwise_is_refused(config: dict[str, Any], words: str) -> None:
    """Rather than counted as if it were not there."""
    with pytest.raises(ScenarioError, match=words):
        ModelSpec.from_config(config)


@pytest.mark.parametrize(
    "config",
    [
        {**QWEN, "sliding_window": 64, "use_sliding_window": False},
        {**QWEN, "sliding_window": 64},
        {**CONFIG, "sliding_window": 512},
        {**CONFIG, "sliding_window": 4096},
        {**CONFIG, "sliding_window": None},
    ],
)
def test_a_window_that_hides_nothing_is_none(config: dict[str, Any]) -> None:
    """Switched off, as in Qwen's configurations (and its default), or as wide as the context."""
    plain = {key: value for key, value in config.items() if "sliding" not in key}
    assert ModelSpec.from_config(config) == ModelSpec.from_config(plain)


def test_stretched_positions_in_old_and_new_keys() -> None:
    """Transformers 4 wrote them into `rope_scaling`, with `rope_theta` beside it."""
    stretch = {key: value for key, value in LLAMA3_ROPE.items() if key != "rope_theta"}
    old = ModelSpec.from_config({**LLAMA, "rope_scaling": stretch, "rope_theta": 5e5})
    assert old == ModelSpec.from_config({**LLAMA, "rope_parameters": LLAMA3_ROPE})
    assert old.rope_scaling == RopeScaling(
        factor=8, low_freq_factor=1, high_freq_factor=4, original_max_position_embeddings=128
    )


@pytest.mark.parametrize("config", [CONFIG, LLAMA, QWEN], ids=lambda config: config["model_type"])
def test_what_is_left_out_means_what_transformers_means(config: dict[str, Any]) -> None:
    """Rotary base and epsilon differ from architecture to architecture."""
    theirs = AutoConfig.for_model(config["model_type"])
    spec = ModelSpec.from_config(config)
    assert spec.rope_theta == theirs.rope_parameters["rope_theta"]
    assert spec.rms_norm_eps == theirs.rms_norm_eps


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
