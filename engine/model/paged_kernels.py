# mypy: ignore-errors
# ruff: noqa: N803
# Triton's language has no types that mypy could read; its compile-time constants are in capitals.
"""Triton kernels of decode attention over pages, in two steps (flash decoding).

Dao et al. 2023, "Flash-Decoding for long-context inference": the tokens of each sequence are split
among SPLITS programs, which keep a running maximum and sum of their softmax, and a second kernel
puts the parts together. So even one long sequence keeps the whole GPU busy, and the launch depends
on nothing but B: a CUDA graph holds it for any lengths.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

PROGRAMS = 256
"""Programs of the first kernel to aim at: about two for each of an H100's 132 SMs."""

MOST_SPLITS = 16
TOKENS = 64
"""Tokens that a program looks at in one go."""


def paged_attention(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, lengths: Tensor
) -> Tensor:
    """Attend with one query a sequence (B, N, D) over pages (num_blocks, block_size, G, D)."""
    count, heads, size = queries.shape
    block_size, kv_heads = keys.shape[1:3]
    splits = splits_of(count * kv_heads)
    shape = (count, heads, splits)
    sums = torch.empty((*shape, size), dtype=torch.float32, device=queries.device)
    scales = torch.empty((2, *shape), dtype=torch.float32, device=queries.device)
    out = torch.empty_like(queries, memory_format=torch.contiguous_format)
    shared = {"SIZE": size, "LANES": max(16, triton.next_power_of_2(size)), "SPLITS": splits}
    attend_part[(count, kv_heads, splits)](
        queries,
        queries.stride(0),
        queries.stride(1),
        keys,
        values,
        blocks,
        blocks.stride(0),
        lengths,
        sums,
        scales,
        scales.stride(0),
        size**-0.5,
        KV_HEADS=kv_heads,
        SHARING=heads // kv_heads,
        ROWS=max(16, triton.next_power_of_2(heads // kv_heads)),
        BLOCK_SIZE=block_size,
        TOKENS=TOKENS,
        **shared,
    )
    join_parts[(count * heads,)](sums, scales, scales.stride(0), out, **shared)
    return out


def splits_of(pairs):
    """Return among how many programs to split each pair of a sequence and a key head.

    >>> splits_of(1), splits_of(64), splits_of(2048)
    (16, 4, 1)
    """
    return min(MOST_SPLITS, max(1, triton.next_power_of_2(PROGRAMS // pairs)))


@triton.jit
def attend_part(
    queries,
    query_stride,
    head_stride,
    keys,
    values,
    blocks,
    table_stride,
    lengths,
    sums,
    scales,
    scales_stride,
    scale,
    KV_HEADS: tl.constexpr,
    SHARING: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    TOKENS: tl.constexpr,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Attend over one part of a sequence with the SHARING heads of one key head.

    Writes sums (B, N, SPLITS, D) of exp(score - maximum) * value, and scales (2, B, N, SPLITS):
    the maxima and the sums of exp(score - maximum). A part may be empty.
    """
    sequence, head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(lengths + sequence).to(tl.int32)
    part = tl.cdiv(tl.cdiv(length, SPLITS), TOKENS) * TOKENS
    begin = split * part
    end = tl.minimum(begin + part, length)

    lane = tl.arange(0, LANES)
    row = tl.arange(0, ROWS)
    own = row < SHARING
    heads = head * SHARING + row
    at = queries + sequence * query_stride + heads[:, None] * head_stride + lane[None, :]
    wanted = own[:, None] & (lane < SIZE)[None, :]
    query = tl.load(at, mask=wanted, other=0.0)

    top = tl.full((ROWS,), float("-inf"), tl.float32)
    total = tl.zeros((ROWS,), tl.float32)
    weighted = tl.zeros((ROWS, LANES), tl.float32)
    for first in range(begin, end, TOKENS):
        token = first + tl.arange(0, TOKENS)
        seen = token < end
        page = tl.load(blocks + sequence * table_stride + token // BLOCK_SIZE, mask=seen, other=0)
        slot = page.to(tl.int64) * BLOCK_SIZE + token % BLOCK_SIZE
        start = (slot * KV_HEADS + head) * SIZE
        inside = seen[:, None] & (lane < SIZE)[None, :]
        key = tl.load(keys + start[:, None] + lane[None, :], mask=inside, other=0.0)
        score = tl.dot(query, tl.trans(key), input_precision="ieee") * scale
        score = tl.where(seen[None, :], score, float("-inf"))
        higher = tl.maximum(top, tl.max(score, axis=1))
        shrink = tl.exp(top - higher)
        weight = tl.exp(score - higher[:, None])
        value = tl.load(values + start[:, None] + lane[None, :], mask=inside, other=0.0)
        product = tl.dot(weight.to(value.dtype), value, input_precision="ieee")
        weighted = weighted * shrink[:, None] + product
        total = total * shrink + tl.sum(weight, axis=1)
        top = higher

    place = (sequence * KV_HEADS * SHARING + heads) * SPLITS + split
    tl.store(sums + place[:, None] * SIZE + lane[None, :], weighted, mask=wanted)
    tl.store(scales + place, top, mask=own)
    tl.store(scales + scales_stride + place, total, mask=own)


@triton.jit
def join_parts(
    sums,
    scales,
    scales_stride,
    out,
    SIZE: tl.constexpr,
    LANES: tl.constexpr,
    SPLITS: tl.constexpr,
):
    """Put the parts of one head of one sequence together: out (B, N, D)."""
    place = tl.program_id(0)
    lane = tl.arange(0, LANES)
    split = place * SPLITS + tl.arange(0, SPLITS)
    tops = tl.load(scales + split)
    factors = tl.exp(tops - tl.max(tops, axis=0))
    total = tl.sum(tl.load(scales + scales_stride + split) * factors, axis=0)
    inside = (lane < SIZE)[None, :]
    parts = tl.load(sums + split[:, None] * SIZE + lane[None, :], mask=inside, other=0.0)
    joined = tl.sum(parts * factors[:, None], axis=0) / total
    tl.store(out + place * SIZE + lane, joined.to(out.dtype.element_ty), mask=lane < SIZE)
