"""The way out where a slice does not hold what it should: the nearest changes of the scenario."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

from moesim.deployment import Consolidated, Dedicated, ExpertParallel, Mig, TensorParallel
from moesim.errors import ScenarioError
from moesim.facts.memory import MemoryDemand, plan_memory, reserved_share
from moesim.facts.remedies import Remedy, larger_slice, narrower, other_slices, remedies
from moesim.facts.residents import Residents, fewer_blocks, first_that_fits, plan_residents
from moesim.facts.slices import NODE, Slice, check_divides, group, whole
from moesim.simulation.builder import Builder
from moesim.simulation.demands import block_bytes, resident_of
from moesim.units import format_bytes


def ways_of_variants(
    builder: Builder, models: Sequence[str], demand: MemoryDemand
) -> Iterator[str]:
    """Yield the smallest change of each kind that makes variants of one shape fit.

    `demand` may be of one model while others keep their KV blocks beside it.
    """
    part = whole(builder.device)
    caches = sum(block_bytes(builder, model, part) for model in models) / demand.block_bytes
    for remedy in remedies(demand, _slices(builder, models)):
        setting = _setting(builder, caches, demand, remedy)
        if setting:
            yield setting
    for change, name in _formats(builder, models).items():  # one for all weights of a model
        if plan_memory(replace(demand, precision=builder.precision(models[0], name))).fits:
            yield change
            break
    if isinstance(builder.deployment, Dedicated):
        yield from _over_more_devices(builder, models[0], demand.kv_blocks)


def ways_of_residents(
    builder: Builder, part: Slice, demand: Residents, *, complete: bool = True
) -> Iterator[str]:
    """Yield the smallest change of each kind that makes models fit.

    Not `complete`, some experts are in host memory already.
    """
    fewer = fewer_blocks(demand)
    if fewer:
        least = min(fewer.models, key=lambda model: model.kv_blocks)
        yield _blocks(least.kv_blocks, least.block_size)
    if complete:
        yield from _other_weights(builder, part, demand)
    larger = larger_slice(
        _slices(builder, [model.name for model in demand.models]),
        lambda size: plan_residents(replace(demand, slice_bytes=size)).fits,
    )
    if larger:
        yield larger[0]


def _other_weights(builder: Builder, part: Slice, demand: Residents) -> Iterator[str]:
    """Yield the changes that have fewer bytes of whole models on each device."""
    if _may_offload(builder, demand):
        short = plan_residents(demand).short_by_bytes
        yield f"keep {format_bytes(short)} of the experts in host memory (experts.resident)"
    names = [model.name for model in demand.models]
    stored = {
        change: _stored_in(builder, part, demand, name)
        for change, name in _formats(builder, names).items()
    }
    if change := first_that_fits(stored):
        yield change
    if part.devices > 1:
        yield from _over_more_devices(builder, names[0], demand.kv_blocks[0])


def _setting(builder: Builder, caches: float, demand: MemoryDemand, remedy: Remedy) -> str | None:
    """Write a remedy as a change of the deployment, None where it is none.

    The models' KV caches together are `caches` times that of one with as many blocks.
    """
    then, deployment = remedy.demand, builder.deployment
    if then.slice_bytes != demand.slice_bytes:
        return remedy.change
    if then.kv_blocks != demand.kv_blocks:
        each = int(then.kv_blocks / caches)
        return _blocks(each, demand.block_size) if each else None
    if then.resident != demand.resident:
        away = then.expert_copies - then.resident_copies
        return (
            f"set experts.resident to {then.resident:g} ({away:,} of {then.expert_copies:,} "
            "experts wait in host memory)"
        )
    if then.ratio != demand.ratio:
        shared = f"{then.shared_positions:,} of {then.spec.expert_positions:,} positions shared"
        if isinstance(deployment, Consolidated):
            return f"raise ratio to {then.ratio:g} ({shared})"
        return f"take kind: consolidated with ratio: {then.ratio:g} ({shared})"
    if isinstance(deployment, Consolidated) and then.sets == 1 < demand.sets:
        return "set non_expert_sets to one"
    return None


def _blocks(count: int, block_size: int) -> str:
    return f"set kv_blocks to {count} ({count * block_size:,} tokens a model)"


def _slices(builder: Builder, models: Sequence[str]) -> Mapping[str, int]:
    """Return what could be taken in place of a slice; most profiles are of one device alone."""
    drawn = all(builder.profile(model).source == "roofline" for model in models)
    precisions = [builder.precision(model) for model in models]
    return other_slices(
        builder.device,
        fp8=any("fp8" in (each.experts, each.rest) for each in precisions),
        proviso="" if drawn else " with profile: roofline or one of its own",
    )


def _formats(builder: Builder, models: Sequence[str]) -> Mapping[str, str]:
    """Return the narrower formats of weights, by the change that takes each.

    Those that the models' profiles go with are first; the others are reckoned from the datasheet.
    """
    names = narrower(builder.device)
    known = [name for name in names if all(builder.takes(model, name) for model in models)]
    written = f"set precision of {' and '.join(models)} to"
    return {f"{written} {name}": name for name in known} | {
        f"{written} {name} with profile: roofline": name for name in names if name not in known
    }


def _stored_in(builder: Builder, part: Slice, demand: Residents, name: str) -> Residents:
    """Return the same models and KV blocks with weights in another format."""
    models = (
        resident_of(builder, model.name, part, precision=builder.precision(model.name, name))
        for model in demand.models
    )
    stored = replace(demand, models=tuple(models))
    return stored.with_blocks(demand.kv_blocks)


def _may_offload(builder: Builder, demand: Residents) -> bool:
    """Whether the deployment lets experts wait in host memory, and enough of them can."""
    deployment = builder.deployment
    specs = [builder.profile(model.name).spec for model in demand.models]
    alike = all(spec == specs[0] for spec in specs)
    if not hasattr(deployment, "experts") or (isinstance(deployment, Mig) and not alike):
        return False
    plan = plan_residents(demand)
    kept = sum(
        spec.num_experts_per_tok * spec.expert_bytes(builder.precision(model.name))
        for spec, model in zip(specs, demand.models, strict=True)
    )
    return plan.short_by_bytes + kept <= plan.private_expert_bytes


def _over_more_devices(builder: Builder, model: str, kv_blocks: int) -> Iterator[str]:
    """Yield the smallest larger group of devices over which a model fits with its KV blocks."""
    groups = {
        change: Residents(
            models=(replace(resident_of(builder, model, part), kv_blocks=kv_blocks),),
            slice_bytes=part.memory_bytes,
            reserved_share=reserved_share(builder.device.kind),
        )
        for change, part in _larger_groups(builder, model).items()
    }
    if change := first_that_fits(groups):
        yield change


def _larger_groups(builder: Builder, model: str) -> Mapping[str, Slice]:
    """Return the larger groups that a model can be cut over, by the change that takes each."""
    deployment, other, word = builder.deployment, 1, "take kind: tensor_parallel, tensor_parallel:"
    field, now = "tensor_parallel", 1
    if isinstance(deployment, TensorParallel):
        word, now = "set tensor_parallel to", deployment.tensor_parallel
    elif isinstance(deployment, ExpertParallel):
        field, other = "expert_parallel", deployment.tensor_parallel
        word, now = "set expert_parallel to", deployment.expert_parallel
    found = {}
    for count in range(now + 1, NODE // other + 1):
        sizes = {"tensor_parallel": other, "expert_parallel": 1} | {field: count}
        try:
            part = group(builder.device, **sizes)
            check_divides(builder.profile(model).spec, part)
        except ScenarioError:
            continue
        found[f"{word} {count}"] = part
    return found
