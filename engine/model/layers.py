"""Normalisation and rotary position embedding, in float32 inside as Hugging Face Mixtral has them.

RMSNorm: Zhang and Sennrich 2019 (arXiv:1910.07467). RoPE: Su et al. 2021 (arXiv:2104.09864), with
the two halves of a head rotated against each other.
"""

import torch
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of `x` (T, H) to unit root mean square, then by `weight` (H,)."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [T, 1]
    return weight * (wide * scale).to(x.dtype)


def inverse_frequencies(head_dim: int, theta: float, device: torch.device) -> Tensor:
    """Return the rotation per position [rad] of each pair of a head's values, (D / 2,)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    return (1.0 / theta**exponents).to(device)


def rope_tables(
    positions: Tensor, frequencies: Tensor, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Return cosine and sine of every rotation, each (T, 1, D)."""
    angles = torch.outer(positions.float(), frequencies)  # [T, D / 2]
    angles = torch.cat((angles, angles), dim=-1).unsqueeze(1)  # [T, 1, D]
    return angles.cos().to(dtype), angles.sin().to(dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate heads `x` (T, heads, D) to their positions."""
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin
