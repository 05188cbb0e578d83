"""What an engine's KV cache gets of a device's memory.

```
what programs can use - weights - activations - logits - runtime = free, of which the engine's share
```
"""

from moesim.cost.parallel import Shard
from moesim.evidence.accuracy.engines import Engine
from moesim.evidence.accuracy.experiments import System
from moesim.evidence.accuracy.names import UnknownRowError, shipped_device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS
from moesim.units import GIB

USABLE_GIB = {
    "a100-pcie-80gb": 79.15,
    "a100-sxm-40gb": 39.39,
    "a100-sxm-80gb": 79.15,
    "gh200-96gb": 94.50,
    "h100-nvl-94gb": 93.10,
    "h100-sxm-80gb": 79.10,
    "h200-sxm-141gb": 139.72,
    "l40s-48gb": 44.42,
}
"""What CUDA reports as a device's memory, as its out-of-memory messages quote it [GiB]; the A100
over PCIe has the same modules as the SXM, and is quoted with 79.1 to 79.35. Of others all of their
memory is taken."""

CONTEXT_BYTES = round(0.76 * GIB)
"""A CUDA context with an engine's kernels on each device: what TensorRT-LLM's log of an H100 leaves
unexplained (docs/source/reference/memory.md: of 79.10 GiB are 70.48 free beside an engine of 6,695
MiB, 1,134 MiB of activations and 224 MiB of buffers)."""

GROUP_BYTES = GIB
"""What NCCL and all-reduces over peers' memory keep on each device of a group: about a GiB, as
servers of groups log it beside weights and activations; not measured here."""

VALUE_BYTES = 2
"""Activations are in 16 bits."""

ESTIMATED_SHARE = 0.95
"""Share of what weights leave that trtllm-bench takes for the KV cache when it sizes an engine."""


def kv_blocks(
    system: System, engine: Engine, sequences: int, tokens: int, positions: int = 0
) -> int:
    """Return the KV blocks of a replica; UnknownRowError where its memory holds none.

    The engine is built for so many sequences, tokens of an iteration, and positions of a sequence.
    """
    shard = Shard.of(system.spec, system.part)
    usable = usable_bytes(system.device)
    kept = engine.copies * system.spec.vocab_size + engine.copies_of_positions * positions
    beside = shard.weight_bytes(system.precision) + 4 * kept * sequences
    beside += runtime_bytes(shard, sequences, tokens)
    free = engine.kv_share * (usable - beside)
    if not engine.of_free:
        free = engine.kv_share * usable - beside
    values = engine.block_size * shard.kv_values_per_token
    block = FORMATS[system.precision.kv].bytes_of(values)
    if free < block:
        raise UnknownRowError("by moesim's arithmetic the model does not fit")
    return int(free // block)


def runtime_bytes(shard: Shard, sequences: int, tokens: int) -> int:
    """Return what a rank keeps beside weights, KV cache and what sampling needs [B].

    Hidden states and logits are on every rank whole, the insides of FFNs divided. Six tensors of
    the residual stream's width are alive at once, and two for each visit of an expert; three of an
    expert's or FFN's inner width.
    """
    spec = shard.spec
    visits = spec.num_experts_per_tok
    hidden = (6 + 2 * visits) * tokens * spec.hidden_size
    inner = 3 * tokens * _inner(spec) // shard.ranks
    logits = sequences * spec.vocab_size
    group = GROUP_BYTES if shard.ranks > 1 else 0
    return VALUE_BYTES * (hidden + inner + logits) + CONTEXT_BYTES + group


def room(system: System, tokens: float) -> float:
    """Return for how many requests of so many tokens there is memory, as trtllm-bench estimates."""
    spec, precision = system.spec, system.precision
    shard = Shard.of(spec, system.part)
    weights = FORMATS[precision.rest].bytes_of(spec.parameters)
    free = ESTIMATED_SHARE * (usable_bytes(system.device) * shard.ranks - weights)
    each = FORMATS[precision.kv].bytes_of(shard.kv_values_per_token) * shard.ranks * tokens
    return max(1.0, free / each)


def usable_bytes(device: str) -> int:
    """Return what programs can use of a device's memory [B]."""
    known = USABLE_GIB.get(device)
    return int(known * GIB) if known else shipped_device(device).memory_bytes


def _inner(spec: ModelSpec) -> int:
    return max(spec.num_experts_per_tok * spec.intermediate_size, spec.dense_intermediate_size)
