"""Length distributions: how many tokens a prompt or an answer has (whole numbers, at least one)."""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, model_validator

LONGEST = 10_000_000
"""No request is longer [tokens]."""


class LengthDistribution(BaseModel):
    """What every length distribution of a scenario file has in common."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class Fixed(LengthDistribution):
    """Every request has the same length."""

    kind: Literal["fixed"]
    """`fixed`."""
    tokens: int = Field(gt=0, le=LONGEST)
    """Tokens."""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Return `count` equal lengths; nothing is drawn."""
        return np.full(count, self.tokens, dtype=np.int64)


class Lognormal(LengthDistribution):
    """Lognormal lengths, given by their mean and coefficient of variation."""

    kind: Literal["lognormal"]
    """`lognormal`."""
    mean: float = Field(gt=0, le=LONGEST)
    """Mean length before clipping [tokens]."""
    cv: float = Field(ge=0.001, le=10)
    """Standard deviation over mean."""
    max: int = Field(default=LONGEST, gt=0, le=LONGEST)
    """Longest length; longer draws are clipped to it [tokens]."""

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `count` lengths."""
        sigma2 = np.log1p(self.cv**2)
        values = rng.lognormal(np.log(self.mean) - sigma2 / 2, np.sqrt(sigma2), count)
        return whole_tokens(values, self.max)


class Quantiles(LengthDistribution):
    """Lengths from a quantile table, drawn by inverting it linearly between levels.

    The table is given here (`levels`, `tokens`) or is one of a shipped workload's (`workload`).
    """

    kind: Literal["quantiles"]
    """`quantiles`."""
    levels: tuple[float, ...] = ()
    """Rising levels from 0 to 1."""
    tokens: tuple[float, ...] = ()
    """The length at each level [tokens]."""
    workload: str | None = None
    """A workload file or shipped workload whose table of this field is used instead."""
    scale: float = Field(default=1.0, gt=0, le=1e6)
    """Factor on every length."""
    max: int = Field(default=LONGEST, gt=0, le=LONGEST)
    """Longest length; longer draws are clipped to it [tokens]."""

    @model_validator(mode="after")
    def _table(self) -> Self:
        if self.workload is not None:
            if self.levels or self.tokens:
                raise ValueError("give either workload, or levels and tokens, not both")
            return self
        check_table(self.levels, self.tokens)
        return self

    def draw(self, count: int, rng: np.random.Generator) -> NDArray[np.int64]:
        """Draw `count` lengths."""
        values = np.interp(rng.random(count), self.levels, self.tokens)
        return whole_tokens(values * self.scale, self.max)


def check_table(levels: tuple[float, ...], tokens: tuple[float, ...]) -> None:
    """Raise ValueError unless the table is a quantile function over [0, 1]."""
    if len(levels) != len(tokens) or len(levels) < 2:
        raise ValueError("levels and tokens must have the same length, at least 2")
    if not np.isfinite([*levels, *tokens]).all():
        raise ValueError("levels and tokens must be finite numbers")
    if levels[0] != 0 or levels[-1] != 1 or any(np.diff(levels) <= 0):
        raise ValueError("levels must rise strictly from 0 to 1")
    if tokens[0] < 0 or any(np.diff(tokens) < 0):
        raise ValueError("tokens must not fall and not be negative")


def whole_tokens(values: NDArray[np.float64], longest: int) -> NDArray[np.int64]:
    """Round lengths to whole tokens, at least one and at most `longest`."""
    return np.clip(np.rint(values), 1, longest).astype(np.int64)
