"""The points at which a profile from kernels is laid out."""

from dataclasses import dataclass

import numpy as np

from moesim.cost.kernels.tables import Kernels
from moesim.facts.models import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """The points at which operations are laid out."""

    tokens: list[int]
    sequences: list[int]
    new_tokens: list[int]
    contexts: list[int]
    distinct: list[int]
    longest: int

    @classmethod
    def of(cls, kernels: Kernels, spec: ModelSpec, most_tokens: int, most_seqs: int) -> "Sizes":
        """Take measured sizes, and enough between that straight lines hold."""
        measured = {size for gemm in kernels.gemm for size in gemm.tokens}
        measured |= {size for moe in kernels.moe for size in moe.tokens}
        lengths = {n for curve in kernels.prefill for n in curve.new_tokens}
        longest = spec.max_position_embeddings
        new = min(most_tokens, longest)
        return cls(
            tokens=up_to(most_tokens, measured | set(_steps(most_tokens))),
            sequences=up_to(most_seqs, set(_steps(most_seqs))),
            new_tokens=up_to(max(2, new), lengths | set(_steps(new, 1.2)))[1:] or [2],
            contexts=[0, *up_to(longest, {2**power for power in range(6, 24)})],
            distinct=_distinct(max(1, spec.num_local_experts), max(1, spec.num_experts_per_tok)),
            longest=longest,
        )


def up_to(most: int, sizes: set[int]) -> list[int]:
    """Return 1, the sizes up to `most`, and `most`, in order."""
    return sorted({1, most} | {size for size in sizes if 0 < size < most})


def _steps(most: int, factor: float = 2.0) -> list[int]:
    """Return whole numbers from 1 to `most` that grow by no more than about `factor`."""
    count = int(np.ceil(np.log(max(2, most)) / np.log(factor))) + 1
    return sorted({int(size) for size in np.geomspace(1, most, count).round()})


def _distinct(experts: int, top_k: int) -> list[int]:
    """Return all numbers of hit experts where they are few, else multiples of top-k, doubling."""
    if experts <= 16:
        return list(range(1, experts + 1))
    return up_to(experts, {top_k * 2**power for power in range(experts.bit_length())})
