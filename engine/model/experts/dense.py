"""Every expert on the whole batch, with the rows that are not its own set to zero.

So Mixtral ran in vLLM until January 2024 (pull request 2090): E / k times the arithmetic of the
other styles, while a full batch reads the same weights. It is here as that baseline.
"""

import torch
from torch import Tensor

from engine.model.experts.loop import feed_forward
from engine.model.quantised import Weight


def dense(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Run all experts, whoever has tokens; shapes depend on nothing the router says."""
    shares = weights.new_zeros(x.shape[0], gate_up.shape[0])
    shares.scatter_add_(1, ids, weights)  # [T, E]
    out = torch.zeros_like(x)
    for expert in range(gate_up.shape[0]):
        share = shares[:, expert : expert + 1]  # [T, 1]
        y = feed_forward(x * (share > 0), gate_up[expert], down[expert]) * share
        out += y.to(x.dtype)
    return out
