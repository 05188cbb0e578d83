"""Timing operations where they really run: laps inside an iteration, medians over many.

An operation timed alone in a loop finds its weights in the cache; inside a forward pass it does
not. So the engine calls `lap(name)` after each operation and the stopwatch keeps the time since
the lap before, summed by name.
"""

import time
from typing import Protocol

import numpy as np
import torch

UNSTABLE_SPREAD = 0.25
"""Interquartile range over median above which a cell counts as unstable."""


class Stopwatch(Protocol):
    """Splits an iteration into its operations."""

    def start(self) -> None:
        """Begin an iteration."""

    def lap(self, name: str) -> None:
        """Count the time since the lap before towards `name`."""

    def stop(self) -> dict[str, float]:
        """End the iteration; return seconds by name."""


class CpuStopwatch:
    """Laps on the CPU's clock, where operations run when they are called."""

    def start(self) -> None:
        """Begin an iteration."""
        self._sums: dict[str, float] = {}
        self._last = time.perf_counter()

    def lap(self, name: str) -> None:
        """Count the time since the lap before towards `name`."""
        now = time.perf_counter()
        self._sums[name] = self._sums.get(name, 0.0) + now - self._last
        self._last = now

    def stop(self) -> dict[str, float]:
        """End the iteration; return seconds by name."""
        return self._sums


class CudaStopwatch:
    """Laps on the device's timeline by events; what the device does not account for is `host`."""

    def start(self) -> None:
        """Begin an iteration on an idle stream; neighbours on the device may be at work."""
        torch.cuda.current_stream().synchronize()
        self._events: list[tuple[str, torch.cuda.Event]] = []
        self._begun = time.perf_counter()

    def lap(self, name: str) -> None:
        """Record an event that ends operation `name`."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        self._events.append((name, event))

    def stop(self) -> dict[str, float]:
        """End the iteration; return seconds by name."""
        torch.cuda.current_stream().synchronize()
        wall_s = time.perf_counter() - self._begun
        sums: dict[str, float] = {}
        for (_, before), (name, after) in zip(self._events, self._events[1:], strict=False):
            if name != "host":
                sums[name] = sums.get(name, 0.0) + before.elapsed_time(after) / 1e3
        sums["host"] = max(0.0, wall_s - sum(sums.values()))
        return sums


def stopwatch_for(device: torch.device) -> Stopwatch:
    """Return the stopwatch of a device."""
    return CudaStopwatch() if device.type == "cuda" else CpuStopwatch()


def median_and_spread(samples: list[float]) -> tuple[float, float]:
    """Return the median [s] and the interquartile range over the median."""
    low, median, high = np.percentile(samples, [25, 50, 75])
    return float(median), float((high - low) / median) if median > 0 else 0.0
