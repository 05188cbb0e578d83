"""The shapes of kernels that models need, and those of a table that lie around them."""

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.curves import bracket
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


def around(wanted: frozenset[tuple[int, int]], known: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the known shapes that are wanted, or lie around those that are.

    >>> sorted(around(frozenset({(3, 3)}), {(2, 2), (2, 4), (4, 2), (4, 4), (8, 8)}))
    [(2, 2), (2, 4), (4, 2), (4, 4)]
    """
    ks = sorted({k for _, k in known})
    narrowest = min(n for n, _ in known)
    found = set()
    for n, k in wanted:
        wide = max(n, narrowest)
        for side in bracket([k for k in ks if _spans(known, k, wide)] or ks, k):
            ns = sorted(n for n, other in known if other == side)
            found |= {(int(end), int(side)) for end in bracket(ns, wide)}
    return found


def _spans(known: set[tuple[int, int]], k: int, n: int) -> bool:
    ns = [width for width, other in known if other == k]
    return min(ns) <= n <= max(ns)


def heads_around(wanted: frozenset[Heads], known: set[Heads]) -> set[Heads]:
    """Return the known heads that are wanted, or lie around those with as many for keys."""
    found = wanted & known
    for heads in wanted - known:
        alike = sorted(other.heads for other in known if other[1:] == heads[1:])
        if alike:
            found |= {heads._replace(heads=int(end)) for end in bracket(alike, heads.heads)}
    return set(found)
