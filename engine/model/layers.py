"""Normalisation and rotary position embedding, in float32 inside as Hugging Face has them.

RMSNorm: Zhang and Sennrich 2019 (arXiv:1910.07467). RoPE: Su et al. 2021 (arXiv:2104.09864), with
the two halves of a head rotated against each other.
"""

from math import pi

import torch
from torch import Tensor

from moesim.facts.configs import RopeScaling


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """Scale each row of `x` (..., H) to unit root mean square, then by `weight` (H,) or more."""
    wide = x.float()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)  # [..., 1]
    return weight * (wide * scale).to(x.dtype)


def inverse_frequencies(
    head_dim: int, theta: float, scaling: RopeScaling | None, device: torch.device
) -> Tensor:
    """Return the rotation per position [rad] of each pair of a head's values, (D / 2,)."""
    exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
    frequencies = 1.0 / theta**exponents
    return (stretched(frequencies, scaling) if scaling else frequencies).to(device)


def stretched(frequencies: Tensor, scaling: RopeScaling) -> Tensor:
    """Slow rotations (D / 2,) down, the more the fewer turns they make in the original context.

    From `high_freq_factor` turns on a rotation stays, up to `low_freq_factor` it is `factor` times
    slower, between it is a mixture in proportion (Meta's Llama 3.1 reference code, and Hugging
    Face's `rope_type` llama3). With factors 1, 4 and 8, one of 2.5 turns keeps half of its speed
    and half an eighth of it: 0.5625.
    """
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    turns = scaling.original_max_position_embeddings * frequencies / (2 * pi)
    kept = ((turns - low) / (high - low)).clamp(0.0, 1.0)
    return (1 - kept) * frequencies / scaling.factor + kept * frequencies


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
