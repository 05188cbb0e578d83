# mypy: ignore-errors
# ruff: noqa: N803
# Triton's language has no types that mypy could read; its compile-time constants are in capitals.
"""Triton kernels of the fused style: a plan of tiles, and the two products over it.

A tile is up to BLOCK_M visits of one expert. The plan is made on the device, by one program for
each expert, so that nothing waits for the host and a CUDA graph can hold it:

    order (V,)          visits sorted by expert, those of one expert by number
    tile_expert (B,)    expert of each tile, -1 for the tiles that this batch does not need
    tile_start (B,)     first of the tile's places in `order`
    tile_end (B,)       where its expert's places end

Triton's `dot` wants at least 16 rows, so one visit costs a tile of 16; its time goes into reading
the weights anyway.
"""

import triton
import triton.language as tl


@triton.jit
def plan_tiles(
    ids,
    order,
    tile_expert,
    tile_start,
    tile_end,
    visits,
    tiles,
    LANES: tl.constexpr,
    CHUNK: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Write the part of the plan that belongs to expert `program_id(0)`.

    Every program counts all experts' visits, as its own part begins where the others' end. LANES
    is the number of experts, rounded up to a power of two.
    """
    expert = tl.program_id(0)
    lanes = tl.arange(0, LANES)
    counts = tl.zeros((LANES,), tl.int32)
    for first in range(0, visits, CHUNK):
        visit = first + tl.arange(0, CHUNK)
        chosen = tl.load(ids + visit, mask=visit < visits, other=-1).to(tl.int32)
        counts += tl.sum((chosen[:, None] == lanes[None, :]).to(tl.int32), axis=0)
    start = tl.sum(tl.where(lanes < expert, counts, 0))
    end = start + tl.sum(tl.where(lanes == expert, counts, 0))
    needed = (counts + BLOCK_M - 1) // BLOCK_M
    first_tile = tl.sum(tl.where(lanes < expert, needed, 0))
    own_tiles = tl.sum(tl.where(lanes == expert, needed, 0))

    place = start
    for first in range(0, visits, CHUNK):
        visit = first + tl.arange(0, CHUNK)
        chosen = tl.load(ids + visit, mask=visit < visits, other=-1).to(tl.int32)
        hit = (chosen == expert).to(tl.int32)
        tl.store(order + place + tl.cumsum(hit, axis=0) - hit, visit, mask=hit > 0)
        place += tl.sum(hit)

    for first in range(0, own_tiles, CHUNK):
        tile = first + tl.arange(0, CHUNK)
        own = tile < own_tiles
        tl.store(tile_expert + first_tile + tile, expert, mask=own)
        tl.store(tile_start + first_tile + tile, start + tile * BLOCK_M, mask=own)
        tl.store(tile_end + first_tile + tile, end, mask=own)
    if expert == tl.num_programs(0) - 1:
        for first in range(first_tile + own_tiles, tiles, CHUNK):
            tile = first + tl.arange(0, CHUNK)
            tl.store(tile_expert + tile, -1, mask=tile < tiles)


@triton.jit
def tile_of_program(tiles, columns, GROUP: tl.constexpr):
    """Return the tile and the column block of this program.

    Programs that run side by side share columns, hence weights, over GROUP tiles.
    """
    program = tl.program_id(0)
    span = GROUP * columns
    first = program // span * GROUP
    height = min(tiles - first, GROUP)
    return first + program % span % height, program % span // height


@triton.jit
def gate_up_product(
    x,
    gate_up,
    inner,
    order,
    tile_expert,
    tile_start,
    tile_end,
    tiles,
    depth,
    width,
    TOP_K: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write silu(gate @ x) * (up @ x) of each place, (V, width), from x (T, depth)."""
    tile, column = tile_of_program(tiles, tl.cdiv(width, BLOCK_N), GROUP)
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        place = tl.load(tile_start + tile) + tl.arange(0, BLOCK_M)
        own = place < tl.load(tile_end + tile)
        token = tl.load(order + place, mask=own, other=0) // TOP_K
        columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = columns < width
        rows = x + token.to(tl.int64)[:, None] * depth
        above = expert.to(tl.int64) * 2
        gates = gate_up + (above * width + columns)[None, :] * depth
        ups = gate_up + ((above + 1) * width + columns)[None, :] * depth
        gate = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, depth, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            deep = k < depth
            a = tl.load(rows + k[None, :], mask=own[:, None] & deep[None, :], other=0.0)
            wanted = deep[:, None] & inside[None, :]
            b = tl.load(gates + k[:, None], mask=wanted, other=0.0)
            gate = tl.dot(a, b, gate, input_precision="ieee")
            b = tl.load(ups + k[:, None], mask=wanted, other=0.0)
            up = tl.dot(a, b, up, input_precision="ieee")
        result = gate / (1.0 + tl.exp(-gate)) * up
        there = inner + place.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(there, result.to(inner.dtype.element_ty), mask=own[:, None] & inside[None, :])


@triton.jit
def down_product(
    inner,
    down,
    weights,
    out,
    order,
    tile_expert,
    tile_start,
    tile_end,
    tiles,
    depth,
    width,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP: tl.constexpr,
):
    """Write each visit's weighted output, (V, width), from inner (V, depth)."""
    tile, column = tile_of_program(tiles, tl.cdiv(width, BLOCK_N), GROUP)
    expert = tl.load(tile_expert + tile)
    if expert >= 0:
        place = tl.load(tile_start + tile) + tl.arange(0, BLOCK_M)
        own = place < tl.load(tile_end + tile)
        visit = tl.load(order + place, mask=own, other=0)
        columns = column * BLOCK_N + tl.arange(0, BLOCK_N)
        inside = columns < width
        rows = inner + place.to(tl.int64)[:, None] * depth
        downs = down + (expert.to(tl.int64) * width + columns)[None, :] * depth
        product = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
        for first in range(0, depth, BLOCK_K):
            k = first + tl.arange(0, BLOCK_K)
            deep = k < depth
            a = tl.load(rows + k[None, :], mask=own[:, None] & deep[None, :], other=0.0)
            b = tl.load(downs + k[:, None], mask=deep[:, None] & inside[None, :], other=0.0)
            product = tl.dot(a, b, product, input_precision="ieee")
        product *= tl.load(weights + visit, mask=own, other=0.0)[:, None]
        there = out + visit.to(tl.int64)[:, None] * width + columns[None, :]
        tl.store(there, product.to(out.dtype.element_ty), mask=own[:, None] & inside[None, :])
