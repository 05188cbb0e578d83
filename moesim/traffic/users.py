"""Closed-loop users: each asks, reads the answer, thinks, and asks again."""

from typing import Literal

import numpy as np
from pydantic import BaseModel, ConfigDict, Field


class Users(BaseModel):
    """A fixed number of users, each with at most one request under way.

    The slower the answers, the fewer the requests: such a load cannot grow beyond what is served.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    kind: Literal["users"]
    """`users`."""
    count: int = Field(gt=0, le=1_000_000)
    """How many users."""
    think_s: float = Field(ge=0, le=1e6, allow_inf_nan=False)
    """Mean time between an answer's last token and the user's next request [s]."""
    think_cv: float = Field(default=1.0, ge=0, le=10)
    """Coefficient of variation of think times: 1 exponential, 0 always the same."""

    def think_time_s(self, rng: np.random.Generator) -> float:
        """Draw one think time [s]."""
        if not self.think_cv or not self.think_s:
            return self.think_s
        shape = self.think_cv**-2
        return float(rng.gamma(shape, self.think_s / shape))
