"""Copying experts into the slots of a device, beside its computing where there are streams.

A slot is filled, waited for, and used; it may be filled again once what used it is done. On CUDA
all of it is queued on two streams, and the host waits for none of it:

    copies     fill 0 | fill 1 | (use of 0 done) fill 0 ...
    compute           | (fill 0 done) use 0 | (fill 1 done) use 1 ...
"""

import time
from collections.abc import Callable
from typing import Protocol

import torch

MOST_WAITS = 4096
"""Waits that are kept as pairs of CUDA events before they are added up."""

Move = Callable[[], object]
"""Queues the copies that fill a slot."""


class Link(Protocol):
    """What the store asks of the way to the device."""

    def fill(self, slot: int, move: Move) -> None:
        """Fill a slot, once nothing uses it any more."""

    def wait(self, slot: int) -> None:
        """Let what is computed next wait until the slot is filled."""

    def used(self, slot: int) -> None:
        """Note that what was computed last used the slot."""

    def waited_s(self) -> float:
        """Return how long computing has waited for slots since the beginning [s]."""


class HostLink:
    """Copies by the processor that computes: all of a copy is waited for."""

    def __init__(self) -> None:
        self._waited_s = 0.0

    def fill(self, slot: int, move: Move) -> None:
        """Fill a slot."""
        began_s = time.perf_counter()
        move()
        self._waited_s += time.perf_counter() - began_s

    def wait(self, slot: int) -> None:
        """Do nothing: it is filled already."""

    def used(self, slot: int) -> None:
        """Do nothing: it is done already."""

    def waited_s(self) -> float:
        """Return how long copies have taken since the beginning [s]."""
        return self._waited_s


class CudaLink:
    """Copies on a stream of their own, held in order with computing by events."""

    def __init__(self, device: torch.device, slots: int) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._filled = [_event() for _ in range(slots)]
        self._free = [_event() for _ in range(slots)]
        self._pending: set[int] = set()
        self._waits: list[tuple[torch.cuda.Event, torch.cuda.Event]] = []
        self._waited_s = 0.0

    def fill(self, slot: int, move: Move) -> None:
        """Fill a slot, once nothing uses it any more."""
        self._stream.wait_event(self._free[slot])
        with torch.cuda.stream(self._stream):
            move()
            self._filled[slot].record(self._stream)
        self._pending.add(slot)

    def wait(self, slot: int) -> None:
        """Let what is computed next wait until the slot is filled."""
        if slot not in self._pending:
            return
        self._pending.remove(slot)
        begin, end = _event(timed=True), _event(timed=True)
        computing = torch.cuda.current_stream(self._device)
        begin.record(computing)
        computing.wait_event(self._filled[slot])
        end.record(computing)
        self._waits.append((begin, end))
        if len(self._waits) > MOST_WAITS:
            self.waited_s()

    def used(self, slot: int) -> None:
        """Note that what was computed last used the slot."""
        self._free[slot].record(torch.cuda.current_stream(self._device))

    def waited_s(self) -> float:
        """Return how long computing has waited for slots since the beginning [s]."""
        for begin, end in self._waits:
            end.synchronize()
            self._waited_s += begin.elapsed_time(end) / 1e3
        self._waits.clear()
        return self._waited_s


def link_to(device: torch.device, slots: int) -> Link:
    """Return the way to a device."""
    return CudaLink(device, slots) if device.type == "cuda" else HostLink()


def _event(*, timed: bool = False) -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=timed)  # type: ignore[no-untyped-call]
