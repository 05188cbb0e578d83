"""One share of a device for the thread that asks, and what shares come to on this host."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction

import torch

from engine.slices.cores import confined, divide_cores
from engine.slices.driver import open_driver
from engine.slices.green import green_slices
from engine.slices.part import Part


@contextmanager
def on_share(share: Fraction, device: torch.device) -> Iterator[Part]:
    """Let this thread have one share of a device to itself; yield what it came to.

    On a CPU called before torch has started threads of its own.
    """
    if device.type != "cuda":
        (cores,) = divide_cores([share])
        with confined(cores):
            yield cores.part
        return
    torch.cuda.synchronize(device)
    with green_slices(open_driver(), [share], device.index or 0) as (own,):
        with torch.cuda.stream(own.stream):
            yield own.part
        torch.cuda.synchronize(device)


def parts_of(shares: Sequence[Fraction], device: torch.device) -> list[Part]:
    """Return what shares come to on this host."""
    if device.type != "cuda":
        return [cores.part for cores in divide_cores(shares)]
    torch.cuda.synchronize(device)
    with green_slices(open_driver(), shares, device.index or 0) as slices:
        return [own.part for own in slices]
