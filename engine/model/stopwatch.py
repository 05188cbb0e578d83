"""Laps of a forward pass, so that calibration times operations where they really run.

A lap names the work done since the previous one; the laps of a forward pass cover all of it.
"""

from collections.abc import Callable

Lap = Callable[[str], None]


def no_lap(name: str) -> None:
    """Time nothing."""
