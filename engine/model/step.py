"""What one forward pass works on: the mixed batch of an iteration, and the paged KV cache.

All new tokens of the batch lie in one flat dimension of T rows. With blocks of 4 tokens, a decode
whose sixth token goes into block 7, beside the first 3 tokens of a prompt in block 2:

    positions  5 | 0 1 2
    slots     29 | 8 9 10        7 * 4 + 1 and 2 * 4 + (0, 1, 2)
    segments  start 0, length 1, context 5, blocks [3, 7]
              start 1, length 3, context 0, blocks [2]
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.allocation import allocating
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """The new tokens of one sequence: `length` rows from `start` on.

    `context` tokens of the sequence are cached already; `blocks` (n_blocks,) are the ids of the
    blocks that hold context and new tokens, in order.
    """

    start: int
    length: int
    context: int
    blocks: Tensor

    @property
    def rows(self) -> slice:
        """Rows of this segment in the flat token dimension."""
        return slice(self.start, self.start + self.length)

    @property
    def cached(self) -> int:
        """Tokens in the cache once the new ones are written."""
        return self.context + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class StepInput:
    """The mixed batch of one iteration: decodes (segments of one token) first, then chunks.

    `token_ids`, `positions` and `slots` are (T,); a slot is `block_id * block_size + offset`, where
    the token's keys and values go. `emit_rows` (S,) are the rows whose logits are wanted.
    """

    token_ids: Tensor
    positions: Tensor
    slots: Tensor
    segments: list[Segment]
    emit_rows: Tensor

    @property
    def decodes(self) -> list[Segment]:
        """Segments of one new token."""
        return [segment for segment in self.segments if segment.length == 1]

    @property
    def chunks(self) -> list[Segment]:
        """Segments of several new tokens."""
        return [segment for segment in self.segments if segment.length > 1]


class PagedKvCache:
    """Keys and values of all layers, in blocks that any sequence may own.

    `keys` and `values` are (L, num_blocks, block_size, G, D).
    """

    def __init__(
        self,
        spec: ModelSpec,
        num_blocks: int,
        block_size: int,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
    ) -> None:
        for name, value in (("num_blocks", num_blocks), ("block_size", block_size)):
            if value < 1:
                raise EngineError(f"KV cache: {name}: {value} must be at least 1")
        dtype = dtype or getattr(torch, spec.dtype)
        shape = (
            spec.num_hidden_layers,
            num_blocks,
            block_size,
            spec.num_key_value_heads,
            spec.head_dim,
        )
        size = 2 * torch.Size(shape).numel() * dtype.itemsize
        what = f"KV cache: {num_blocks} blocks of {block_size} tokens"
        with allocating(what, size, torch.device(device), "lower num_blocks"):
            self.keys = torch.zeros(shape, device=device, dtype=dtype)
            self.values = torch.zeros(shape, device=device, dtype=dtype)

    @property
    def num_blocks(self) -> int:
        """Blocks of the cache."""
        return self.keys.shape[1]

    @property
    def block_size(self) -> int:
        """Tokens of a block."""
        return self.keys.shape[2]

    @property
    def block_shape(self) -> tuple[int, ...]:
        """Shape of one block's content: keys and values, (2, L, block_size, G, D)."""
        layers, _, *inner = self.keys.shape
        return (2, layers, *inner)

    def write(self, layer: int, slots: Tensor, keys: Tensor, values: Tensor) -> None:
        """Store keys and values (T, G, D) of new tokens at `slots` (T,)."""
        self.keys[layer].flatten(0, 1).index_copy_(0, slots, keys)
        self.values[layer].flatten(0, 1).index_copy_(0, slots, values)

    def read(self, layer: int, blocks: Tensor, length: int) -> tuple[Tensor, Tensor]:
        """Gather keys and values, each (length, G, D), of a sequence lying in `blocks`."""
        keys = self.keys[layer].index_select(0, blocks).flatten(0, 1)
        values = self.values[layer].index_select(0, blocks).flatten(0, 1)
        return keys[:length], values[:length]

    def copy_out(self, blocks: Tensor) -> Tensor:
        """Return a copy of blocks (n,), as (n, 2, L, block_size, G, D)."""
        halves = [half.index_select(1, blocks) for half in (self.keys, self.values)]
        return torch.stack(halves).movedim(2, 0).contiguous()

    def copy_in(self, blocks: Tensor, content: Tensor) -> None:
        """Fill blocks (n,) with what `copy_out` gave."""
        keys, values = content.movedim(0, 2)
        self.keys.index_copy_(1, blocks, keys)
        self.values.index_copy_(1, blocks, values)
