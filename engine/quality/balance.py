"""Keeping all experts in use while a model is trained.

The auxiliary loss of Switch Transformers (Fedus et al. 2022, arXiv:2101.03961, equation 4): E times
the sum over experts of the share of visits times the mean probability, 1 where all are alike.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor
from torch.nn.functional import linear

from engine.model.decoder import Decoder
from engine.model.moe import MoeLayer, Routing
from engine.model.switch.feed_forward import SparseFeedForward
from engine.variants.positions import Model

Routed = MoeLayer | SparseFeedForward


def routed_layers(model: Model) -> list[Routed]:
    """Return the networks of a model whose tokens are routed to experts, in order."""
    if isinstance(model, Decoder):
        return [*model.moe_layers]
    layers = [*model.encoder.encoder_layers, *model.decoder.decoder_layers]
    networks = [layer.feed_forward for layer in layers]
    return [network for network in networks if isinstance(network, SparseFeedForward)]


@contextmanager
def balances(layers: Sequence[Routed]) -> Iterator[list[Tensor]]:
    """Yield a list to which every forward pass adds each layer's loss; empty it between passes."""
    losses: list[Tensor] = []
    former = [layer.routing for layer in layers]
    try:
        for layer in layers:
            layer.routing = _watched(layer, layer.routing, losses.append)
        yield losses
    finally:
        for layer, routing in zip(layers, former, strict=True):
            layer.routing = routing


def imbalance(probabilities: Tensor, ids: Tensor) -> Tensor:
    """Return the loss of probabilities (T, E) and the experts (T, k) that were visited."""
    experts = probabilities.shape[1]
    shares = ids.flatten().bincount(minlength=experts) / ids.numel()  # [E]
    return experts * (shares * probabilities.mean(0)).sum()


def _watched(layer: Routed, routing: Routing, add: Callable[[Tensor], None]) -> Routing:
    def route(x: Tensor) -> tuple[Tensor, Tensor]:
        weights, ids = routing(x)
        add(imbalance(linear(x, layer.gate).float().softmax(dim=-1), ids))
        return weights, ids

    return route
