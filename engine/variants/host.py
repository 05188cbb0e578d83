"""Host memory that a device copies from: pinned for a GPU, in one piece, of exactly its size.

torch's own pinned allocator rounds up to a power of two, which for the experts of a large model is
up to as much again. So memory is allocated plainly, then registered with the driver.
"""

import weakref

import torch
from torch import Tensor

from engine.model.allocation import allocating
from moesim.errors import EngineError
from moesim.units import format_bytes


class HostMemory:
    """`size` bytes; `pinned` is whether the device copies from them without the host's help.

    Raises EngineError where there are not so many, or the host refuses to pin them.
    """

    def __init__(
        self, what: str, size: int, device: torch.device, *, pageable: bool = False
    ) -> None:
        remedy = "keep more on the device, serve fewer variants, or take a larger host"
        with allocating(what, size, torch.device("cpu"), remedy):
            self.bytes = torch.empty(size, dtype=torch.uint8)
        self.pinned = device.type == "cuda" and not pageable and size > 0
        if self.pinned:
            self._pin(what)

    def _pin(self, what: str) -> None:
        error = register(self.bytes)
        if error:
            raise EngineError(
                f"{what}: the host refuses to pin {format_bytes(self.bytes.nbytes)} (CUDA error "
                f"{error}); raise the limit of locked memory (ulimit -l), or use pageable memory"
            )
        # The finaliser holds the tensor, so that the memory is not freed before it is unpinned.
        weakref.finalize(self, unregister, self.bytes)


def register(memory: Tensor) -> int:
    """Pin a tensor's memory; return CUDA's error, 0 for none."""
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostRegister(memory.data_ptr(), memory.nbytes, 0))


def unregister(memory: Tensor) -> int:
    """Undo `register` once no copy is under way; return CUDA's error, 0 for none."""
    torch.cuda.synchronize()
    runtime = torch.cuda.cudart()  # type: ignore[no-untyped-call]
    return int(runtime.cudaHostUnregister(memory.data_ptr()))
