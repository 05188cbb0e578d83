"""Attention of each segment's new tokens over its sequence's pages of the KV cache."""

import torch
from torch import Tensor
from torch.nn.attention.bias import causal_lower_right
from torch.nn.functional import scaled_dot_product_attention

from engine.model.step import PagedKvCache, Segment


def keep_off_cudnn() -> None:
    """Have torch attend by its flash kernels, in this process.

    On sm90 torch takes a cuDNN beyond 9.15 first (its sdp_utils), which compiles a plan for every
    new length.
    """
    torch.backends.cuda.enable_cudnn_sdp(False)


def attend_segments(
    layer: int, queries: Tensor, cache: PagedKvCache, segments: list[Segment], out: Tensor
) -> None:
    """Write the attention of `segments` into their rows of `out`; it and queries are (T, N, D)."""
    for segment in segments:
        keys, values = cache.read(layer, segment.blocks, segment.cached)
        out[segment.rows] = attend(queries[segment.rows], keys, values)


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """Attend with the last n of m tokens: queries (n, N, D), keys and values (m, G, D)."""
    n, m = queries.shape[0], keys.shape[0]
    heads = scaled_dot_product_attention(
        queries.transpose(0, 1).unsqueeze(0),  # [1, N, n, D]
        keys.transpose(0, 1).unsqueeze(0),  # [1, G, m, D]
        values.transpose(0, 1).unsqueeze(0),  # [1, G, m, D]
        attn_mask=_mask(queries, m) if 1 < n < m else None,
        is_causal=1 < n == m,
        enable_gqa=True,
    )
    return heads.squeeze(0).transpose(0, 1)  # [n, N, D]


def _mask(queries: Tensor, m: int) -> Tensor:
    """Let each of n queries see the keys up to its own among m, as (n, m)."""
    n = queries.shape[0]
    if queries.is_cuda and queries.dtype != torch.float32:
        # Flash attention knows this mask by name; a mask in memory would exclude that kernel.
        return causal_lower_right(n, m)
    return torch.ones(n, m, dtype=torch.bool, device=queries.device).tril(m - n)
