"""All experts in three Triton kernels: plan, gate_up with its activation, down with its weight.

Nothing waits for the host and all shapes follow from the number of tokens, so the style can be
captured in a CUDA graph on any GPU that Triton knows. On the CPU it runs under TRITON_INTERPRET=1.
"""

import os
from functools import cache
from typing import Any

import torch
from torch import Tensor

SMALLEST_TILE, LARGEST_TILE = 16, 128
"""Rows of a tile: the fewest that Triton's dot takes, the most whose sums fit into registers."""

CHUNK = 128
"""Visits that a program of the plan looks at in one go."""


def fused(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Run the experts that have tokens, tile by tile."""
    experts, hidden, inner_size = down.shape
    visits = ids.numel()
    rows = tile_rows(visits, experts)
    tiles = most_tiles(visits, experts, rows)
    plan = plan_of(ids, experts, rows, tiles)
    inner = x.new_empty(visits, inner_size)
    out = x.new_empty(visits, hidden)
    _launch(
        "gate_up_product",
        (x.contiguous(), gate_up, inner, *plan, tiles, hidden, inner_size),
        tiles,
        inner_size,
        {"TOP_K": ids.shape[1], "BLOCK_M": rows},
    )
    _launch(
        "down_product",
        (inner, down, weights.contiguous(), out, *plan, tiles, inner_size, hidden),
        tiles,
        hidden,
        {"BLOCK_M": rows},
    )
    return out.view(*ids.shape, hidden).sum(dim=1)


def tile_rows(visits: int, experts: int) -> int:
    """Return the rows of a tile: a power of two that holds an expert's even share of the visits.

    >>> [tile_rows(visits, 8) for visits in (2, 128, 130, 4096)]
    [16, 16, 32, 128]
    """
    share = -(-visits // experts)
    return min(LARGEST_TILE, max(SMALLEST_TILE, 1 << (share - 1).bit_length()))


def most_tiles(visits: int, experts: int, rows: int) -> int:
    """Return the tiles that any routing can do with.

    An expert of c > 0 visits needs (c - 1) // rows + 1 tiles, which adds up to most when as many
    experts as possible have visits.

    >>> most_tiles(visits=2, experts=8, rows=16), most_tiles(visits=40, experts=2, rows=16)
    (2, 4)
    """
    hit = min(visits, experts)
    return (visits - hit) // rows + hit


def plan_of(ids: Tensor, experts: int, rows: int, tiles: int) -> tuple[Tensor, ...]:
    """Return order (V,), and expert, start and end (B,) of each of `tiles` tiles."""
    from engine.model.experts import kernels

    visits = ids.numel()
    order = torch.empty(visits, dtype=torch.int32, device=ids.device)
    expert, start, end = torch.empty(3, tiles, dtype=torch.int32, device=ids.device).unbind()
    kernels.plan_tiles[(experts,)](
        ids.contiguous(),
        order,
        expert,
        start,
        end,
        visits,
        tiles,
        LANES=max(2, 1 << (experts - 1).bit_length()),
        CHUNK=CHUNK,
        BLOCK_M=rows,
    )
    return order, expert, start, end


def interpreted() -> bool:
    """Whether Triton runs its kernels in Python, on tensors of the CPU."""
    return os.environ.get("TRITON_INTERPRET") == "1"


def _launch(
    name: str, arguments: tuple[Any, ...], tiles: int, width: int, meta: dict[str, int]
) -> None:
    """Run a product over all tiles and columns, with the blocks that were fastest before."""

    def grid(chosen: dict[str, int]) -> tuple[int]:
        return (tiles * -(-width // chosen["BLOCK_N"]),)

    if interpreted():
        from engine.model.experts import kernels

        meta = meta | {"BLOCK_N": 32, "BLOCK_K": 32, "GROUP": 2}
        getattr(kernels, name)[grid(meta)](*arguments, **meta)
    else:
        _tuned(name, meta["BLOCK_M"] <= 32)[grid](*arguments, **meta)


@cache
def _tuned(name: str, few_rows: bool) -> Any:
    """Return a product that tries a few block shapes at its first call for a layer's shape.

    With few rows what counts is how many bytes of weights are under way at once; with many, how
    often a loaded value is used. The last shape is small enough for float32 in shared memory.
    """
    import triton  # type: ignore[import-not-found, import-untyped, unused-ignore]

    from engine.model.experts import kernels

    shapes = [(64, 128, 4, 4), (128, 64, 4, 4)] if few_rows else [(128, 64, 8, 3), (64, 64, 4, 4)]
    configs = [
        triton.Config(
            {"BLOCK_N": columns, "BLOCK_K": depth, "GROUP": 16}, num_warps=warps, num_stages=stages
        )
        for columns, depth, warps, stages in [*shapes, (64, 32, 4, 2)]
    ]
    return triton.autotune(configs, key=["depth", "width", "BLOCK_M"])(getattr(kernels, name))
