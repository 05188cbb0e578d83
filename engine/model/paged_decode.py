"""Attention of decodes, one new token a sequence, over a table of pages of the KV cache.

Sequences differ in length; a table of B sequences is as wide as the longest needs, and what lies
beyond a sequence's length is filling:

    lengths  5 3          blocks of 4 tokens
    blocks   3 7          tokens 0 to 3 in block 3, token 4 in block 7
             2 0          tokens 0 to 2 in block 2; the 0 is filling

On CUDA a Triton kernel follows each row of the table to its sequence's end. Elsewhere the tokens
are gathered, in groups of sequences of about one length, so that little filling is copied.

Shapes beside those of the package: B decodes, P columns of the table, m = P * block_size.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass
from itertools import chain

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from engine.model.experts.fused import interpreted
from engine.model.experts.styles import has_triton
from engine.model.step import PagedKvCache, StepInput


@dataclass(frozen=True, slots=True, kw_only=True)
class Pages:
    """Where the keys and values of some decodes lie.

    `rows` are theirs in the flat token dimension, `blocks` (B, P) the table, and `lengths` (B,) the
    tokens of each sequence, the new one included. `plan` says what to gather, where it is known.
    """

    rows: slice | Tensor
    blocks: Tensor
    lengths: Tensor
    plan: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PagedStep(StepInput):
    """A mixed batch whose decodes lie in tables; `segments` are those of several tokens."""

    pages: tuple[Pages, ...]


def attend_pages(
    layer: int, queries: Tensor, cache: PagedKvCache, pages: Iterable[Pages], out: Tensor
) -> None:
    """Write the attention of all decodes into their rows of `out`; it and queries are (T, N, D)."""
    keys, values = cache.keys[layer], cache.values[layer]
    for part in pages:
        own = queries[part.rows]
        if part.plan:
            out[part.rows] = gathered_decode(own, keys, values, *part.plan)
        else:
            out[part.rows] = paged_decode(own, keys, values, part.blocks, part.lengths)


def paged_decode(
    queries: Tensor, keys: Tensor, values: Tensor, blocks: Tensor, lengths: Tensor
) -> Tensor:
    """Attend with one query a sequence (B, N, D) over pages (num_blocks, block_size, G, D)."""
    if follows_pages(queries.device):
        from engine.model.paged_kernels import paged_attention

        return paged_attention(queries, keys, values, blocks, lengths)
    plan = gathering(blocks, lengths, keys.shape[1], blocks.shape[1] * keys.shape[1])
    return gathered_decode(queries, keys, values, *plan)


def gathering(
    blocks: Tensor, lengths: Tensor, block_size: int, longest: int
) -> tuple[Tensor, Tensor]:
    """Return the slots of up to `longest` tokens a sequence (B, m), and which of them count (B, m).

    Beyond a sequence's end its last token stands again, as what was never written is never read.
    """
    token = torch.arange(longest, device=lengths.device)
    place = torch.minimum(token, lengths[:, None] - 1)  # [B, m]
    slots = blocks.gather(1, place // block_size) * block_size + place % block_size
    return slots, token < lengths[:, None]


def gathered_decode(
    queries: Tensor, keys: Tensor, values: Tensor, slots: Tensor, counting: Tensor
) -> Tensor:
    """Attend with one query a sequence (B, N, D) over copies of the tokens at `slots` (B, m).

    The N / G heads that share keys go in as so many queries of one head.
    """
    count, heads, size = queries.shape
    copies = (pages.flatten(0, 1).index_select(0, slots.flatten()) for pages in (keys, values))
    keys, values = (
        tokens.view(*slots.shape, -1, size).transpose(1, 2)  # [B, G, m, D]
        for tokens in copies
    )
    grouped = queries.view(count, keys.shape[1], -1, size)  # [B, G, N / G, D]
    out = scaled_dot_product_attention(grouped, keys, values, attn_mask=counting[:, None, None])
    return out.reshape(count, heads, size)


def follows_pages(device: torch.device) -> bool:
    """Whether the kernel runs there that reads no further than each sequence's end."""
    return device.type == "cuda" and has_triton() and not interpreted()


def pages_of(
    blocks: Row[Row[int]], lengths: Row[int], block_size: int, device: torch.device
) -> tuple[Pages, ...]:
    """Lay out the tables of decodes in the first rows of a batch.

    Where tokens are gathered, sequences are grouped by the power of two above their blocks: less
    than half of what is copied is filling.
    """
    if not blocks:
        return ()
    if follows_pages(device):
        own, tokens = torch.from_numpy(table(blocks)), torch.tensor(lengths)
        rows = slice(0, len(blocks))
        return (Pages(rows=rows, blocks=own.to(device), lengths=tokens.to(device)),)
    groups: dict[int, list[int]] = {}
    for row, held in enumerate(blocks):
        groups.setdefault(len(held).bit_length(), []).append(row)
    return tuple(
        _gathered_group(rows, blocks, lengths, block_size, device) for rows in groups.values()
    )


def _gathered_group(
    rows: list[int],
    blocks: Row[Row[int]],
    lengths: Row[int],
    block_size: int,
    device: torch.device,
) -> Pages:
    """Lay out the decodes of some rows, and what to gather for them."""
    own = torch.from_numpy(table([blocks[row] for row in rows])).to(device)
    tokens = [lengths[row] for row in rows]
    held = torch.tensor(tokens, device=device)
    everybody = len(rows) == len(blocks)
    return Pages(
        rows=slice(0, len(rows)) if everybody else torch.tensor(rows, device=device),
        blocks=own,
        lengths=held,
        plan=gathering(own, held, block_size, max(tokens)),
    )


def table(blocks: Row[Row[int]]) -> "np.ndarray[tuple[int, int], np.dtype[np.int32]]":
    """Return lists of block ids one below the other, filled with 0 to the longest.

    >>> table([[3, 7], [2]]).tolist()
    [[3, 7], [2, 0]]
    """
    widths = np.fromiter(map(len, blocks), dtype=np.int64, count=len(blocks))
    filled = np.zeros((len(blocks), int(widths.max())), dtype=np.int32)
    flat = np.fromiter(chain.from_iterable(blocks), dtype=np.int32, count=int(widths.sum()))
    filled[np.arange(filled.shape[1]) < widths[:, None]] = flat
    return filled
