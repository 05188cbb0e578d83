"""What fits: everything that sits on one slice, with the arithmetic shown.

A `MemoryDemand` says what is asked for, `plan_memory` lays it out in bytes; what to do where it
does not fit is in `moesim.facts.remedies`. Models of different shapes, and models cut over several
devices, are in `moesim.facts.residents`.
"""

from dataclasses import dataclass
from math import ceil

from moesim.errors import ScenarioError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision

BLOCK_TOKENS = 16
"""Tokens of a KV block, as vLLM and our engine cut the cache."""

RESERVED_SHARE = 0.1
"""Share of a GPU's memory for the CUDA context, kernels and fragmentation; servers fill the other
90 % (vLLM's `gpu_memory_utilization`, and our engine's own bound)."""


def reserved_share(kind: str) -> float:
    """Return the share of a device's memory that is set aside, by the device's kind."""
    return RESERVED_SHARE if kind == "cuda" else 0.0


def activation_bytes(
    spec: ModelSpec, *, max_batched_tokens: int, max_num_seqs: int, value_bytes: int | None = None
) -> int:
    """Bound the activations of one iteration [B]: hidden states, both FFN halves, logits.

    Tensors of T tokens alive at once, counted from the engine's forward pass: 6 of width H for the
    residual stream, norms and outputs, 3 of width I for each of the k visits; logits of every
    sequence in the format of activations (the model's dtype, unless told) and once in fp32.
    """
    hidden = 6 * max_batched_tokens * spec.hidden_size
    visits = spec.num_experts_per_tok * spec.intermediate_size
    inner = 3 * max_batched_tokens * max(visits, spec.dense_intermediate_size)
    logits = max_num_seqs * spec.vocab_size
    return (hidden + inner + logits) * (value_bytes or spec.dtype_bytes) + 4 * logits


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryDemand:
    """What one slice is asked to hold: variants of one shape that share experts, KV cache and all.

    `ratio` is the consolidation ratio: of this fraction of the expert positions one copy serves
    every variant, the others have a copy a variant. `resident` is the fraction of expert copies on
    the slice, shared ones first; the others wait in host memory. So do the non-expert sets beyond
    `non_expert_sets` (none: all are resident).
    """

    spec: ModelSpec
    slice_bytes: int
    precision: Precision
    kv_blocks: int
    block_size: int = BLOCK_TOKENS
    variants: int = 1
    ratio: float = 0.0
    resident: float = 1.0
    non_expert_sets: int | None = None
    max_batched_tokens: int = 512
    max_num_seqs: int = 64
    reserved_share: float = RESERVED_SHARE

    def __post_init__(self) -> None:
        for name in ("slice_bytes", "block_size", "variants", "max_batched_tokens", "max_num_seqs"):
            if getattr(self, name) < 1:
                raise ScenarioError(f"{name}: {getattr(self, name)} must be above zero")
        for name in ("ratio", "resident", "reserved_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ScenarioError(f"{name}: {getattr(self, name)} must be between 0 and 1")
        if self.kv_blocks < 0:
            raise ScenarioError(f"kv_blocks: {self.kv_blocks} must not be negative")
        if not 1 <= self.sets <= self.variants:
            raise ScenarioError(
                f"non_expert_sets: {self.sets} must be between 1 and the {self.variants} variants"
            )

    @property
    def sets(self) -> int:
        """Non-expert sets on the slice."""
        return self.variants if self.non_expert_sets is None else self.non_expert_sets

    @property
    def shared_positions(self) -> int:
        """Expert positions of which one copy serves every variant; a lone variant shares none."""
        return round(self.ratio * self.spec.expert_positions) if self.variants > 1 else 0

    @property
    def expert_copies(self) -> int:
        """Experts on the slice and in host memory together."""
        private = self.spec.expert_positions - self.shared_positions
        return self.shared_positions + self.variants * private

    @property
    def resident_copies(self) -> int:
        """Experts on the slice."""
        return round(self.resident * self.expert_copies)

    @property
    def block_bytes(self) -> int:
        """Bytes of one KV block over all layers [B]."""
        values = self.block_size * self.spec.kv_values_per_token
        return FORMATS[self.precision.kv].bytes_of(values)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What sits on one slice, part by part, and what waits in host memory [B]."""

    slice_bytes: int
    non_expert_bytes: int
    shared_expert_bytes: int
    private_expert_bytes: int
    kv_bytes: int
    activation_bytes: int
    reserved_bytes: int
    host_expert_bytes: int
    host_non_expert_bytes: int

    @property
    def parts(self) -> dict[str, int]:
        """The bytes of each part on the slice, by name [B]."""
        return {
            "non-expert sets": self.non_expert_bytes,
            "shared experts": self.shared_expert_bytes,
            "private experts": self.private_expert_bytes,
            "KV cache": self.kv_bytes,
            "activations": self.activation_bytes,
            "runtime": self.reserved_bytes,
        }

    @property
    def weight_bytes(self) -> int:
        """Non-expert sets and experts on the slice [B]."""
        return self.non_expert_bytes + self.shared_expert_bytes + self.private_expert_bytes

    @property
    def used_bytes(self) -> int:
        """All parts together [B]."""
        return sum(self.parts.values())

    @property
    def fits(self) -> bool:
        """Whether the slice holds all parts."""
        return self.used_bytes <= self.slice_bytes

    @property
    def free_bytes(self) -> int:
        """What no part takes; 0 where the parts do not fit [B]."""
        return max(0, self.slice_bytes - self.used_bytes)

    @property
    def short_by_bytes(self) -> int:
        """What the slice lacks; 0 where the parts fit [B]."""
        return max(0, self.used_bytes - self.slice_bytes)


def plan_memory(demand: MemoryDemand) -> MemoryPlan:
    """Lay out what a slice is asked to hold, whether it fits or not."""
    spec, precision = demand.spec, demand.precision
    expert_bytes = spec.expert_bytes(precision)
    set_bytes = spec.non_expert_bytes(precision)
    shared = min(demand.shared_positions, demand.resident_copies)
    return MemoryPlan(
        slice_bytes=demand.slice_bytes,
        non_expert_bytes=demand.sets * set_bytes,
        shared_expert_bytes=shared * expert_bytes,
        private_expert_bytes=(demand.resident_copies - shared) * expert_bytes,
        kv_bytes=demand.kv_blocks * demand.block_bytes,
        activation_bytes=activation_bytes(
            spec,
            max_batched_tokens=demand.max_batched_tokens,
            max_num_seqs=demand.max_num_seqs,
            value_bytes=FORMATS[precision.plain].bytes_of(1),
        ),
        reserved_bytes=ceil(demand.reserved_share * demand.slice_bytes),
        host_expert_bytes=(demand.expert_copies - demand.resident_copies) * expert_bytes,
        host_non_expert_bytes=(demand.variants - demand.sets) * set_bytes,
    )
