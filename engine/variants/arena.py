"""Arenas: many tensors in one contiguous piece of memory, so that one copy moves them all.

Each tensor begins at a multiple of 256 bytes. A set of 3 and 2 x 2 numbers of 4 bytes:

    a    0 to 12
    b    256 to 272
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

ALIGNMENT = 256
"""Bytes at whose multiples tensors begin, as cudaMalloc aligns what it gives (CUDA C++ Programming
Guide, 5.3.2, device memory accesses)."""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one tensor lies: from byte `start` on."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def end(self) -> int:
        """The first byte behind it."""
        return self.start + prod(self.shape) * self.dtype.itemsize


class Packing:
    """How tensors of known shapes lie in an arena of `size` bytes.

    >>> packing = Packing({"a": torch.zeros(3), "b": torch.zeros(2, 2)})
    >>> packing.size, [piece.start for piece in packing.pieces.values()]
    (272, [0, 256])
    """

    def __init__(self, like: Mapping[str, Tensor]) -> None:
        self.pieces: dict[str, Piece] = {}
        self.size = 0
        for name, tensor in like.items():
            start = -(-self.size // ALIGNMENT) * ALIGNMENT
            self.pieces[name] = piece = Piece(tuple(tensor.shape), tensor.dtype, start)
            self.size = piece.end

    def views(self, arena: Tensor) -> dict[str, Tensor]:
        """Return the tensors in an arena of bytes, by name."""
        return {
            name: arena[piece.start : piece.end].view(piece.dtype).view(piece.shape)
            for name, piece in self.pieces.items()
        }
