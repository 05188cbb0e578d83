"""Host memory for the KV blocks of preempted sequences.

A copy is queued like any other work of the device, so that a block may be given away at once: what
is written to it comes later. Shapes: n blocks, L layers, B tokens a block, G heads of D values.
"""

import torch

from engine.model.allocation import allocating
from engine.model.step import PagedKvCache


class SwapSpace:
    """Room for `num_blocks` blocks beside a cache; on CUDA in pinned memory."""

    def __init__(self, cache: PagedKvCache, num_blocks: int) -> None:
        shape = (num_blocks, *cache.block_shape)
        size = torch.Size(shape).numel() * cache.keys.dtype.itemsize
        what, host = f"swap space: {num_blocks} blocks", torch.device("cpu")
        pinned = cache.keys.is_cuda
        with allocating(what, size, host, "lower swap_blocks"):
            self._room = torch.empty(shape, dtype=cache.keys.dtype, pin_memory=pinned)
        self._cache = cache
        self._free = list(range(num_blocks - 1, -1, -1))
        self._places: dict[int, list[int]] = {}

    @property
    def free_blocks(self) -> int:
        """Blocks of the room that hold nothing."""
        return len(self._free)

    def store(self, request_id: int, blocks: list[int]) -> None:
        """Copy a sequence's blocks to host memory."""
        places = [self._free.pop() for _ in blocks]
        content = self._cache.copy_out(self._ids(blocks))
        for place, block in zip(places, content, strict=True):
            self._room[place].copy_(block, non_blocking=True)
        self._places[request_id] = places

    def stored(self, request_id: int) -> int:
        """Return how many blocks of a sequence are here."""
        return len(self._places[request_id])

    def restore(self, request_id: int, blocks: list[int]) -> None:
        """Copy a sequence's blocks back, to where it lies from now on."""
        places = self._places.pop(request_id)
        device, dtype = self._cache.keys.device, self._cache.keys.dtype
        content = torch.empty((len(places), *self._cache.block_shape), device=device, dtype=dtype)
        for place, block in zip(places, content, strict=True):
            block.copy_(self._room[place], non_blocking=True)
        self._cache.copy_in(self._ids(blocks), content)
        self._free.extend(reversed(places))

    def discard(self, request_id: int) -> None:
        """Forget a sequence's blocks, if it has any here."""
        self._free.extend(reversed(self._places.pop(request_id, [])))

    def _ids(self, blocks: list[int]) -> torch.Tensor:
        return torch.tensor(blocks, dtype=torch.long, device=self._cache.keys.device)
