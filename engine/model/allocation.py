"""Large allocations: what does not fit is said in one line."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from moesim.errors import EngineError
from moesim.units import format_bytes


@contextmanager
def allocating(what: str, size: int, device: torch.device, remedy: str) -> Iterator[None]:
    """Turn torch's out-of-memory errors inside the block into an EngineError naming `size` [B]."""
    try:
        yield
    except RuntimeError as wrong:
        if not _is_out_of_memory(wrong):
            raise
        raise EngineError(
            f"{what}: {format_bytes(size)} do not fit on {device}{_free(device)}; {remedy}"
        ) from None


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator has no exception class of its own, only these texts.
    texts = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def _free(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    free, total = torch.cuda.mem_get_info(device)
    return f" ({format_bytes(free)} free of {format_bytes(total)})"
