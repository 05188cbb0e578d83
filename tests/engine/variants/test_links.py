"""Copies beside computing: whatever stream is fast or slow, nobody reads what is not there.

CUDA's streams and events are stood in for by queues that hypothesis empties in any order that the
events allow; between two streams nothing else says what comes first.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from engine.variants import links
from engine.variants.links import CudaLink, Move
from engine.variants.reconfigure import PackedSets

SLOTS = 3
CPU = torch.device("cpu")
Work = Callable[[], bool]
"""Does a piece of work; False if it has to wait."""


@dataclass(eq=False)
class Stream:
    """Work in order."""

    queue: list[Work] = field(default_factory=list)

    def wait_event(self, event: "Event") -> None:
        """Wait for the last record of an event that there has been by now, if any."""
        wanted = event.recorded
        self.queue.append(lambda: event.reached >= wanted)

    def push(self, work: Callable[[], object]) -> None:
        """Queue work that need not wait."""

        def done() -> bool:
            work()
            return True

        self.queue.append(done)

    def advance(self) -> bool:
        """Do what is next; False if there is nothing, or it has to wait."""
        if not self.queue or not self.queue[0]():
            return False
        del self.queue[0]
        return True


@dataclass(eq=False)
class Event:
    """Counts how often it was recorded, and how often that was reached."""

    recorded: int = 0
    reached: int = 0

    def record(self, stream: Stream) -> None:
        self.recorded += 1
        number = self.recorded
        stream.push(lambda: setattr(self, "reached", number))


class Device:
    """Two streams, of which the host sets the current one."""

    def __init__(self) -> None:
        self.computing = Stream()
        self.current = self.computing
        self.streams = [self.computing]

    def stream(self, *_: object) -> Stream:
        """Make another stream."""
        self.streams.append(Stream())
        return self.streams[-1]

    @contextmanager
    def using(self, stream: Stream) -> Iterator[None]:
        """Queue on a stream meanwhile."""
        before, self.current = self.current, stream
        yield
        self.current = before

    def run(self, choose: Callable[[int], int]) -> None:
        """Empty the queues in a chosen order."""
        while any(stream.queue for stream in self.streams):
            first = choose(len(self.streams))
            order = [*self.streams[first:], *self.streams[:first]]
            assert any(stream.advance() for stream in order), "all wait for each other"


@contextmanager
def pretended() -> Iterator[Device]:
    """Yield a device that CUDA's names lead to."""
    made = Device()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "Stream", made.stream)
        patch.setattr(torch.cuda, "stream", made.using)
        patch.setattr(torch.cuda, "current_stream", lambda *_: made.current)
        patch.setattr(links, "_event", lambda *, timed=False: Event())
        yield made


STEPS = st.lists(st.tuples(st.integers(0, SLOTS - 1), st.booleans()), max_size=30)
"""Slots that get a new content each, and whether it is used before it goes."""


@given(steps=STEPS, data=st.data())
def test_a_slot_is_read_with_what_was_brought_for_it(
    steps: list[tuple[int, bool]], data: st.DataObject
) -> None:
    """Not before it is filled, nor filled again before it was read, even where some are unused."""
    slots, found = [-1] * SLOTS, list[int]()
    with pretended() as device:
        link = CudaLink(CPU, SLOTS)
        for number, (slot, is_used) in enumerate(steps):
            link.fill(slot, partial(fill, device, slots, slot, number))
            if is_used:
                link.wait(slot)
                for _ in range(2):
                    device.current.push(partial(read, slots, slot, found))
                link.used(slot)
        device.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert found == [number for number, (_, used) in enumerate(steps) if used for _ in range(2)]


def fill(device: Device, slots: list[int], slot: int, number: int) -> None:
    """Queue a copy, which takes its time."""
    device.current.push(partial(slots.__setitem__, slot, -1))
    device.current.push(partial(slots.__setitem__, slot, number))


def read(slots: list[int], slot: int, found: list[int]) -> None:
    found.append(slots[slot])


CHANGES = st.lists(st.tuples(st.sampled_from(["expect", "load"]), st.integers(0, 2)), max_size=20)
"""Variants that are expected or loaded; what is loaded runs an iteration."""


class Bytes:
    """Bytes of which every copy is queued, in halves."""

    def __init__(self, device: Device, content: int) -> None:
        self._device = device
        self.content = content

    def copy_(self, other: "Bytes", non_blocking: bool = False) -> None:
        """Copy on the current stream."""
        queue = self._device.current
        queue.push(lambda: setattr(self, "content", -1))
        queue.push(lambda: setattr(self, "content", other.content))


@given(changes=CHANGES, data=st.data())
def test_whoever_runs_has_its_own_set(changes: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever was expected before, rightly or not, and however slow its copy is."""
    found, expected = list[int](), list[int]()
    with pretended() as device:
        sets: Any = PackedSets({"w": torch.zeros(1)}, 3, CPU, ahead=True)
        sets._link = CudaLink(CPU, 1)
        sets._loaded, sets._next = Bytes(device, -1), Bytes(device, -1)
        for variant, memory in enumerate(sets._waiting):
            memory.bytes = Bytes(device, variant)
        for what, variant in changes:
            if what == "expect":
                sets.expect(variant)
                continue
            sets.load(variant)
            for _ in range(2):
                device.current.push(lambda: found.append(sets._loaded.content))
                expected.append(variant)
        device.run(lambda count: data.draw(st.integers(0, count - 1)))
    assert found == expected


def test_what_is_expected_twice_is_copied_once() -> None:
    """What is loaded unexpectedly is the right one too."""
    sets = PackedSets({"w": torch.zeros(1)}, 3, CPU, ahead=True)
    for variant in range(3):
        sets.room(variant)["w"].fill_(variant)
    fill, copied = sets._link.fill, list[int]()

    def filling(slot: int, move: Move) -> None:
        copied.append(slot)
        fill(slot, move)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sets._link, "fill", filling)
        for expected, loaded in ((1, 0), (1, 1), (1, 2), (1, 1), (2, 2), (2, 2)):
            sets.expect(expected)
            sets.load(loaded)
            assert sets.weights(loaded)["w"].item() == loaded
    assert len(copied) == 2
