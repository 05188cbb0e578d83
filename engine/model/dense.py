"""The plain feed-forward part of a dense layer: one gated network that every token passes."""

import torch
from torch import Tensor, nn
from torch.nn.functional import silu

from engine.model.projection import project
from engine.model.quantised import Weight
from engine.model.weights import empty_weight
from moesim.facts.models import ModelSpec


class DenseFfn(nn.Module):
    """Gate and up projections one below the other in `gate_up` (2 I, H), and `down` (H, I)."""

    def __init__(self, spec: ModelSpec, device: torch.device) -> None:
        super().__init__()
        hidden, inner = spec.hidden_size, spec.dense_intermediate_size
        self.gate_up: Weight = empty_weight(spec, device, 2 * inner, hidden)
        self.down: Weight = empty_weight(spec, device, hidden, inner)

    def forward(self, x: Tensor) -> Tensor:
        """Return the output (T, H) for tokens (T, H)."""
        gate, up = project(x, self.gate_up).chunk(2, dim=-1)  # [T, I] each
        return project(silu(gate) * up, self.down)
