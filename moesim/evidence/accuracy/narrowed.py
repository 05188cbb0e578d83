"""Experts whose weights alone are narrow, where kernels of such were not timed.

They are widened on the device before they are multiplied. So they are read as fast as experts in 16
bits of as many bytes, which have a narrower inner width, and multiplied as fast as those in 16 bits
of their own width: the longer of both is taken.

```
seconds = max(16 bits, inner width x bits / 16;  16 bits, own width x arithmetic's share of the roofline)
```
"""  # noqa: E501

from collections.abc import Collection
from dataclasses import replace

from moesim.cost.expected import EXPERTS_BANDWIDTH, EXPERTS_COMPUTE, Rates
from moesim.cost.parallel import Shard
from moesim.cost.profile import Cell, Profile
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision

WEIGHTS_ALONE = ("int8", "int4")
"""Formats in which no activations are."""

TIMED = "bf16"
"""The format of the experts that were timed."""


def timed_instead(precision: Precision, timed: Collection[str]) -> Precision:
    """Return a precision whose experts were timed, where those asked for are narrow weights alone.

    >>> timed_instead(Precision(experts="int8", rest="int8"), {"bf16"}).experts
    'bf16'
    >>> timed_instead(Precision(experts="int8", rest="int8"), {"bf16", "int8"}).experts
    'int8'
    """
    if precision.experts in timed or precision.experts not in WEIGHTS_ALONE:
        return precision
    return replace(precision, experts=TIMED)


def as_many_bytes(spec: ModelSpec, number_format: str, ranks: int) -> ModelSpec:
    """Return a model whose experts in 16 bits have the bytes of a model's experts in a format.

    Its inner width is cut over the ranks without rest.
    """
    share = FORMATS[number_format].bytes_of(2**20) / FORMATS[TIMED].bytes_of(2**20)
    each = max(1, round(spec.intermediate_size * share / ranks))
    return replace(spec, intermediate_size=each * ranks)


def narrowed(profile: Profile, shorter: Profile, shard: Shard, rates: Rates) -> Profile:
    """Return a profile with narrow experts, from one of 16 bits and `shorter`, of as many bytes."""
    read_s = {cell.at: cell.median_s for cell in shorter.operations["experts"]}
    cells = []
    for cell in profile.operations["experts"]:
        multiplied_s = cell.median_s * arithmetic_share(shard, rates, *cell.at)
        seconds = max(read_s[cell.at], multiplied_s)
        cells.append(Cell.model_construct(at=cell.at, median_s=seconds, spread=0.0, repeats=1))
    return profile.model_copy(
        update={
            "operations": {**profile.operations, "experts": cells},
            "bases": {**profile.bases, "experts": "extrapolated"},
        }
    )


def arithmetic_share(shard: Shard, rates: Rates, tokens: float, distinct: float) -> float:
    """Return by how much the arithmetic of experts in 16 bits is of their roofline, 1 at most."""
    parts, spec = shard.expert_parallel, shard.spec
    visits, hit = tokens * spec.num_experts_per_tok / parts, distinct / parts
    flop = 2.0 * shard.expert_parameters * visits
    moved = FORMATS[TIMED].bytes_of(shard.expert_parameters) * hit
    computing_s = flop / (rates.flop_per_s * EXPERTS_COMPUTE)
    reading_s = moved / (rates.bytes_per_s * EXPERTS_BANDWIDTH)
    return computing_s / max(computing_s, reading_s)
