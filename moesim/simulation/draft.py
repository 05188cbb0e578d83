"""A draft: a slice, the models on it and what their iterations cost, before it is a station.

Neighbours on one device slow each other down in ways that are only known when all are drafted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from moesim.cost.iteration import Cost
from moesim.cost.link import stretch
from moesim.cost.parallel import Shard
from moesim.deployment import Offloading
from moesim.facts.memory import RESERVED_SHARE, place
from moesim.facts.precision import FORMATS
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder, Load
from moesim.simulation.residency import reside
from moesim.simulation.station import Crowd, Pricing, Station
from moesim.simulation.turns import Rules


@dataclass(frozen=True, slots=True, kw_only=True)
class Draft:
    """Models on a slice; `loads` are what absent experts add, None where none is absent."""

    builder: Builder
    models: tuple[str, ...]
    part: Slice | None
    blocks: tuple[int, ...]
    owns: tuple[Cost, ...]
    loads: tuple[Load | None, ...]
    rules: Rules | None = None

    @property
    def link_share(self) -> float:
        """The largest share of its time that an iteration of any model needs the host link for."""
        return max((load.link_share for load in self.loads if load), default=0.0)

    @property
    def overlaps(self) -> bool:
        """Whether copies go on while a model computes."""
        return any(load.loading.overlap for load in self.loads if load)

    def costs(self, factor: float = 1.0, owns: Sequence[Cost] | None = None) -> tuple[Cost, ...]:
        """Return what iterations cost, model by model, with copies stretched by a factor.

        `owns` stand in for the models' own costs.
        """
        return tuple(
            load.beside(own).cost(factor) if load else self.builder.on_floor(own)
            for own, load in zip(owns or self.owns, self.loads, strict=True)
        )

    def station(self, crowd: Crowd | None = None, member: int = 0) -> Station:
        """Return the station."""
        replicas = tuple(
            self.builder.replica(model, cost, blocks)
            for model, cost, blocks in zip(self.models, self.costs(), self.blocks, strict=True)
        )
        rules = self.rules if len(self.models) > 1 else None
        return Station(
            replicas=replicas, models=self.models, rules=rules, crowd=crowd, member=member
        )


def stations(drafts: Sequence[Draft], pricing: Pricing | None) -> list[Station]:
    """Return the stations of one device; `pricing` where neighbours slow each other down."""
    if pricing is None:
        return [draft.station() for draft in drafts]
    crowd = Crowd(pricing=pricing)
    return [draft.station(crowd, member) for member, draft in enumerate(drafts)]


Factor = Callable[[int, frozenset[int]], float]
"""From a member and the busy ones to by how much its copies are stretched."""


def factors_of(drafts: Sequence[Draft]) -> Factor | None:
    """Return how copies are stretched where several drafts load experts over one link."""
    shares = [draft.link_share for draft in drafts]
    if sum(share > 0 for share in shares) < 2:
        return None
    overlapped = any(draft.overlaps for draft in drafts)

    def factor(member: int, busy: frozenset[int]) -> float:
        members = sorted(busy)
        found = stretch([shares[place] for place in members], overlapped=overlapped)
        return found[members.index(member)]

    return factor


def by_link(drafts: Sequence[Draft]) -> Pricing | None:
    """Return the prices of drafts that have nothing in common but the link to the host."""
    factor = factors_of(drafts)
    if factor is None:
        return None
    return lambda member, busy: drafts[member].costs(factor(member, busy))


def lone(builder: Builder, model: str, part: Slice | None) -> Draft:
    """Draft one model that has a slice for itself, all of it resident."""
    return Draft(
        builder=builder,
        models=(model,),
        part=part,
        blocks=(_blocks_of_one(builder, model, part),),
        owns=(builder.cost(model, part),),
        loads=(None,),
    )


def side_by_side(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    *,
    rules: Rules | None = None,
    swapped: bool = False,
) -> Draft:
    """Draft models of any shape in turns; their weights are there at once, or `swapped` in and out.

    KV room is divided evenly: a model that waits for its turn keeps its blocks.
    """
    weights = [_weight_bytes(builder, model, part) for model in models]
    held = max(weights) if swapped else sum(weights)
    return Draft(
        builder=builder,
        models=tuple(models),
        part=part,
        blocks=_divided(builder, models, part, held, builder.deployment.kv_blocks),
        owns=tuple(builder.cost(model, part) for model in models),
        loads=(None,) * len(models),
        rules=rules,
    )


def offloaded(
    builder: Builder,
    models: Sequence[str],
    part: Slice,
    offloading: Offloading,
    *,
    rules: Rules | None = None,
    ratio: float = 0.0,
    non_expert_sets: int | None = None,
) -> Draft:
    """Draft variants of one shape whose experts may wait in host memory."""
    residency = reside(
        [builder.profile(model) for model in models],
        part,
        builder.device,
        precision=builder.precision(models[0]),
        offloading=offloading,
        kv_blocks=builder.deployment.kv_blocks,
        max_batched_tokens=builder.scheduler.max_batched_tokens,
        max_num_seqs=builder.scheduler.max_num_seqs,
        ratio=ratio,
        non_expert_sets=non_expert_sets,
    )
    owns = tuple(builder.cost(model, part) for model in models)
    loads = [
        None if residency.complete else builder.load(model, own, seen, offloading)
        for model, own, seen in zip(models, owns, residency.seen, strict=True)
    ]
    blocks = residency.demand.kv_blocks // len(models)
    return Draft(
        builder=builder,
        models=tuple(models),
        part=part,
        blocks=(blocks,) * len(models),
        owns=owns,
        loads=tuple(loads),
        rules=rules,
    )


def swapped_whole(
    builder: Builder, models: Sequence[str], part: Slice, offloading: Offloading
) -> tuple[Draft, list[int]]:
    """Draft models of which one is on the slice at a time, some of its experts in host memory.

    Returns the bytes of each that a change of model loads too. A model that waits for its turn
    keeps its KV blocks.
    """
    asked = builder.deployment.kv_blocks
    residencies = []
    for model in models:
        profile = builder.profile(model)
        longest = -(-profile.spec.max_position_embeddings // profile.kv.block_size)
        residencies.append(
            reside(
                [profile],
                part,
                builder.device,
                precision=builder.precision(model),
                offloading=offloading,
                kv_blocks=len(models) * (asked or longest),
                max_batched_tokens=builder.scheduler.max_batched_tokens,
                max_num_seqs=builder.scheduler.max_num_seqs,
            )
        )
    owns = tuple(builder.cost(model, part) for model in models)
    draft = Draft(
        builder=builder,
        models=tuple(models),
        part=part,
        blocks=tuple(each.demand.kv_blocks // len(models) for each in residencies),
        owns=owns,
        loads=tuple(
            None if each.complete else builder.load(model, own, each.seen[0], offloading)
            for model, own, each in zip(models, owns, residencies, strict=True)
        ),
    )
    held = [
        each.plan.non_expert_bytes + each.plan.shared_expert_bytes + each.plan.private_expert_bytes
        for each in residencies
    ]
    return draft, held


def _blocks_of_one(builder: Builder, model: str, part: Slice | None) -> int:
    """Return a lone model's KV blocks; CapacityError where they do not fit its slice."""
    own, asked = builder.profile(model).kv.num_blocks, builder.deployment.kv_blocks
    if part is None:
        return asked or own
    asked = asked or (own if part.whole else None)
    return _divided(builder, [model], part, _weight_bytes(builder, model, part), asked)[0]


def _divided(
    builder: Builder, models: Sequence[str], part: Slice, held_bytes: int, asked: int | None
) -> tuple[int, ...]:
    """Return each model's KV blocks beside the weights on a slice, or what is asked for.

    Raises CapacityError, with needs, has and remedy, where they do not fit.
    """
    each = [_block_bytes(builder, model, part) for model in models]
    room = ((1 - RESERVED_SHARE) * part.memory_bytes - held_bytes) / len(models)
    blocks = tuple(asked or max(1, int(room // block_bytes)) for block_bytes in each)
    place(
        " and ".join(models),
        weight_bytes=held_bytes,
        kv_blocks=blocks,
        block_bytes=each,
        block_size=builder.profile(models[0]).kv.block_size,
        device=part.name,
        device_bytes=part.memory_bytes,
    )
    return blocks


def _weight_bytes(builder: Builder, model: str, part: Slice) -> int:
    """Return what a model's weights take on each device of a slice [B]."""
    return Shard.of(builder.profile(model).spec, part).weight_bytes(builder.precision(model))


def _block_bytes(builder: Builder, model: str, part: Slice) -> int:
    """Return what a KV block takes on each device of a slice [B]."""
    profile = builder.profile(model)
    values = profile.kv.block_size * Shard.of(profile.spec, part).kv_values_per_token
    return FORMATS[builder.precision(model).kv].bytes_of(values)
