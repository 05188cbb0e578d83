"""What a decoder model is: its shape, and the parameters, bytes and FLOP that follow from it.

The fields carry the names of Hugging Face's `config.json`, from which a spec is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import Any, Self

from moesim.errors import ScenarioError

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
ARCHITECTURE = "MixtralForCausalLM"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a Mixtral-architecture decoder.

    >>> mixtral = ModelSpec.from_config({
    ...     "model_type": "mixtral", "hidden_size": 4096, "intermediate_size": 14336,
    ...     "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8,
    ...     "num_local_experts": 8, "num_experts_per_tok": 2, "vocab_size": 32000,
    ...     "max_position_embeddings": 32768, "torch_dtype": "bfloat16"})
    >>> mixtral.parameters
    46702792704
    >>> mixtral.kv_bytes_per_token
    131072
    """

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    num_experts_per_tok: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 1e6
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    dtype: str = "bfloat16"

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config") -> Self:
        """Read a Hugging Face config, in its old keys (`rope_theta`, `torch_dtype`) or its new.

        Raises ScenarioError, naming `source`, for another architecture or a missing field.
        """
        if config.get("model_type") != "mixtral":
            raise ScenarioError(
                f"{source}: model_type: {config.get('model_type')!r} is not supported; "
                "this version reads 'mixtral' configurations"
            )
        _refuse_unsupported(config, source)
        rope = config.get("rope_parameters") or {}
        heads = _whole(config, "num_attention_heads", source)
        hidden = _whole(config, "hidden_size", source)
        return cls(
            hidden_size=hidden,
            intermediate_size=_whole(config, "intermediate_size", source),
            num_hidden_layers=_whole(config, "num_hidden_layers", source),
            num_attention_heads=heads,
            num_key_value_heads=_whole(config, "num_key_value_heads", source, heads),
            head_dim=_whole(config, "head_dim", source, hidden // heads),
            num_local_experts=_whole(config, "num_local_experts", source),
            num_experts_per_tok=_whole(config, "num_experts_per_tok", source),
            vocab_size=_whole(config, "vocab_size", source),
            max_position_embeddings=_whole(config, "max_position_embeddings", source),
            rope_theta=_positive({**config, **rope}, "rope_theta", source, 1e6),
            rms_norm_eps=_positive(config, "rms_norm_eps", source, 1e-5),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )._checked(source)

    def _checked(self, source: str) -> Self:
        if self.dtype not in DTYPE_BYTES:
            known = ", ".join(DTYPE_BYTES)
            raise ScenarioError(f"{source}: dtype: {self.dtype!r} is not one of {known}")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ScenarioError(
                f"{source}: num_attention_heads: {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        if self.num_experts_per_tok > self.num_local_experts:
            raise ScenarioError(
                f"{source}: num_experts_per_tok: {self.num_experts_per_tok} is more than "
                f"num_local_experts {self.num_local_experts}"
            )
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the Hugging Face configuration (new keys) of this shape."""
        config = asdict(self)
        config["rope_parameters"] = {
            "rope_type": "default",
            "rope_theta": config.pop("rope_theta"),
        }
        return {
            "architectures": [ARCHITECTURE],
            "model_type": "mixtral",
            "hidden_act": "silu",
            "sliding_window": None,
            **config,
        }

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight or cached value [B]."""
        return DTYPE_BYTES[self.dtype]

    @property
    def attention_parameters(self) -> int:
        """Parameters of one layer's Q, K, V and O projections."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        return self.hidden_size * heads * self.head_dim

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert (gate, up and down projections)."""
        return 3 * self.hidden_size * self.intermediate_size

    @property
    def experts_parameters(self) -> int:
        """Parameters of all experts of all layers."""
        return self.num_hidden_layers * self.num_local_experts * self.expert_parameters

    @property
    def non_expert_parameters(self) -> int:
        """Parameters of the non-expert set: everything of the model but its experts."""
        per_layer = (
            self.attention_parameters
            + self.num_local_experts * self.hidden_size
            + 2 * self.hidden_size
        )
        embeddings = (1 if self.tie_word_embeddings else 2) * self.vocab_size * self.hidden_size
        return self.num_hidden_layers * per_layer + embeddings + self.hidden_size

    @property
    def parameters(self) -> int:
        """All parameters."""
        return self.experts_parameters + self.non_expert_parameters

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights [B]."""
        return self.parameters * self.dtype_bytes

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers [B]."""
        return (
            2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim * self.dtype_bytes
        )


def _refuse_unsupported(config: Mapping[str, Any], source: str) -> None:
    """Raise ScenarioError for a feature that would silently change what the model computes."""
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, Mapping):
        raise ScenarioError(f"{source}: rope_parameters: {rope!r} is not an object")
    kinds = {
        "rope_parameters.rope_type": (rope.get("rope_type", "default"), "default"),
        "rope_scaling": (config.get("rope_scaling"), None),
        "sliding_window": (config.get("sliding_window"), None),
        "hidden_act": (config.get("hidden_act", "silu"), "silu"),
    }
    for name, (value, supported) in kinds.items():
        if value != supported:
            raise ScenarioError(
                f"{source}: {name}: {value!r} is not supported; only {supported!r} is"
            )


def _whole(config: Mapping[str, Any], name: str, source: str, default: int | None = None) -> int:
    value = config.get(name)
    if value is None and default is not None:
        return default
    if name not in config:
        raise ScenarioError(f"{source}: {name}: missing; add it")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ScenarioError(f"{source}: {name}: {value!r} must be a whole number above zero")
    return value


def _positive(config: Mapping[str, Any], name: str, source: str, default: float) -> float:
    value = config.get(name, default)
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < inf:
        raise ScenarioError(f"{source}: {name}: {value!r} must be a number above zero")
    return float(value)


def read_config(path: Path) -> ModelSpec:
    """Read the `config.json` at `path`, or in the folder `path`.

    Raises ScenarioError where the file is absent, not JSON, or not supported.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text())
    except FileNotFoundError:
        raise ScenarioError(
            f"{file}: no such file; give a checkpoint folder with a config.json"
        ) from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as wrong:
        raise ScenarioError(f"{file}: not readable as JSON ({wrong})") from None
    if not isinstance(config, dict):
        raise ScenarioError(f"{file}: expected a JSON object, found {type(config).__name__}")
    return ModelSpec.from_config(config, str(file))
