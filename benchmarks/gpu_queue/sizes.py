"""What is measured at which size: a rehearsal in seconds a step, or Mixtral-8x7B in minutes."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from moesim.facts.catalog import load_model
from moesim.facts.models import ModelSpec

SHIPPED = "mixtral-8x7b"
"""The model of the queue, and the one whose memory on the card the variants' is reckoned from."""

DEPTH = 3
"""Layers that variants have of Mixtral's 32. Host memory decides: time-sharing three whole models
pins all of each, and 128 GiB hold three of 9 GB twice over but not one of 93 GB with another."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """Lengths of requests [tokens], and how many run at once."""

    prompt: int
    output: int
    max_num_seqs: int
    most_prompt: int | None = None
    most_output: int | None = None

    def tenant(self, model: str, arrivals: Mapping[str, object]) -> dict[str, object]:
        """Return a scenario's tenant; lengths are fixed where no longest one is given."""
        return {
            "model": model,
            "arrivals": dict(arrivals),
            "prompt_tokens": _lengths(self.prompt, self.most_prompt),
            "output_tokens": _lengths(self.output, self.most_output),
        }


def _lengths(mean: int, most: int | None) -> dict[str, object]:
    if most is None:
        return {"kind": "fixed", "tokens": mean}
    return {"kind": "lognormal", "mean": mean, "cv": 0.5, "max": most}


PUBLISHED = Traffic(prompt=20, output=25, max_num_seqs=1)
"""Imani et al., ICML 2025, arXiv:2505.06481: 20 and 25 tokens, no batching described."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """How much is measured; `budgets_s` are whole steps, `setup_s` their part before measuring."""

    spec: ModelSpec
    shipped: str | None
    tokens: tuple[int, ...]
    sequences: tuple[int, ...]
    context: int
    repeats: int
    max_num_seqs: int
    max_batched_tokens: int
    num_blocks: int | None
    traffic: Traffic
    variant: ModelSpec
    variant_blocks: int
    variant_traffic: Traffic
    variant_loads: tuple[float, ...]
    variant_profile_s: float
    cell_s: float
    budgets_s: Mapping[str, float]
    setup_s: Mapping[str, float]

    def model(self, scratch: Path) -> str:
        """Return what calibration calls the model: its shipped name, or a file with its shape."""
        return self.shipped or str(scratch / "tiny.json")


TINY_SPEC = ModelSpec(
    hidden_size=64,
    intermediate_size=128,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=16,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=256,
    max_position_embeddings=512,
    dtype="float32",
)

TINY = Size(
    spec=TINY_SPEC,
    shipped=None,
    tokens=(1, 8),
    sequences=(1, 8),
    context=16,
    repeats=3,
    max_num_seqs=8,
    max_batched_tokens=128,
    num_blocks=256,
    traffic=Traffic(prompt=32, output=16, most_prompt=96, most_output=48, max_num_seqs=8),
    variant=TINY_SPEC,
    variant_blocks=128,
    variant_traffic=Traffic(prompt=32, output=16, most_prompt=96, most_output=48, max_num_seqs=4),
    variant_loads=(0.6,),
    variant_profile_s=3.0,
    cell_s=0.8,
    budgets_s={"tests": 100, "kernels": 30, "profile": 10, "validate": 30, "variants": 110},
    setup_s={"profile": 3, "validate": 12, "variants": 0},
)


def mixtral() -> Size:
    """Return the sizes of the queue itself."""
    spec = load_model(SHIPPED)
    return Size(
        spec=spec,
        shipped=SHIPPED,
        tokens=(1, 2, 4, 8, 16, 32, 64, 256, 512, 2048),
        sequences=(1, 8, 64, 256),
        context=128,
        repeats=20,
        max_num_seqs=64,
        max_batched_tokens=1024,
        num_blocks=None,
        traffic=Traffic(prompt=256, output=64, most_prompt=2048, most_output=256, max_num_seqs=64),
        variant=replace(spec, num_hidden_layers=DEPTH, max_position_embeddings=2048),
        variant_blocks=1024,
        variant_traffic=Traffic(
            prompt=64, output=32, most_prompt=256, most_output=96, max_num_seqs=8
        ),
        variant_loads=(0.3, 0.6),
        variant_profile_s=20.0,
        cell_s=6.0,
        budgets_s={"tests": 180, "kernels": 200, "profile": 220, "validate": 280, "variants": 560},
        setup_s={"profile": 120, "validate": 100, "variants": 0},
    )


SIZES = {"tiny": lambda: TINY, SHIPPED: mixtral}
