"""What a Switch Transformer's configuration says beside the shape that all models share."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from moesim.errors import ScenarioError
from moesim.facts.models import ModelSpec, read_config

MODEL_TYPE = "switch_transformers"
FEWEST_BUCKETS = 4
"""One for near and one for far tokens, behind and ahead."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchConfig:
    """The shape of a Switch Transformer, and what its two halves agree on.

    Defaults are those of transformers' `SwitchTransformersConfig`, and of its pad token where a
    decoder starts.
    """

    spec: ModelSpec
    max_distance: int = 128
    """Tokens from which on all relative positions share a bucket."""
    decoder_start_token: int = 0
    """The decoder's first input, in place of a prompt."""
    eos_tokens: tuple[int, ...] = (1,)
    """Tokens with which an answer ends, for whoever reads answers."""

    def __post_init__(self) -> None:
        if self.spec.model_type != MODEL_TYPE:
            raise ScenarioError(
                f"model_type: {self.spec.model_type!r} is not {MODEL_TYPE!r}; "
                "give the shape of a Switch Transformer"
            )
        if self.spec.dtype == "float16":
            raise ScenarioError(
                "dtype: 'float16' overflows in Switch Transformers; give 'bfloat16' or 'float32'"
            )
        if self.spec.relative_attention_num_buckets < FEWEST_BUCKETS:
            raise ScenarioError(
                f"relative_attention_num_buckets: {self.spec.relative_attention_num_buckets} must "
                f"be at least {FEWEST_BUCKETS}"
            )

    def to_config(self) -> dict[str, Any]:
        """Return the Hugging Face configuration."""
        spec = self.spec
        return {
            **spec.to_config(),
            "encoder_sparse_step": _sparse_step(spec.num_encoder_layers, spec.dense_encoder_layers),
            "decoder_sparse_step": _sparse_step(spec.num_hidden_layers, spec.dense_layers),
            "is_encoder_decoder": True,
            "relative_attention_max_distance": self.max_distance,
            "decoder_start_token_id": self.decoder_start_token,
            "pad_token_id": self.decoder_start_token,
            "eos_token_id": list(self.eos_tokens),
        }


def read_switch_config(path: Path, dtype: str | None = None) -> SwitchConfig:
    """Read the `config.json` in the folder `path`, with another number format where one is given.

    Raises ScenarioError where it is not a Switch Transformer's, or asks for what we do not compute.
    """
    spec = read_config(path, (MODEL_TYPE,))
    file = path / "config.json"
    config = json.loads(file.read_text())
    precision = config.get("router_dtype", "float32")
    if precision != "float32":
        raise ScenarioError(f"{file}: router_dtype: {precision!r} is not supported; only 'float32'")
    found: dict[str, Any] = {
        "max_distance": _max_distance(config, spec, file),
        "decoder_start_token": _start_token(config, spec, file),
        "eos_tokens": _eos_tokens(config, file),
    }
    try:
        return SwitchConfig(spec=replace(spec, dtype=dtype or spec.dtype), **found)
    except ScenarioError as wrong:
        raise ScenarioError(f"{file}: {wrong}") from None


def _max_distance(config: Mapping[str, Any], spec: ModelSpec, file: Path) -> int:
    """Read the distance; the logarithmic buckets lie between half of them and it."""
    key, least = "relative_attention_max_distance", spec.relative_attention_num_buckets // 2
    value = config.get(key, 128)
    if not _is_token(value) or value <= least:
        raise ScenarioError(f"{file}: {key}: {value!r} must be a whole number above {least}")
    return int(value)


def _start_token(config: Mapping[str, Any], spec: ModelSpec, file: Path) -> int:
    """Read what a decoder starts with; the pad token, as T5 has it, unless another is named."""
    value = config.get("decoder_start_token_id")
    value = config.get("pad_token_id", 0) if value is None else value
    if not _is_token(value) or value >= spec.vocab_size:
        raise ScenarioError(
            f"{file}: decoder_start_token_id: {value!r} is not a token of the vocabulary of "
            f"{spec.vocab_size}"
        )
    return int(value)


def _eos_tokens(config: Mapping[str, Any], file: Path) -> tuple[int, ...]:
    value = config.get("eos_token_id", 1)
    tokens = [] if value is None else value if isinstance(value, list) else [value]
    if not all(_is_token(token) for token in tokens):
        raise ScenarioError(f"{file}: eos_token_id: {value!r} is not a token or a list of them")
    return tuple(tokens)


def _sparse_step(layers: int, dense: tuple[int, ...]) -> int:
    """Return the distance between layers with experts, of which the first is layer 1; or 0."""
    sparse = [layer for layer in range(layers) if layer not in dense]
    return sparse[1] - sparse[0] if len(sparse) > 1 else layers * len(sparse)


def _is_token(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0
