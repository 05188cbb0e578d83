"""Time as the engine sees it: the wall's, or any other that keeps the protocol."""

import time
from typing import Protocol

from moesim.serving.sequences import Batch


class Clock(Protocol):
    """What the engine asks of time."""

    def now(self) -> float:
        """Return seconds since the run began."""

    def wait_until(self, moment_s: float) -> None:
        """Return once `now()` has reached `moment_s`."""

    def ran(self, batch: Batch) -> None:
        """Take note of an iteration that has just run."""


class WallClock:
    """Real time, from the moment of construction."""

    def __init__(self) -> None:
        self._start = time.perf_counter()

    def now(self) -> float:
        """Return seconds since construction."""
        return time.perf_counter() - self._start

    def wait_until(self, moment_s: float) -> None:
        """Sleep until `moment_s`."""
        while (left := moment_s - self.now()) > 0:
            time.sleep(left)

    def ran(self, batch: Batch) -> None:
        """Do nothing: real time passes by itself."""
