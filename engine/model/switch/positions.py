"""Relative positions: a learned bias for each head and bucket of distances (T5, arXiv:1910.10683).

Half of the buckets hold one distance each; the others grow with the logarithm of the distance, up
to `max_distance`. An encoder keeps one set for tokens behind and one for those ahead.
"""

from math import log

import torch
from torch import Tensor


def position_bias(
    table: Tensor, queries: Tensor, keys: Tensor, *, max_distance: int, both_ways: bool
) -> Tensor:
    """Return what is added to scores, (N, n, m), of tokens at positions `queries` and `keys`.

    `table` is (B, N). Unless `both_ways`, keys after their query are shut out with minus infinity.
    """
    relative = keys[None, :] - queries[:, None]  # [n, m]
    buckets = _bucket(relative, table.shape[0], max_distance, both_ways)
    bias = table[buckets].movedim(-1, 0).contiguous()  # as CUDA's attention kernels want it
    if both_ways or len(queries) == 1:
        return bias
    return bias.masked_fill(relative > 0, -torch.inf)


def _bucket(relative: Tensor, buckets: int, max_distance: int, both_ways: bool) -> Tensor:
    """Return the bucket of each distance, key minus query."""
    if not both_ways:
        return _one_way(-relative.clamp(max=0), buckets, max_distance)
    ahead = (relative > 0) * (buckets // 2)
    return ahead + _one_way(relative.abs(), buckets // 2, max_distance)


def _one_way(distance: Tensor, buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each distance of zero or more."""
    exact = buckets // 2
    # In float32 and in this order, or distances at the edge of a bucket fall on its other side.
    share = torch.log(distance.clamp(min=exact).float() / exact) / log(max_distance / exact)
    beyond = exact + (share * (buckets - exact)).long()
    return torch.where(distance < exact, distance, beyond.clamp(max=buckets - 1))
