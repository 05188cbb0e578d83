"""The mixture-of-experts layer: a router, and the expert networks it chooses (Mixtral)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from engine.model.experts.choice import REFERENCE
from engine.model.quantised import Weight
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec

Routing = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From tokens (T, H) to their experts' weights (T, k) in float32 and ids (T, k)."""


class MoeLayer(nn.Module):
    """E experts of which each token visits k.

    `routing` is the router in use: `route`, unless something replaced it to watch or to force it.
    `choice` says in which style the experts run.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        experts, hidden = spec.num_local_experts, spec.hidden_size
        inner = spec.intermediate_size
        self.top_k = spec.num_experts_per_tok
        self.norm_topk_prob = spec.norm_topk_prob
        self.gate = empty_weight(spec, device, experts, hidden)
        self.gate_up: Weight = empty_weight(spec, device, experts, 2 * inner, hidden)
        self.down: Weight = empty_weight(spec, device, experts, hidden, inner)
        self.routing: Routing = self.route
        self.choice = REFERENCE

    @property
    def num_experts(self) -> int:
        """Experts of the layer."""
        return self.gate.shape[0]

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's k most probable experts, weighted by their probabilities.

        With `norm_topk_prob` the weights of a token are scaled to add up to one.
        """
        probabilities = linear(x, self.gate).float().softmax(dim=-1)  # [T, E]
        weights, ids = probabilities.topk(self.top_k, dim=-1)  # [T, k]
        if self.norm_topk_prob:
            weights = weights / weights.sum(dim=-1, keepdim=True)
        return weights, ids

    def experts(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Add up the outputs (T, H) of each token's experts, in the style chosen for T tokens."""
        return self.choice(x.shape[0]).run(x, weights, ids, self.gate_up, self.down)
