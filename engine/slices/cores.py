"""Shares of a CPU: disjoint sets of cores, each for a process of its own."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction

import torch

from engine.slices.part import Part
from engine.slices.shares import portions
from moesim.errors import EngineError


@dataclass(frozen=True, slots=True)
class Cores:
    """Cores by their numbers, of `of` that this process may use."""

    numbers: tuple[int, ...]
    of: int

    @property
    def part(self) -> Part:
        """The part of the CPU."""
        return Part(units=len(self.numbers), of=self.of, what="cores")


def divide_cores(shares: Sequence[Fraction]) -> list[Cores]:
    """Deal the cores that this process may use to shares, in order; rests are left idle."""
    if not hasattr(os, "sched_setaffinity"):
        raise EngineError("shares: this system confines no process to cores; use Linux")
    free = sorted(os.sched_getaffinity(0))
    total, found = len(free), []
    for count in portions(total, shares, "cores"):
        found.append(Cores(tuple(free[:count]), total))
        free = free[count:]
    return found


def confine(cores: Cores) -> None:
    """Confine this thread, and those that it starts from now on, to cores; torch uses them all.

    Threads that torch has started before stay where they are: called first in a process.
    """
    os.sched_setaffinity(0, cores.numbers)
    torch.set_num_threads(len(cores.numbers))


@contextmanager
def confined(cores: Cores) -> Iterator[None]:
    """Confine this thread for a while."""
    before, threads = os.sched_getaffinity(0), torch.get_num_threads()
    confine(cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)
        torch.set_num_threads(threads)
