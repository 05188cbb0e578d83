"""Hugging Face `config.json` files: which architectures are read, and by what keys.

An architecture is a pair of functions, from a configuration to the fields of a `ModelSpec` and
back. Of the keys that change what a model computes, those we do not follow are refused.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from math import inf
from typing import Any

from moesim.errors import ScenarioError

Config = Mapping[str, Any]
Fields = dict[str, Any]

MOST = 2**31 - 1
"""No size of a model is greater: what 32 bits count."""

MOST_LAYERS = 10_000
"""No model has more layers, or experts in a layer: some ten times what any published one has."""

SWITCH_LENGTH = 512
"""Tokens on either side that Switch Transformers were trained with (arXiv 2101.03961, section 2.2);
their configurations name no maximum, as relative positions need none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RopeScaling:
    """How rotary positions were stretched to a longer context, as Llama 3.1 does.

    Rotations that turn over `high_freq_factor` times within the original context stay, those that
    turn over less than `low_freq_factor` times are slowed down by `factor`, and those between are
    a mixture (Hugging Face's `rope_type` llama3).
    """

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What an architecture's configurations mean by leaving a key out, as transformers has it."""

    rope_theta: float = 1e4
    rms_norm_eps: float = 1e-6
    use_sliding_window: bool = True


@dataclass(frozen=True, slots=True)
class Architecture:
    """How one `model_type` is read and written."""

    class_name: str
    read: Callable[[Config, str], Fields]
    write: Callable[[Fields], Fields]


def fields_of(config: Config, source: str) -> Fields:
    """Return the fields of a configuration's `ModelSpec`.

    Raises ScenarioError, naming `source`, for another architecture or a missing field.
    """
    name = require_architecture(config, ARCHITECTURES, source)
    return {"model_type": name, **ARCHITECTURES[name].read(config, source)}


def config_of(fields: Fields) -> Fields:
    """Return the configuration (in the keys of transformers 5) of a `ModelSpec`'s fields."""
    architecture = ARCHITECTURES[fields["model_type"]]
    kept = {name: fields[name] for name in ("model_type", "tie_word_embeddings", "dtype")}
    return {
        "architectures": [architecture.class_name],
        **kept,
        **architecture.write(fields),
    }


def require_architecture(config: Config, known: Collection[str], source: str) -> str:
    """Return a configuration's `model_type`; raise ScenarioError if it is not among the known."""
    name = config.get("model_type")
    if not isinstance(name, str) or name not in known:
        listed = ", ".join(repr(one) for one in known)
        raise ScenarioError(
            f"{source}: model_type: {name!r} is not supported here; give a model of type {listed}"
        )
    return name


def _read_mixtral(config: Config, source: str) -> Fields:
    return {
        **_read_decoder(config, source, Defaults(rope_theta=1e6, rms_norm_eps=1e-5)),
        "intermediate_size": _whole(config, "intermediate_size", source),
        "num_local_experts": _whole(config, "num_local_experts", source),
        "num_experts_per_tok": _whole(config, "num_experts_per_tok", source),
    }


def _read_llama(config: Config, source: str) -> Fields:
    _refuse(config, source, mlp_bias=False)
    inner = _whole(config, "intermediate_size", source)
    layers = _whole(config, "num_hidden_layers", source)
    return {
        **_read_decoder(config, source, Defaults()),
        "intermediate_size": inner,
        "dense_intermediate_size": inner,
        "dense_layers": tuple(range(layers)),
        "num_local_experts": 0,
        "num_experts_per_tok": 0,
        "attention_bias": _flag(config, "attention_bias", source, False),
    }


def _read_qwen3_moe(config: Config, source: str) -> Fields:
    dense = _qwen_dense_layers(config, source)
    experts = "num_local_experts" if "num_experts" not in config else "num_experts"
    return {
        **_read_decoder(config, source, Defaults(use_sliding_window=False)),
        "intermediate_size": _whole(config, "moe_intermediate_size", source),
        "dense_intermediate_size": _whole(config, "intermediate_size", source) if dense else 0,
        "dense_layers": dense,
        "num_local_experts": _whole(config, experts, source),
        "num_experts_per_tok": _whole(config, "num_experts_per_tok", source),
        "norm_topk_prob": _flag(config, "norm_topk_prob", source, False),
        "attention_bias": _flag(config, "attention_bias", source, False),
        "qk_norm": True,
    }


def _qwen_dense_layers(config: Config, source: str) -> tuple[int, ...]:
    """Return the layers that `mlp_only_layers` and `decoder_sparse_step` leave without experts."""
    layers = _whole(config, "num_hidden_layers", source)
    step = _whole(config, "decoder_sparse_step", source, 1)
    named = config.get("mlp_only_layers") or []
    if not isinstance(named, list) or not all(type(one) is int for one in named):
        raise ScenarioError(f"{source}: mlp_only_layers: {named!r} is not a list of layers")
    return tuple(layer for layer in range(layers) if layer in named or (layer + 1) % step)


def _read_decoder(config: Config, source: str, defaults: Defaults) -> Fields:
    """Read what all decoders with rotary positions and RMS norms have in common."""
    _refuse(config, source, hidden_act="silu")
    longest = _whole(config, "max_position_embeddings", source)
    if _flag(config, "use_sliding_window", source, defaults.use_sliding_window):
        _refuse_window(config, source, longest)
    heads = _whole(config, "num_attention_heads", source)
    hidden = _whole(config, "hidden_size", source)
    rope_key, rope = _rope(config, source)
    return {
        "hidden_size": hidden,
        "num_hidden_layers": _whole(config, "num_hidden_layers", source),
        "num_attention_heads": heads,
        "num_key_value_heads": _whole(config, "num_key_value_heads", source, heads),
        "head_dim": _even(config, "head_dim", source, hidden // heads),
        "vocab_size": _whole(config, "vocab_size", source),
        "max_position_embeddings": longest,
        "rope_theta": _positive({**config, **rope}, "rope_theta", source, defaults.rope_theta),
        "rope_scaling": _rope_scaling(rope, f"{source}: {rope_key}", longest),
        "rms_norm_eps": _positive(config, "rms_norm_eps", source, defaults.rms_norm_eps),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", False)),
        "dtype": _dtype(config),
    }


def _refuse_window(config: Config, source: str, longest: int) -> None:
    """Raise ScenarioError for a window that would hide some of the longest context."""
    window = config.get("sliding_window")
    if window is not None and _whole(config, "sliding_window", source) < longest:
        raise ScenarioError(
            f"{source}: sliding_window: {window!r} is not supported; only null or a window of all "
            f"{longest} positions (max_position_embeddings) is"
        )


def _rope(config: Config, source: str) -> tuple[str, Mapping[str, Any]]:
    """Return what is said of rotary positions, and the key that says it, the old or the new."""
    key = "rope_scaling" if config.get("rope_scaling") else "rope_parameters"
    rope = config.get(key) or {}
    if not isinstance(rope, Mapping):
        raise ScenarioError(f"{source}: {key}: {rope!r} is not an object")
    _refuse({**config, **rope}, source, partial_rotary_factor=1.0)
    return key, rope


def _rope_scaling(rope: Mapping[str, Any], source: str, longest: int) -> RopeScaling | None:
    """Read how rotary positions are stretched, if they are; `source` ends with the key."""
    kind = rope.get("rope_type") or rope.get("type") or "default"
    if kind == "default":
        return None
    if kind != "llama3":
        raise ScenarioError(
            f"{source}.rope_type: {kind!r} is not supported; only 'default' and 'llama3' are"
        )
    original = "original_max_position_embeddings"
    scaling = RopeScaling(
        factor=_positive(rope, "factor", source),
        low_freq_factor=_positive(rope, "low_freq_factor", source),
        high_freq_factor=_positive(rope, "high_freq_factor", source),
        original_max_position_embeddings=_whole(rope, original, source, longest),
    )
    if scaling.low_freq_factor >= scaling.high_freq_factor:
        raise ScenarioError(
            f"{source}: low_freq_factor: {scaling.low_freq_factor} must be below high_freq_factor "
            f"{scaling.high_freq_factor}"
        )
    return scaling


def _read_switch(config: Config, source: str) -> Fields:
    _refuse(config, source, router_bias=False, feed_forward_proj="relu", dense_act_fn="relu")
    layers = _whole(config, "num_layers", source)
    heads = _whole(config, "num_heads", source)
    decoders = _whole(config, "num_decoder_layers", source, layers)
    return {
        "hidden_size": _whole(config, "d_model", source),
        "intermediate_size": _whole(config, "d_ff", source),
        "dense_intermediate_size": _whole(config, "d_ff", source),
        "num_hidden_layers": decoders,
        "dense_layers": _switch_dense_layers(config, "decoder", decoders, source),
        "num_encoder_layers": layers,
        "dense_encoder_layers": _switch_dense_layers(config, "encoder", layers, source),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "head_dim": _whole(config, "d_kv", source),
        "num_local_experts": _whole(config, "num_experts", source),
        "num_experts_per_tok": 1,
        "expert_capacity": _whole(config, "expert_capacity", source),
        "norm_topk_prob": False,
        "gated_ffn": False,
        "relative_attention_num_buckets": _whole(
            config, "relative_attention_num_buckets", source, 32
        ),
        "vocab_size": _whole(config, "vocab_size", source),
        "max_position_embeddings": _whole(config, "n_positions", source, SWITCH_LENGTH),
        "rms_norm_eps": _positive(config, "layer_norm_epsilon", source, 1e-6),
        "tie_word_embeddings": bool(config.get("tie_word_embeddings", True)),
        "dtype": _dtype(config),
    }


def _switch_dense_layers(config: Config, side: str, layers: int, source: str) -> tuple[int, ...]:
    """Return the layers without experts: every `step`-th, from the second on, has some.

    As transformers has it, layer 1 keeps its experts where `num_sparse_*_layers` is 0; no layer has
    any only where the step is 0, as it is for more sparse layers than there are.
    """
    default = None
    if config.get(f"num_sparse_{side}_layers") is not None:
        sparse = _count(config, f"num_sparse_{side}_layers", source)
        default = layers // sparse if sparse else layers
    step = _count(config, f"{side}_sparse_step", source, default)
    return tuple(layer for layer in range(layers) if not step or (step > 1 and layer % step != 1))


def _write_decoder(fields: Fields) -> Fields:
    names = (
        "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "num_key_value_heads", "head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps",
    )  # fmt: skip
    return {
        "hidden_act": "silu",
        "sliding_window": None,
        **{name: fields[name] for name in names},
        "rope_parameters": {
            "rope_type": "llama3" if fields["rope_scaling"] else "default",
            "rope_theta": fields["rope_theta"],
            **(fields["rope_scaling"] or {}),
        },
    }


def _write_mixtral(fields: Fields) -> Fields:
    names = ("num_local_experts", "num_experts_per_tok")
    return {**_write_decoder(fields), **{name: fields[name] for name in names}}


def _write_llama(fields: Fields) -> Fields:
    return {**_write_decoder(fields), "attention_bias": fields["attention_bias"]}


def _write_qwen3_moe(fields: Fields) -> Fields:
    inner = fields["intermediate_size"]
    names = ("num_experts_per_tok", "norm_topk_prob", "attention_bias")
    return {
        **_write_decoder(fields),
        **{name: fields[name] for name in names},
        "num_experts": fields["num_local_experts"],
        "moe_intermediate_size": inner,
        "intermediate_size": fields["dense_intermediate_size"] or inner,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(fields["dense_layers"]),
    }


def _write_switch(fields: Fields) -> Fields:
    keys = {
        "d_model": "hidden_size", "d_ff": "intermediate_size", "d_kv": "head_dim",
        "num_heads": "num_attention_heads", "num_layers": "num_encoder_layers",
        "num_decoder_layers": "num_hidden_layers", "num_experts": "num_local_experts",
        "expert_capacity": "expert_capacity", "vocab_size": "vocab_size",
        "relative_attention_num_buckets": "relative_attention_num_buckets",
        "n_positions": "max_position_embeddings", "layer_norm_epsilon": "rms_norm_eps",
    }  # fmt: skip
    sparse = {
        f"num_sparse_{side}_layers": fields[count] - len(fields[dense])
        for side, count, dense in (
            ("encoder", "num_encoder_layers", "dense_encoder_layers"),
            ("decoder", "num_hidden_layers", "dense_layers"),
        )
    }
    # Without a step, 0 sparse layers would be read as one.
    steps = {
        f"{side}_sparse_step": 0
        for side in ("encoder", "decoder")
        if not sparse[f"num_sparse_{side}_layers"]
    }
    shape = {key: fields[keys[key]] for key in keys}
    return {"feed_forward_proj": "relu", **shape, **sparse, **steps}


ARCHITECTURES = {
    "mixtral": Architecture("MixtralForCausalLM", _read_mixtral, _write_mixtral),
    "qwen3_moe": Architecture("Qwen3MoeForCausalLM", _read_qwen3_moe, _write_qwen3_moe),
    "llama": Architecture("LlamaForCausalLM", _read_llama, _write_llama),
    "switch_transformers": Architecture(
        "SwitchTransformersForConditionalGeneration", _read_switch, _write_switch
    ),
}
"""What is read, by `model_type`."""

DECODERS = ("mixtral", "qwen3_moe", "llama")
"""The architectures that are decoders alone: `engine.model.decoder` runs them."""

RUNNABLE = (*DECODERS, "switch_transformers")
"""The architectures that the engine runs; calibration and simulation follow the decoders."""


def _refuse(config: Config, source: str, **supported: object) -> None:
    """Raise ScenarioError for a feature that would silently change what the model computes."""
    for name, only in supported.items():
        value = config.get(name, only)
        if value != only:
            raise ScenarioError(f"{source}: {name}: {value!r} is not supported; only {only!r} is")


def _whole(config: Config, name: str, source: str, default: int | None = None) -> int:
    value = _count(config, name, source, default, "above zero")
    if value < 1:
        raise ScenarioError(f"{source}: {name}: {value!r} must be a whole number above zero")
    return value


def _count(
    config: Config, name: str, source: str, default: int | None = None, bound: str = "from zero on"
) -> int:
    """Read a whole number that may be zero."""
    value = config.get(name)
    if value is None and default is not None:
        return default
    if name not in config:
        raise ScenarioError(f"{source}: {name}: missing; add it")
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ScenarioError(f"{source}: {name}: {value!r} must be a whole number {bound}")
    most = MOST_LAYERS if name.endswith(("layers", "experts")) else MOST
    if value > most:
        raise ScenarioError(f"{source}: {name}: {value} must be at most {most}")
    return value


def _even(config: Config, name: str, source: str, default: int) -> int:
    """Read the size of a head, whose values rotate in pairs."""
    value = _whole(config, name, source, default)
    if value % 2:
        raise ScenarioError(f"{source}: {name}: {value} must be even for rotary positions")
    return value


def _positive(config: Config, name: str, source: str, default: float | None = None) -> float:
    value = config.get(name, default)
    if value is None:
        raise ScenarioError(f"{source}: {name}: missing; add it")
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise ScenarioError(f"{source}: {name}: {value!r} must be a number above zero")
    return float(value)


def _flag(config: Config, name: str, source: str, default: bool) -> bool:
    value = config.get(name, default)
    if not isinstance(value, bool):
        raise ScenarioError(f"{source}: {name}: {value!r} must be true or false")
    return value


def _dtype(config: Config) -> str:
    return str(config.get("dtype") or config.get("torch_dtype") or "float32")
