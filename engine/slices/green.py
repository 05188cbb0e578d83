"""Shares of a GPU: green contexts with disjoint SMs, all in this process.

    with green_slices(open_driver(), shares) as slices:
        with torch.cuda.stream(slices[0].stream): ...

Each share has whole groups of SMs, as small as the GPU allows, of one split of the device. Memory
is the process's, so that models share one allocator. A CUDA graph keeps the context that it was
captured in: engines on shares run without graphs.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch

from engine.slices.driver import Driver
from engine.slices.part import Part
from engine.slices.shares import portions


@dataclass(frozen=True, slots=True, kw_only=True)
class GreenSlice:
    """SMs of a GPU, and the driver's stream whose work runs on them."""

    part: Part
    handle: int
    ordinal: int = 0

    @property
    def stream(self) -> torch.cuda.ExternalStream:
        """The stream as torch knows it."""
        return torch.cuda.ExternalStream(  # type: ignore[no-untyped-call]
            self.handle, device=self.ordinal
        )


@contextmanager
def green_slices(
    driver: Driver, shares: Sequence[Fraction], ordinal: int = 0
) -> Iterator[list[GreenSlice]]:
    """Divide a GPU for a while; on leaving, or failing half-way, all that was made is destroyed.

    Raises EngineError where the driver, or the GPU's number of SMs, does not allow for it.
    """
    device = driver.device(ordinal)
    whole = driver.sms(device)
    groups = driver.split(whole)
    size = groups[0].sms if groups else 0
    counts = portions(len(groups), shares, f"groups of {size} SMs")
    with ExitStack() as made:
        slices, taken = [], 0
        for count in counts:
            context = driver.context(groups[taken : taken + count], device)
            made.callback(driver.end_context, context)
            stream = driver.stream(context)
            made.callback(driver.end_stream, stream)
            part = Part(units=driver.sms_of(context), of=whole.sms, what="SMs")
            slices.append(GreenSlice(part=part, handle=stream, ordinal=ordinal))
            taken += count
        yield slices
