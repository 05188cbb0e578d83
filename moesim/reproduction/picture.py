"""A plot of an experiment as data: curves with intervals, and the published points."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.reproduction.trials import Runs

PUBLISHED = "published: "
"""What names of published points begin with; the curve's follows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Median and range over the trials at each x."""

    name: str
    x: tuple[float, ...]
    y: tuple[float, ...]
    low: tuple[float, ...]
    high: tuple[float, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """Curves on one pair of axes, published points by name, a level of y to compare with."""

    title: str
    x_title: str
    y_title: str
    curves: tuple[Curve, ...]
    published: Mapping[str, tuple[float, float]]
    log_x: bool = False
    log_y: bool = False
    level: float | None = None


def curve(name: str, x: Sequence[float] | Sequence[Runs], runs: Sequence[Runs]) -> Curve:
    """Return the curve of a figure; x may itself be a figure of the trials."""
    return Curve(
        name=name,
        x=tuple(float(np.median(at)) for at in x),
        y=tuple(float(np.median(values)) for values in runs),
        low=tuple(float(np.min(values)) for values in runs),
        high=tuple(float(np.max(values)) for values in runs),
    )
