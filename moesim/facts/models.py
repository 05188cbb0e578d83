"""What a decoder model is: its shape, and the parameters, bytes and FLOP that follow from it.

The fields carry the names of Hugging Face's `config.json`, from which a spec is read.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
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
        if config.get("sliding_window") is not None:
            raise ScenarioError(
                f"{source}: sliding_window: {config['sliding_window']!r} is not supported; "
                "only full attention (null) is"
            )
        rope = config.get("rope_parameters") or {}
        if rope.get("rope_type", "default") != "default":
            raise ScenarioError(
                f"{source}: rope_parameters.rope_type: {rope['rope_type']!r} is not supported; "
                "only 'default' is"
            )
        try:
            values = {
                "hidden_size": int(config["hidden_size"]),
                "intermediate_size": int(config["intermediate_size"]),
                "num_hidden_layers": int(config["num_hidden_layers"]),
                "num_attention_heads": int(config["num_attention_heads"]),
                "num_key_value_heads": int(
                    config.get("num_key_value_heads") or config["num_attention_heads"]
                ),
                "num_local_experts": int(config["num_local_experts"]),
                "num_experts_per_tok": int(config["num_experts_per_tok"]),
                "vocab_size": int(config["vocab_size"]),
                "max_position_embeddings": int(config["max_position_embeddings"]),
            }
        except KeyError as missing:
            raise ScenarioError(f"{source}: {missing.args[0]}: missing; add it") from None
        except (TypeError, ValueError) as wrong:
            raise ScenarioError(f"{source}: {wrong}") from None
        return cls(
            **values,
            head_dim=int(
                config.get("head_dim") or values["hidden_size"] // values["num_attention_heads"]
            ),
            rope_theta=float(rope.get("rope_theta", config.get("rope_theta") or 1e6)),
            rms_norm_eps=float(config.get("rms_norm_eps", 1e-5)),
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            dtype=str(config.get("dtype") or config.get("torch_dtype") or "float32"),
        )._checked(source)

    def _checked(self, source: str) -> Self:
        for name, value in asdict(self).items():
            if isinstance(value, (int, float)) and not isinstance(value, bool) and value <= 0:
                raise ScenarioError(f"{source}: {name}: {value} must be above zero")
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
