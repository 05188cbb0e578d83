"""What whole variants find room for on the card, from which those of less depth take ratios.

Two whole models do not fit into 141 GB, nor into the host's memory for time-sharing. So variants of
a few layers are served, with as large a part of their experts shared and resident as the whole ones
would have: memory is as short as it is for the real models, times are those of few layers.
"""

from dataclasses import dataclass

from moesim.facts.catalog import load_model
from moesim.facts.memory import RESERVED_SHARE, activation_bytes
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision

KV_BYTES = 8 * 2**30
"""Room for the KV cache, 64 Ki tokens of Mixtral: 64 sequences of 1,024."""

LIMITS = {"max_batched_tokens": 1024, "max_num_seqs": 64}


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """Expert copies of the whole model on a card of `memory_bytes`."""

    spec: ModelSpec
    memory_bytes: int

    def copies(self, sets: int) -> int:
        """Return how many expert copies fit beside so many non-expert sets and a KV cache."""
        precision = Precision.of_dtype(self.spec.dtype)
        free = self.memory_bytes * (1 - RESERVED_SHARE) - KV_BYTES
        free -= sets * self.spec.non_expert_bytes(precision)
        free -= activation_bytes(self.spec, **LIMITS)
        return max(0, int(free // self.spec.expert_bytes(precision)))

    def ratio(self, variants: int) -> float:
        """Return the part of the positions to share so that all copies of all variants fit."""
        positions = self.spec.expert_positions
        short = variants * positions - self.copies(sets=1)
        return min(1.0, max(0.0, short / ((variants - 1) * positions)))

    def resident(self, variants: int, ratio: float, sets: int) -> float:
        """Return the part of the copies, `ratio` of the positions shared, that fits."""
        positions = self.spec.expert_positions
        copies = positions * (ratio + variants * (1 - ratio))
        # A per mille more than 1 is the rounding of the ratio.
        return min(1.0, self.copies(sets) / copies)

    def told(self) -> str:
        """Say what does not fit, in numbers."""
        whole = self.spec.weight_bytes
        return (
            f"one model {whole / 1e9:.1f} GB, two {2 * whole / 1e9:.1f}, the card "
            f"{self.memory_bytes / 1e9:.1f}: {self.copies(1)} expert copies of "
            f"{self.spec.expert_positions} positions fit"
        )


def room_on(memory_bytes: int) -> Room:
    """Return what there is room for on a card."""
    return Room(spec=load_model("mixtral-8x7b"), memory_bytes=memory_bytes)
