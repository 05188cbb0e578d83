"""The shapes of kernels that models need, on one device and on each of a group."""

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.experts import Cut, Layer
from moesim.facts.models import ModelSpec

GROUPS = (1, 2, 4, 8)
"""Sizes of groups: a node's GPUs and its halves."""


@dataclass(frozen=True, slots=True)
class Shapes:
    """What is to be looked for in a table."""

    gemms: frozenset[tuple[int, int]]
    """n and k of products."""
    heads: frozenset[Heads]
    layers: frozenset[tuple[Layer, Cut]]

    @classmethod
    def of(cls, specs: Iterable[ModelSpec]) -> "Shapes":
        """Return the shapes of models on groups of 1, 2, 4 and 8 devices."""
        gemms: set[tuple[int, int]] = set()
        heads: set[Heads] = set()
        layers: set[tuple[Layer, Cut]] = set()
        for spec in specs:
            fitting = [ranks for ranks in GROUPS if not spec.num_attention_heads % ranks]
            for ranks in fitting:
                gemms |= _products(spec, ranks)
                heads.add(heads_of(spec, ranks))
            if spec.num_local_experts:
                layers |= {(_layer(spec), cut) for cut in _cuts(spec, fitting)}
        return cls(frozenset(gemms), frozenset(heads), frozenset(layers))


def heads_of(spec: ModelSpec, ranks: int) -> Heads:
    """Return the heads of one of so many ranks; several may share one of keys and values."""
    return Heads(
        spec.num_attention_heads // ranks,
        max(1, spec.num_key_value_heads // ranks),
        spec.head_dim,
    )


def _layer(spec: ModelSpec) -> Layer:
    return Layer(
        spec.hidden_size, spec.intermediate_size, spec.num_local_experts, spec.num_experts_per_tok
    )


def _products(spec: ModelSpec, ranks: int) -> set[tuple[int, int]]:
    heads, hidden = heads_of(spec, ranks), spec.hidden_size
    queries = heads.heads * heads.head_dim
    found = {
        (queries + 2 * heads.kv_heads * heads.head_dim, hidden),
        (hidden, queries),
        (-(-spec.vocab_size // ranks), hidden),
    }
    if spec.num_local_experts:
        found.add((spec.num_local_experts, hidden))
    inner = spec.dense_intermediate_size or (
        0 if spec.num_local_experts else spec.intermediate_size
    )
    if inner:
        found |= {((2 if spec.gated_ffn else 1) * inner // ranks, hidden), (hidden, inner // ranks)}
    return found


def _cuts(spec: ModelSpec, fitting: Iterable[int]) -> set[Cut]:
    return {
        Cut(ranks // parts, parts)
        for ranks in fitting
        for parts in GROUPS
        if not ranks % parts and not spec.num_local_experts % parts
    }
