"""Large allocations: what does not fit is said in one line, needed and available side by side."""

import gc
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from moesim.errors import EngineError
from moesim.units import format_bytes

MEMINFO = Path("/proc/meminfo")

LARGE_BYTES = 2**30
"""From here on what nobody uses any more is freed first: a model's parts hold each other, so that
it lies about until Python looks for such circles."""


@contextmanager
def allocating(what: str, size: int, device: torch.device, remedy: str) -> Iterator[None]:
    """Raise EngineError where `size` bytes, allocated inside the block, do not fit on a device.

    A GPU refuses by itself. A host promises more than it has and ends who then uses it, so that it
    is asked before.
    """
    if size >= LARGE_BYTES:
        gc.collect()
    memory = _memory(device)
    shown = f" ({format_bytes(memory[0])} free of {format_bytes(memory[1])})" if memory else ""
    refusal = EngineError(f"{what}: {format_bytes(size)} do not fit on {device}{shown}; {remedy}")
    if memory and device.type == "cpu" and size > memory[0]:
        raise refusal
    try:
        yield
    except RuntimeError as wrong:
        if not _is_out_of_memory(wrong):
            raise
        raise refusal from None


def shortage(error: RuntimeError, device: torch.device) -> str | None:
    """Say what was asked for in vain and what there is, None for an error of another kind."""
    if not _is_out_of_memory(error):
        return None
    wanted = re.search(r"allocate ([\d.]+) (\w+)", str(error))
    memory = _memory(device)
    needs = f"{wanted[1]} {wanted[2]} more" if wanted else "more than there is"
    if wanted and wanted[2] == "bytes":
        needs = f"{format_bytes(float(wanted[1]))} more"
    if not memory:
        return f"needs {needs}"
    free, total = map(format_bytes, memory)
    return f"needs {needs}, {device} has {free} free of {total}"


def _is_out_of_memory(error: RuntimeError) -> bool:
    # The CPU allocator has no exception class of its own, only these texts.
    texts = ("can't allocate memory", "not enough memory", "Storage size calculation overflowed")
    return isinstance(error, torch.OutOfMemoryError) or any(text in str(error) for text in texts)


def _memory(device: torch.device) -> tuple[int, int] | None:
    """Return what a device has free and what it has [B]; None where that is not to be known."""
    if device.type == "cuda":
        free, total = torch.cuda.mem_get_info(device)
        return free, total
    if device.type != "cpu" or not MEMINFO.exists():
        return None
    found = dict(line.split(":") for line in MEMINFO.read_text().splitlines())
    available, total = (int(found[name].split()[0]) for name in ("MemAvailable", "MemTotal"))
    return 1024 * available, 1024 * total  # the file counts in KiB, whatever it says
