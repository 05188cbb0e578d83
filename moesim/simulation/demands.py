"""What a scenario's models ask of a slice: weights, activations and KV blocks, in bytes."""

from collections.abc import Sequence

from moesim.cost.parallel import Shard
from moesim.facts.memory import MemoryDemand, activation_bytes, reserved_share
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.residents import Resident
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder


def bare_demand(builder: Builder, model: str, part: Slice) -> MemoryDemand:
    """Return what a model without a KV cache asks of a slice that it has for itself."""
    profile, scheduler = builder.profile(model), builder.scheduler
    return MemoryDemand(
        spec=profile.spec,
        slice_bytes=part.memory_bytes,
        precision=builder.precision(model),
        kv_blocks=0,
        block_size=profile.kv.block_size,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_num_seqs=scheduler.max_num_seqs,
        reserved_share=reserved_share(builder.device.kind),
    )


def resident_of(
    builder: Builder, model: str, part: Slice, *, precision: Precision | None = None
) -> Resident:
    """Return what each device of a slice holds of a whole model, as yet without KV blocks.

    Activations are taken as one device alone would have them: an upper bound in a group.
    """
    profile, scheduler = builder.profile(model), builder.scheduler
    precision = precision or builder.precision(model)
    shard = Shard.of(profile.spec, part)
    return Resident(
        name=model,
        non_expert_bytes=shard.non_expert_bytes(precision),
        expert_bytes=shard.expert_bytes(precision),
        activation_bytes=activation_bytes(
            profile.spec,
            max_batched_tokens=scheduler.max_batched_tokens,
            max_num_seqs=scheduler.max_num_seqs,
            value_bytes=FORMATS[precision.plain].bytes_of(1),
        ),
        block_bytes=block_bytes(builder, model, part, precision=precision),
        block_size=profile.kv.block_size,
    )


def block_bytes(
    builder: Builder, model: str, part: Slice, *, precision: Precision | None = None
) -> int:
    """Return what a KV block takes on each device of a slice [B]."""
    profile = builder.profile(model)
    values = profile.kv.block_size * Shard.of(profile.spec, part).kv_values_per_token
    return FORMATS[(precision or builder.precision(model)).kv].bytes_of(values)


def longest_blocks(builder: Builder, model: str) -> int:
    """Return the KV blocks of one longest sequence: what is planned for where nothing is known."""
    profile = builder.profile(model)
    return -(-profile.spec.max_position_embeddings // profile.kv.block_size)


def most_blocks(builder: Builder, models: Sequence[str], part: Slice) -> int | None:
    """Return the KV blocks that a model has at most unless told: those of the profiled engine.

    None where no engine was profiled, or where it had another slice.
    """
    profiles = [builder.profile(model) for model in models]
    if not part.whole or any(profile.source != "measured" for profile in profiles):
        return None
    return min(profile.kv.num_blocks for profile in profiles)
