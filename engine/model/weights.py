"""Weights as the engine holds them: never trained, allocated before they are known."""

import torch
from torch import nn

from moesim.facts.models import ModelSpec


def empty_weight(spec: ModelSpec, device: torch.device, *shape: int) -> nn.Parameter:
    """Allocate one weight in the model's number format; its values are yet to come."""
    dtype = getattr(torch, spec.dtype)
    return nn.Parameter(torch.empty(shape, device=device, dtype=dtype), requires_grad=False)
