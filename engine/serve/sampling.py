"""From logits to the next token."""

from dataclasses import dataclass

import torch
from torch import Tensor

from moesim.errors import EngineError


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen: greedy at temperature 0, else drawn from the tempered softmax."""

    temperature: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.temperature < 0:
            raise EngineError(f"temperature: {self.temperature} must not be negative")


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._temperature = sampling.temperature
        self._generator = torch.Generator(device=device).manual_seed(sampling.seed)

    def __call__(self, logits: Tensor) -> Tensor:
        """Return one token for each row of logits (S, V) as a tensor (S,)."""
        if self._temperature == 0.0:
            return logits.argmax(dim=-1)
        # Gumbel's trick: the argmax of log p + Gumbel noise is a draw from p.
        noise = torch.empty_like(logits, dtype=torch.float32)
        noise.exponential_(generator=self._generator).log_()
        return (logits.float() / self._temperature - noise).argmax(dim=-1)
