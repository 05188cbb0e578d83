"""Watching and forcing the router, for calibration.

Both replace the `routing` of every MoE layer for the length of a `with` block, and may be nested.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.moe import MoeLayer, Routing
from moesim.errors import EngineError


@contextmanager
def forced_routing(model: Decoder, distinct: int) -> Iterator[None]:
    """Spread the tokens evenly over the first `distinct` experts of every layer.

    The router still runs, so that it costs what it costs; only its choice is replaced. With k = 2
    and `distinct` 3, tokens visit experts (0, 1), (2, 0), (1, 2), (0, 1) and so on. The network of
    a model without experts counts as the one expert of its layer, where nothing can be forced.
    """
    spec = model.spec
    top_k, experts = max(1, spec.num_experts_per_tok), max(1, spec.num_local_experts)
    if not top_k <= distinct <= experts:
        raise EngineError(
            f"forced routing: distinct: {distinct} must be between the {top_k} experts of a token "
            f"and the {experts} of a layer"
        )

    @cache  # computed once for each T, so that it adds nothing to the router's measured time
    def balanced(tokens: int) -> Tensor:
        if tokens * top_k < distinct:
            raise EngineError(
                f"forced routing: distinct: {tokens} tokens of {top_k} experts each cannot visit "
                f"{distinct} experts; use more tokens or fewer experts"
            )
        visits = torch.arange(tokens * top_k, device=model.device)
        return (visits % distinct).view(tokens, top_k)

    def forced(_: MoeLayer, routing: Routing) -> Routing:
        def route(x: Tensor) -> tuple[Tensor, Tensor]:
            return routing(x)[0], balanced(x.shape[0])

        return route

    with _replaced(model, forced):
        yield


@contextmanager
def observed_routing(model: Decoder) -> Iterator[Tensor]:
    """Yield counts to which every forward pass adds the tokens each expert received.

    They have a row for each layer that has experts, (L, E) where all have.
    Zero the counts between passes (`counts.zero_()`) and `(counts > 0).sum(dim=1)` are the distinct
    experts that each layer hit in the last one.
    """
    experts = model.spec.num_local_experts
    moes = model.moe_layers
    counts = torch.zeros(len(moes), experts, dtype=torch.long, device=model.device)
    rows = dict(zip(moes, counts.unbind(), strict=True))

    def observed(moe: MoeLayer, routing: Routing) -> Routing:
        def route(x: Tensor) -> tuple[Tensor, Tensor]:
            weights, ids = routing(x)
            rows[moe].add_(ids.flatten().bincount(minlength=experts))
            return weights, ids

        return route

    with _replaced(model, observed):
        yield counts


@contextmanager
def _replaced(model: Decoder, wrap: Callable[[MoeLayer, Routing], Routing]) -> Iterator[None]:
    """Wrap the routing of every layer with experts, and put the former one back."""
    moes = model.moe_layers
    former = [moe.routing for moe in moes]
    try:
        for moe, routing in zip(moes, former, strict=True):
            moe.routing = wrap(moe, routing)
        yield
    finally:
        for moe, routing in zip(moes, former, strict=True):
            moe.routing = routing
