"""One expert after the other, each on its own tokens: the reference for the other styles."""

import torch
from torch import Tensor
from torch.nn.functional import silu

from engine.model.projection import project
from engine.model.quantised import Weight


def loop(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Run the experts that have tokens; how many each has must come to the host first.

    The visits are sorted by expert, so that each expert's tokens lie side by side.
    """
    order = ids.flatten().argsort()  # [V]
    counts = ids.flatten().bincount(minlength=gate_up.shape[0]).tolist()
    tokens = order // ids.shape[1]  # [V]
    scales = weights.flatten()[order].unsqueeze(-1)  # [V, 1]
    out = torch.zeros_like(x)
    end = 0
    for expert, count in enumerate(counts):
        if not count:
            continue
        start, end = end, end + count
        rows = tokens[start:end]
        y = feed_forward(x[rows], gate_up[expert], down[expert]) * scales[start:end]
        out.index_add_(0, rows, y.to(x.dtype))
    return out


def feed_forward(x: Tensor, gate_up: Weight, down: Weight) -> Tensor:
    """Return one expert's output (n, H) for its tokens (n, H)."""
    gate, up = project(x, gate_up).chunk(2, dim=-1)  # [n, I] each
    return project(silu(gate) * up, down)
