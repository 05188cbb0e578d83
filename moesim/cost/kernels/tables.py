"""The file of kernels: one device's measured durations, by shape, over sizes.

Shapes are those of one rank. Durations are in microseconds, as written; the curves turn them into
seconds. What the measurements got wrong was dropped before, and is told in `warnings`.

| family | shape | over |
|---|---|---|
| gemm | format, n, k | tokens (the m of an m x n x k product) |
| prefill | heads, kv_heads, head_dim, kv_format | sequences, new tokens of each, context of each |
| decode | heads, kv_heads, head_dim, kv_format | sequences, context of each |
| moe | the layer's, the cut over ranks, format, distribution | tokens |
| collectives | operation, ranks | bytes |
| elementwise | name, width | tokens, or sequences |

A layer of experts takes the tokens of all ranks; its `inner` is the whole expert's width.
`distinct` says how many experts each of its points hit, where the table says so.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from moesim.checked import checked
from moesim.cost.profile import KERNELS, read_profile
from moesim.errors import ProfileError
from moesim.files import write_text

FORMAT_VERSION: Literal[1] = 1

FAMILIES = ("gemm", "prefill", "decode", "moe", "collectives", "elementwise")
"""The lists of curves in a file."""

SPIKES = "spikes dropped"
"""What warnings of a curve's dropped points have in common."""

Size = Annotated[int, Field(ge=0)]
Count = Annotated[int, Field(gt=0)]
Micros = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class _Series(_Part):
    """Durations over one or more sizes, listed side by side."""

    us: tuple[Micros, ...] = Field(min_length=1)
    """Durations [us]."""

    @model_validator(mode="after")
    def _side_by_side(self) -> Self:
        for name in type(self).model_fields:
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != len(self.us):
                raise ValueError(f"{name}: {len(value)} sizes beside {len(self.us)} durations")
        return self


class Gemm(_Series):
    """A product of tokens x k with weights of k x n."""

    format: str
    """Format of weights and activations."""
    n: Count
    """Columns of the weights."""
    k: Count
    """Rows of the weights."""
    tokens: tuple[Count, ...]
    """Rows of the activations."""


class _Attention(_Series):
    heads: Count
    """Query heads of the rank."""
    kv_heads: Count
    """Heads of keys and values of the rank."""
    head_dim: Count
    """Width of a head."""
    kv_format: str
    """Format of the KV cache."""
    sequences: tuple[Count, ...]
    """Sequences in the batch."""
    context: tuple[Size, ...]
    """Tokens cached of each sequence; in decoding the new one is among them."""


class Prefill(_Attention):
    """Attention of prompts or their chunks, causal."""

    new_tokens: tuple[Count, ...]
    """New tokens of each sequence."""


class Decode(_Attention):
    """Attention of one new token a sequence."""


class Moe(_Series):
    """A layer's experts on one rank: routing of tokens to them, their products, the sum."""

    hidden: Count
    """Width of the model."""
    inner: Count
    """Inner width of a whole expert."""
    experts: Count
    """Experts of the layer, on all ranks."""
    top_k: Count
    """Experts that a token visits."""
    tensor_parallel: Count = 1
    """Ranks over which each expert is split."""
    expert_parallel: Count = 1
    """Parts into which the experts are dealt."""
    format: str
    """Format of the experts' weights."""
    distribution: str
    """How visits fell on experts: `balanced`, or another word for anything else."""
    tokens: tuple[Count, ...]
    """Tokens that enter the layer."""
    distinct: tuple[Count, ...] | None = None
    """Experts hit on this rank, where that was measured apart."""


class Collective(_Series):
    """An exchange between the ranks of a group."""

    operation: str
    """`all_reduce` and the like."""
    ranks: Count
    """Devices that take part."""
    bytes: tuple[Count, ...]
    """Size of each rank's vector [B]."""


class Elementwise(_Series):
    """A kernel whose work goes with the tokens: norms, rotary positions, sampling."""

    name: str
    """Which."""
    width: Count
    """Values of one token."""
    tokens: tuple[Count, ...]
    """Tokens, or for `sampling` sequences."""


class Residual(_Part):
    """How far off the curves are on points that they were not drawn through."""

    left_out: str
    """Which points were left out and what predicted them."""
    points: Count
    """How many."""
    p50: float = Field(ge=0, allow_inf_nan=False)
    """Median of |measured / predicted - 1|."""
    p90: float = Field(ge=0, allow_inf_nan=False)
    """Its 90th percentile."""
    quantiles: tuple[Annotated[float, Field(gt=-1, allow_inf_nan=False)], ...]
    """Measured / predicted - 1 at the 5th, 10th, ... 95th percentile."""


class Origin(_Part):
    """Where the measurements come from."""

    source: str
    """Who measured, and under which licence they were published."""
    software: str
    """The software whose kernels these are, with its version."""
    files: tuple[str, ...]
    """The files read."""
    command: str
    """The command that made this file."""
    date: str
    """When it was made (ISO 8601, UTC)."""


class Kernels(_Part):
    """A whole file of kernels."""

    format: Literal["moesim-kernels"]
    """File type."""
    format_version: Literal[1]
    """Version of this layout."""
    device: str
    """The device: a shipped name, as scenarios refer to it, or the name it reports."""
    origin: Origin
    """Where the measurements come from."""
    models: tuple[str, ...]
    """The models whose shapes were looked for; others are interpolated."""
    warnings: tuple[str, ...] = ()
    """What was dropped or is missing."""
    residuals: dict[str, Residual] = {}
    """By family, from cross-validation."""
    products: dict[str, Literal["roofline", "waves", "rows"]] = {}
    """By format: how products go with their tokens between sizes (`moesim.cost.kernels.waves`);
    with the roofline where nothing is said."""
    gemm: tuple[Gemm, ...] = ()
    """Products."""
    prefill: tuple[Prefill, ...] = ()
    """Attention of prompts."""
    decode: tuple[Decode, ...] = ()
    """Attention of decoding."""
    moe: tuple[Moe, ...] = ()
    """Experts."""
    collectives: tuple[Collective, ...] = ()
    """Exchanges."""
    elementwise: tuple[Elementwise, ...] = ()
    """What goes with the tokens alone."""


def is_kernels(content: Any) -> bool:
    """Say whether the content of a JSON file calls itself a file of kernels."""
    return isinstance(content, dict) and content.get("format") == KERNELS


def kernels_from(content: Any, source: str) -> Kernels:
    """Check the content of a file; ProfileError, naming file and field, where it is wrong."""
    if not is_kernels(content):
        raise ProfileError(f"{source}: format: not a file of kernels")
    if content.get("format_version") != FORMAT_VERSION:
        raise ProfileError(
            f"{source}: format_version: {content.get('format_version')!r}, this moesim reads "
            f"{FORMAT_VERSION}; import the tables again with this version"
        )
    return checked(Kernels, content, source, ProfileError)


def load_kernels(name: str | Path, *, relative_to: Path | None = None) -> Kernels:
    """Load a file of kernels, by its path or a shipped name.

    Raises ProfileError, naming file and field, if it is broken; ScenarioError if there is none.
    """
    return kernels_from(read_profile(name, relative_to=relative_to), str(name))


def save_kernels(kernels: Kernels, path: Path) -> None:
    """Write a file of kernels atomically, a curve a line."""
    write_text(path, "\n".join(_lines(kernels)) + "\n")


def _lines(kernels: Kernels) -> Iterator[str]:
    content = kernels.model_dump(mode="json", exclude_none=True)
    last = list(content)[-1]
    yield "{"
    for key, value in content.items():
        end = "" if key == last else ","
        if key in FAMILIES and value:
            yield f" {json.dumps(key)}: ["
            rows = [json.dumps(row, separators=(",", ":")) for row in value]
            yield from (f"  {row}{'' if row is rows[-1] else ','}" for row in rows)
            yield f" ]{end}"
        else:
            yield f" {json.dumps(key)}: {json.dumps(value)}{end}"
    yield "}"
