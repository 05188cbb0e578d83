"""A draft: a slice, the models on it and what their iterations cost, before it is a station.

Neighbours on one device slow each other down in ways that are only known when all are drafted. What
a draft asks of its slice's memory is known without any costs, and whether or not it fits.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from moesim.cost.iteration import Cost
from moesim.cost.link import stretch
from moesim.deployment import Offloading
from moesim.facts.memory import MemoryDemand
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder, Load, Store
from moesim.simulation.residency import Mask
from moesim.simulation.slice_memory import SliceMemory
from moesim.simulation.station import Crowd, Pricing, Station
from moesim.simulation.turns import Rules


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """Models on a slice.

    `memory` is None on a device whose memory is not known. `seen` are the expert copies that each
    model can use, None where it has all.
    """

    builder: Builder
    models: tuple[str, ...]
    part: Slice | None
    memory: SliceMemory | None
    blocks: tuple[int, ...]
    seen: tuple[Mask | None, ...]
    offloading: Offloading | None = None
    rules: Rules | None = None

    @cached_property
    def owns(self) -> tuple[Cost, ...]:
        """What iterations of each model cost with all its experts there."""
        return tuple(self.builder.cost(model, self.part, self.store) for model in self.models)

    @property
    def store(self) -> Store | None:
        """What the models' experts run from; None where each has its own."""
        demand = self.memory.demand if self.memory else None
        if self.offloading is None or not isinstance(demand, MemoryDemand):
            return None
        return Store(demand.expert_copies, demand.resident_copies == demand.expert_copies)

    @cached_property
    def loads(self) -> tuple[Load | None, ...]:
        """What absent experts add, model by model; None where none is absent."""
        return tuple(
            None
            if seen is None or self.offloading is None
            else self.builder.load(model, own, seen, self.offloading)
            for model, own, seen in zip(self.models, self.owns, self.seen, strict=True)
        )

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
        """Return the station; CapacityError where its memory does not hold what it should."""
        if self.memory is not None:
            self.memory.require_fit()
        replicas = tuple(
            self.builder.replica(model, cost, blocks)
            for model, cost, blocks in zip(self.models, self.costs(), self.blocks, strict=True)
        )
        rules = self.rules if len(self.models) > 1 else None
        return Station(
            replicas=replicas, models=self.models, rules=rules, crowd=crowd, member=member
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """The drafts of devices that have nothing to do with others.

    `pricing` says how neighbours slow each other down, if they do. In one `pool` all have the same
    memory.
    """

    drafts: Sequence[Draft]
    pricing: Callable[[Sequence[Draft]], Pricing | None] | None = None
    pool: bool = False

    def stations(self) -> list[Station]:
        """Return the stations; raises CapacityError where a slice does not hold what it should."""
        pricing = self.pricing(self.drafts) if self.pricing else None
        if pricing is None:
            return [draft.station() for draft in self.drafts]
        crowd = Crowd(pricing=pricing)
        return [draft.station(crowd, member) for member, draft in enumerate(self.drafts)]

    def memories(self) -> list[SliceMemory]:
        """Return what sits on each slice."""
        known = [draft.memory for draft in self.drafts if draft.memory is not None]
        return known[:1] if self.pool else known


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
