"""The mixture-of-experts layer: a router, and the expert networks it chooses (Mixtral)."""

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import linear, silu

from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec

Routing = Callable[[Tensor], tuple[Tensor, Tensor]]
"""From tokens (T, H) to their experts' weights (T, k) in float32 and ids (T, k)."""


class MoeLayer(nn.Module):
    """E experts of which each token visits k.

    `routing` is the router in use: `route`, unless something replaced it to watch or to force it.
    """

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        experts, hidden = spec.num_local_experts, spec.hidden_size
        inner = spec.intermediate_size
        self.top_k = spec.num_experts_per_tok
        self.gate = empty_weight(spec, device, experts, hidden)
        self.gate_up = empty_weight(spec, device, experts, 2 * inner, hidden)
        self.down = empty_weight(spec, device, experts, hidden, inner)
        self.routing: Routing = self.route

    @property
    def num_experts(self) -> int:
        """Experts of the layer."""
        return self.gate.shape[0]

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Choose each token's k most probable experts, and weights that add up to one."""
        probabilities = linear(x, self.gate).float().softmax(dim=-1)  # [T, E]
        weights, ids = probabilities.topk(self.top_k, dim=-1)  # [T, k]
        return weights / weights.sum(dim=-1, keepdim=True), ids

    def experts(self, x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Add up the outputs (T, H) of each token's experts; experts without tokens cost nothing.

        The T * k visits are sorted by expert, so that each expert's tokens lie side by side.
        """
        order = ids.flatten().argsort()  # [T * k]
        counts = ids.flatten().bincount(minlength=self.num_experts).tolist()
        tokens = order // self.top_k  # [T * k]
        scales = weights.flatten()[order].unsqueeze(-1)  # [T * k, 1]
        out = torch.zeros_like(x)
        end = 0
        for expert, count in enumerate(counts):
            if not count:
                continue
            start, end = end, end + count
            rows = tokens[start:end]
            y = self.expert(expert, x[rows]) * scales[start:end]  # [count, H]
            out.index_add_(0, rows, y.to(x.dtype))
        return out

    def expert(self, expert: int, x: Tensor) -> Tensor:
        """Return one expert's output (n, H) for its tokens (n, H)."""
        gate, up = linear(x, self.gate_up[expert]).chunk(2, dim=-1)  # [n, I] each
        return linear(silu(gate) * up, self.down[expert])
