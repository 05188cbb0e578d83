"""The published systems that can be run, by name, and how to run some of them."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.reproduction.claims import Claim
from moesim.reproduction.formats import reproduce_formats
from moesim.reproduction.historical import reproduce_historical
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.routed import reproduce_routed
from moesim.reproduction.trials import TRIALS, Trial
from moesim.reproduction.variants import reproduce_variants

SYSTEMS: dict[str, Callable[[Told, Sequence[Trial]], Outcome]] = {
    "friendli": reproduce_historical,
    "nvidia": reproduce_formats,
    "expert-router": reproduce_routed,
    "qos-moe": reproduce_variants,
}
"""What runs each published system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproductions:
    """What came out of some systems."""

    outcomes: tuple[Outcome, ...]
    elapsed_s: float

    @property
    def claims(self) -> list[Claim]:
        """All claims in order."""
        return [claim for outcome in self.outcomes for claim in outcome.claims]


def reproduce(
    systems: Sequence[str],
    progress: Callable[[float, str], None],
    trials: Sequence[Trial] = TRIALS,
) -> Reproductions:
    """Run systems one after another; `progress` is told the share done, and of what."""
    started = time.perf_counter()
    outcomes = []
    for place, system in enumerate(systems):

        def told(share: float, place: int = place, system: str = system) -> None:
            progress((place + share) / len(systems), system)

        outcomes.append(SYSTEMS[system](told, trials))
    return Reproductions(outcomes=tuple(outcomes), elapsed_s=time.perf_counter() - started)
