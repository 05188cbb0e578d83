"""How far apart the variants' experts at one position are.

The L2 distance between their flattened weights; of more than two variants the sum over pairs
(Imani et al., ICML 2025, arXiv:2505.06481). Experts of other positions are not compared: variants
fine-tuned from one base keep their experts in place.
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields
from itertools import combinations
from math import sqrt

import torch
from torch import Tensor

from engine.variants.positions import Position
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError

Tell = Callable[[float, str], None]
"""Told the fraction done, and what is being done."""

MAY_DIFFER = ("max_position_embeddings",)
"""What variants of one shape need not agree in: how long their texts may be."""


def distances(variants: Sequence[StoredExperts], tell: Tell) -> dict[Position, float]:
    """Return the distance at each position, in the positions' order.

    One matrix of each variant is in memory at a time, so that models larger than memory can be
    compared. Raises EngineError unless there are two variants or more, of one shape, with experts,
    and of finite weights.
    """
    _check(variants)
    positions = variants[0].positions
    found = {}
    for done, position in enumerate(positions):
        where = f"layer {position.layer} expert {position.expert}"
        tell(done / len(positions), where)
        matrices = zip(*(variant.matrices(position) for variant in variants), strict=True)
        found[position] = summed_distance(matrices)
        if not found[position] < float("inf"):
            raise EngineError(
                f"variants: {where}: distance {found[position]}; "
                "a checkpoint has weights that are not finite"
            )
    return found


def summed_distance(matrices: Iterable[Sequence[Tensor]]) -> float:
    """Sum up the distances of all pairs of experts, of which the same matrix comes at a time."""
    squares: dict[tuple[int, int], float] = defaultdict(float)
    for copies in matrices:
        for first, second in combinations(range(len(copies)), 2):
            squares[first, second] += _square(copies[first], copies[second])
    return sum(sqrt(square) for square in squares.values())


def _square(a: Tensor, b: Tensor) -> float:
    """Return the squared distance of two matrices, differences in float32, summed in float64."""
    difference = a.float() - b.float()
    return float(torch.linalg.vector_norm(difference, dtype=torch.float64)) ** 2


def _check(variants: Sequence[StoredExperts]) -> None:
    if len(variants) < 2:
        raise EngineError(f"variants: {len(variants)} given; consolidation needs two or more")
    first, *others = variants
    if not first.positions:
        raise EngineError(f"{first.path}: has no experts; consolidation shares nothing else")
    for other in others:
        for name in (field.name for field in fields(first.spec)):
            mine, its = getattr(first.spec, name), getattr(other.spec, name)
            if mine != its and name not in MAY_DIFFER:
                raise EngineError(
                    f"{other.path}: {name}: {its} is not {mine} as in {first.path}; "
                    "give variants of one shape"
                )
