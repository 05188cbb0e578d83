"""Feed-forward networks, plain or as experts: two matrices with a ReLU between them."""

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, relu

from engine.model.layers import rms_norm
from engine.model.moe import Routing
from engine.model.stopwatch import Lap
from engine.model.switch.router import most_probable, within_capacity
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec


class DenseFeedForward(nn.Module):
    """One network for all tokens, behind a norm and beside a residual."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.dense_intermediate_size
        self.eps = spec.rms_norm_eps
        self.norm = empty_weight(spec, device, hidden)
        self.wi = empty_weight(spec, device, inner, hidden)
        self.wo = empty_weight(spec, device, hidden, inner)

    def forward(self, x: Tensor, lengths: list[int], lap: Lap) -> Tensor:
        """Take the residual stream `x` (T, H) through; `lengths` make no difference here.

        As in a decoder's dense layer, the router's lap covers the norm alone.
        """
        normed = rms_norm(x, self.norm, self.eps)
        lap("router")
        out = x + linear(relu(linear(normed, self.wi)), self.wo)
        lap("experts")
        return out


class SparseFeedForward(nn.Module):
    """E networks of which each token visits one, if it has a place.

    `routing` is the router in use: `route`, unless something replaced it to watch or to force it.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        experts, hidden, inner = spec.num_local_experts, spec.hidden_size, spec.intermediate_size
        self.eps = spec.rms_norm_eps
        self.capacity = spec.expert_capacity
        self.norm = empty_weight(spec, device, hidden)
        self.gate = empty_weight(spec, device, experts, hidden)
        self.wi = empty_weight(spec, device, experts, inner, hidden)
        self.wo = empty_weight(spec, device, experts, hidden, inner)
        self.routing: Routing = self.route

    @property
    def num_experts(self) -> int:
        """Experts of the layer."""
        return self.gate.shape[0]

    def forward(self, x: Tensor, lengths: list[int], lap: Lap) -> Tensor:
        """Take the residual stream `x` (T, H) of sequences of `lengths` through."""
        normed = rms_norm(x, self.norm, self.eps)
        weights, ids = self.routing(normed)  # [T, 1]
        ids = ids[:, 0]
        placed = within_capacity(ids, lengths, self.capacity, self.num_experts)
        lap("router")
        out = x + self.experts(normed, weights, ids.masked_fill(~placed, self.num_experts))
        lap("experts")
        return out

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's most probable expert; its probability is the weight."""
        return most_probable(x, self.gate)

    def experts(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Return the outputs (T, H) of each token's expert; zeros where the id is E.

        Tokens are sorted by expert, so that each expert's lie side by side.
        """
        order = ids.argsort()
        counts = ids.bincount(minlength=self.num_experts + 1).tolist()[: self.num_experts]
        out = torch.zeros_like(x)
        end = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            start, end = end, end + count
            rows = order[start:end]
            inner = relu(linear(x[rows], self.wi[expert]))
            out[rows] = linear(inner, self.wo[expert]) * weights[rows]
        return out


def feed_forward(
    spec: ModelSpec, dense: bool, device: torch.device
) -> DenseFeedForward | SparseFeedForward:
    """Return a layer's feed-forward network, plain if `dense`."""
    return DenseFeedForward(spec, device) if dense else SparseFeedForward(spec, device)
