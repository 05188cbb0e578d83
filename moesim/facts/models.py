"""What a model is: its shape, and the parameters, bytes and FLOP that follow from it.

The fields carry the names of Hugging Face's `config.json`, from which a spec is read
(`moesim.facts.configs` knows the keys of each architecture).
"""

import json
from collections.abc import Collection, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

from moesim.errors import ScenarioError
from moesim.facts.configs import (
    RUNNABLE,
    RopeScaling,
    config_of,
    fields_of,
    require_architecture,
)
from moesim.facts.precision import FORMATS, Precision

DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}

NARROWED = ("attention", "dense_ffn")
"""The parts of the non-expert set that a quantised checkpoint narrows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSpec:
    """The shape of a decoder, with experts or without, or of an encoder-decoder.

    The layers are the decoder's; those in `dense_layers` have a plain FFN in place of experts. An
    encoder-decoder has encoder layers too, and attends from each decoder layer to the encoder.

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
    """Inner width of an expert; in a model without experts, of its FFN."""
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    num_local_experts: int
    """Experts of a layer that has some; 0 in a model without."""
    num_experts_per_tok: int
    vocab_size: int
    max_position_embeddings: int
    rope_theta: float = 1e6
    rope_scaling: RopeScaling | None = None
    """How rotary positions were stretched to `max_position_embeddings`, if they were."""
    rms_norm_eps: float = 1e-5
    tie_word_embeddings: bool = False
    dtype: str = "bfloat16"
    model_type: str = "mixtral"
    norm_topk_prob: bool = True
    """Whether the weights of a token's experts are scaled to add up to one."""
    qk_norm: bool = False
    """Whether queries and keys pass an RMS norm of width `head_dim`."""
    attention_bias: bool = False
    """Whether the four projections of attention have biases."""
    gated_ffn: bool = True
    """Whether FFNs and experts have three matrices (gate, up, down) or two."""
    dense_layers: tuple[int, ...] = ()
    """Decoder layers with a plain FFN in place of experts."""
    dense_intermediate_size: int = 0
    """Inner width of the plain FFNs; 0 where there are none."""
    num_encoder_layers: int = 0
    dense_encoder_layers: tuple[int, ...] = ()
    relative_attention_num_buckets: int = 0
    """Buckets of the learned relative positions, one table for each of encoder and decoder."""
    expert_capacity: int = 0
    """Tokens of a sequence that an expert takes; the others pass it by. 0: no limit."""

    @classmethod
    def from_config(cls, config: Mapping[str, Any], source: str = "config") -> Self:
        """Read a Hugging Face config, in its old keys (`rope_theta`, `torch_dtype`) or its new.

        Raises ScenarioError, naming `source`, for another architecture or a missing field.
        """
        return cls(**fields_of(config, source))._checked(source)

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
                f"the {self.num_local_experts} experts of a layer"
            )
        return self

    def to_config(self) -> dict[str, Any]:
        """Return the Hugging Face configuration (new keys) of this shape."""
        return config_of(asdict(self))

    @property
    def dtype_bytes(self) -> int:
        """Bytes of one weight or cached value [B]."""
        return DTYPE_BYTES[self.dtype]

    @property
    def attention_parameters(self) -> int:
        """Parameters of one attention's Q, K, V and O projections."""
        heads = 2 * self.num_attention_heads + 2 * self.num_key_value_heads
        biases = (heads - self.num_attention_heads) * self.head_dim + self.hidden_size
        weights = self.hidden_size * heads * self.head_dim
        return weights + (biases if self.attention_bias else 0)

    @property
    def attentions(self) -> int:
        """Attentions of the model: one a layer, and a second where the encoder is attended to."""
        decoder = self.num_hidden_layers * (2 if self.num_encoder_layers else 1)
        return decoder + self.num_encoder_layers

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert (gate, up and down projections, or only the last two)."""
        return self._ffn_parameters(self.intermediate_size)

    @property
    def expert_layers(self) -> int:
        """Layers with experts, encoder and decoder together."""
        dense = len(self.dense_layers) + len(self.dense_encoder_layers)
        return self.num_hidden_layers + self.num_encoder_layers - dense

    @property
    def expert_positions(self) -> int:
        """Pairs of (layer, expert)."""
        return self.expert_layers * self.num_local_experts

    @property
    def experts_parameters(self) -> int:
        """Parameters of all experts of all layers."""
        return self.expert_positions * self.expert_parameters

    @property
    def parameters_by_part(self) -> dict[str, int]:
        """Parameters of each part of the model; together they are all of them."""
        table = self.vocab_size * self.hidden_size
        dense = len(self.dense_layers) + len(self.dense_encoder_layers)
        return {
            "embedding": table,
            "attention": self.attentions * self.attention_parameters + self._position_parameters,
            "router": self.expert_positions * self.hidden_size,
            "experts": self.experts_parameters,
            "dense_ffn": dense * self._ffn_parameters(self.dense_intermediate_size),
            "norms": self._norm_parameters,
            "head": 0 if self.tie_word_embeddings else table,
        }

    def _ffn_parameters(self, inner: int) -> int:
        return (3 if self.gated_ffn else 2) * self.hidden_size * inner

    @property
    def _position_parameters(self) -> int:
        tables = 2 if self.num_encoder_layers else 1
        return tables * self.relative_attention_num_buckets * self.num_attention_heads

    @property
    def _norm_parameters(self) -> int:
        """One norm before each attention and each FFN, one after each stack, two on heads."""
        ffns = self.num_hidden_layers + self.num_encoder_layers
        stacks = 2 if self.num_encoder_layers else 1
        on_heads = 2 * self.head_dim * self.attentions if self.qk_norm else 0
        return (self.attentions + ffns + stacks) * self.hidden_size + on_heads

    @property
    def non_expert_parameters(self) -> int:
        """Parameters of the non-expert set: everything of the model but its experts."""
        return self.parameters - self.experts_parameters

    @property
    def parameters(self) -> int:
        """All parameters."""
        return sum(self.parameters_by_part.values())

    @property
    def active_parameters(self) -> int:
        """Parameters on a token's way: the non-expert set and its k experts of each layer.

        In an encoder-decoder the way leads through both.
        """
        visits = self.expert_layers * self.num_experts_per_tok
        return self.non_expert_parameters + visits * self.expert_parameters

    @property
    def flop_per_token(self) -> int:
        """Operations of a token with the weights, attention to its context left out [FLOP].

        Two for each active parameter but those of the embedding, which is looked up; a tied
        embedding is multiplied with as the head.
        """
        looked_up = 0 if self.tie_word_embeddings else self.vocab_size * self.hidden_size
        return 2 * (self.active_parameters - looked_up)

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights [B]."""
        return self.parameters * self.dtype_bytes

    def expert_bytes(self, precision: Precision) -> int:
        """Return the bytes of one expert, with its scales [B]."""
        return FORMATS[precision.experts].bytes_of(self.expert_parameters)

    def non_expert_bytes(self, precision: Precision) -> int:
        """Return the bytes of the non-expert set [B]."""
        parts = self.parameters_by_part
        narrowed = sum(parts[name] for name in NARROWED)
        plain = self.non_expert_parameters - narrowed
        return FORMATS[precision.rest].bytes_of(narrowed) + FORMATS[precision.plain].bytes_of(plain)

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token over all decoder layers.

        In an encoder-decoder a prompt token's are those that the decoder attends to across, as
        many as an output token's own.
        """
        return 2 * self.num_hidden_layers * self.num_key_value_heads * self.head_dim

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes of keys and values of one token over all layers, in the model's dtype [B]."""
        return self.kv_values_per_token * self.dtype_bytes


def read_config(path: Path, architectures: Collection[str] = RUNNABLE) -> ModelSpec:
    """Read the `config.json` at `path`, or in the folder `path`.

    Raises ScenarioError where the file is absent, not JSON, or not of the given `architectures`:
    those that run, unless the caller needs the shape alone.
    """
    file = path / "config.json" if path.is_dir() else path
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ScenarioError(
            f"{file}: no such file; give a checkpoint folder with a config.json"
        ) from None
    except (OSError, ValueError, RecursionError) as wrong:
        raise ScenarioError(f"{file}: not readable as JSON ({wrong})") from None
    if not isinstance(config, dict):
        raise ScenarioError(f"{file}: expected a JSON object, found {type(config).__name__}")
    require_architecture(config, architectures, str(file))
    return ModelSpec.from_config(config, str(file))
