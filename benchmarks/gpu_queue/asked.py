"""What a step is asked for: the command line, once read."""

from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.gpu_queue.sizes import Size
from moesim.facts.precision import OF_DTYPE


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """Size and device of a step, where its files go, and how long it may take.

    `scratch` holds checkpoints that are made for the variants and are of no use afterwards.
    """

    size: Size
    device: torch.device
    out: Path
    scratch: Path
    command: str
    budget_s: float | None = None
    precision: str | None = None
    reference: Path | None = None

    def budget(self, step: str) -> float:
        """Return how long a step may take [s]."""
        return self.budget_s or self.size.budgets_s[step]

    def measuring(self, step: str) -> float:
        """Return how much of that is left for measuring [s]; a fifth at least."""
        whole = self.budget(step)
        return max(whole / 5, whole - self.size.setup_s[step])

    @property
    def profile(self) -> Path:
        """Where the profile of the whole model is, in its own format or a narrower one."""
        return self.out / f"profile-{self.format}.json"

    @property
    def format(self) -> str:
        """The format of the model's weights."""
        return self.precision or OF_DTYPE[self.size.spec.dtype]

    @property
    def model(self) -> str:
        """What calibration calls the model."""
        return self.size.model(self.scratch)
