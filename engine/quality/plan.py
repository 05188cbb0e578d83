"""What is trained in the experiment, and for how long."""

from dataclasses import dataclass

from engine.quality.corpus import Shares
from engine.quality.training import Course
from moesim.errors import EngineError

BASE_RATE = 3e-3
FINE_RATE = 1e-3
"""Largest learning rates of the base and of its variants; the second lower, as it is usual."""
HELD_OUT_KIB = 16
VALIDATION_KIB = 8
"""Test and validation text a domain [KiB]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """How much is trained and measured; everything is done `seeds` times, from other weights."""

    steps: int = 400
    """Of a base."""
    fine_steps: int = 100
    """Of each variant."""
    training_kib: int = 128
    """Text a domain to learn from [KiB]."""
    window: int = 128
    """Bytes that a model reads at once."""
    seeds: int = 1

    def __post_init__(self) -> None:
        for name in ("steps", "fine_steps", "training_kib", "seeds"):
            if getattr(self, name) < 1:
                raise EngineError(f"quality: {name}: {getattr(self, name)} must be 1 or more")

    @property
    def courses(self) -> tuple[Course, Course]:
        """How a base is trained, and its variants."""
        return (
            Course(steps=self.steps, rate=BASE_RATE, window=self.window),
            Course(steps=self.fine_steps, rate=FINE_RATE, window=self.window),
        )

    @property
    def shares(self) -> Shares:
        """How much of each domain is for what."""
        return Shares(
            training=self.training_kib << 10,
            validation=VALIDATION_KIB << 10,
            test=HELD_OUT_KIB << 10,
        )

    @property
    def command(self) -> str:
        """The command that does this."""
        return (
            f"moesim-engine quality --steps {self.steps} --fine-steps {self.fine_steps} "
            f"--training-kib {self.training_kib} --seeds {self.seeds}"
        )
