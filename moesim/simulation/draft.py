"""A draft: a slice, the models on it and what their iterations cost, before it is a station.

Neighbours on one device slow each other down in ways that are only known when all are drafted. What
a draft asks of its slice's memory is known without any costs, and whether or not it fits.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

from moesim.cost.iteration import Cost
from moesim.cost.recency import Recency
from moesim.deployment import Offloading
from moesim.facts.slices import Slice
from moesim.simulation.builder import Builder, Load, Store
from moesim.simulation.crowd import Crowd
from moesim.simulation.residency import Mask, Residency, last_used
from moesim.simulation.shelf import RecentCost, Shelf
from moesim.simulation.slice_memory import SliceMemory
from moesim.simulation.station import Station
from moesim.simulation.turns import Rules, alone


@dataclass(frozen=True, kw_only=True, eq=False)
class Draft:
    """Models on a slice.

    `memory` is None on a device whose memory is not known. `seen` are the expert copies that each
    model can use, None where it has all. `stores` are what each model's experts run from, None
    where they are simply the model's. `residencies` are how their experts were laid out, all
    together or one for each.
    """

    builder: Builder
    models: tuple[str, ...]
    part: Slice | None
    memory: SliceMemory | None
    blocks: tuple[int, ...]
    seen: tuple[Mask | None, ...]
    stores: tuple[Store | None, ...]
    residencies: tuple[Residency, ...] = ()
    offloading: Offloading | None = None
    rules: Rules | None = None

    @cached_property
    def owns(self) -> tuple[Cost, ...]:
        """What iterations of each model cost with all its experts there."""
        return tuple(
            self.builder.cost(model, self.part, store)
            for model, store in zip(self.models, self.stores, strict=True)
        )

    @cached_property
    def loads(self) -> tuple[Load | None, ...]:
        """What absent experts add, model by model; None where none is absent."""
        return tuple(
            None
            if seen is None or self.offloading is None
            else self.builder.load(model, own, seen, self.offloading)
            for model, own, seen in zip(self.models, self.owns, self.seen, strict=True)
        )

    def laid_out(self) -> Iterator[tuple[tuple[str, ...], Residency]]:
        """Yield how experts were laid out, with the models whose they are."""
        begin = 0
        for residency in self.residencies:
            count = len(residency.seen)
            yield self.models[begin : begin + count], residency
            begin += count

    @property
    def link_share(self) -> float:
        """The largest share of its time that an iteration of any model needs the host link for."""
        return max((load.link_share for load in self.loads if load), default=0.0)

    @property
    def cpu_share(self) -> float:
        """The largest share of its time that an iteration of any model needs the host's CPU for."""
        return max((load.cpu_share for load in self.loads if load), default=0.0)

    @property
    def copies(self) -> bool:
        """Whether a change of model copies anything over the host link."""
        return len(self.models) > 1 and self.rules is not None and self.rules.copies

    @property
    def overlaps(self) -> bool:
        """Whether copies go on while a model computes."""
        return any(load.loading.overlap for load in self.loads if load)

    def costs(
        self, link: float = 1.0, cpu: float = 1.0, owns: Sequence[Cost] | None = None
    ) -> tuple[Cost, ...]:
        """Return what iterations cost, model by model.

        Copies are stretched by the factor `link`, what the CPU computes by `cpu`. `owns` stand in
        for the models' own costs.
        """
        return tuple(
            self._laden(load.beside(own), link, cpu) if load else self.builder.on_floor(own)
            for own, load in zip(owns or self.owns, self.loads, strict=True)
        )

    def _laden(self, load: Load, link: float, cpu: float) -> Cost:
        """Return what a model's iterations cost with what its absent experts add."""
        usual = load.cost(link, cpu)
        if self.offloading is None or not last_used(self.offloading):
            return usual
        return RecentCost(usual, lambda misses: replace(load, misses=misses).cost(link, cpu))

    def _shelves(self) -> tuple[Shelf, ...]:
        """Return the caches of what was used last, with the models that have each."""
        if self.offloading is None or not last_used(self.offloading):
            return ()
        shelves, begin = [], 0
        for residency in self.residencies:
            places = range(begin, begin + len(residency.seen))
            loads = [load for load in self.loads[places.start : places.stop] if load]
            begin = places.stop
            if residency.complete:
                continue
            recency = Recency(
                [self.builder.profile(self.models[place]).router.popularity for place in places],
                residency.shared,
                residency.demand.resident_copies,
                [load.loading for load in loads],
                most_tokens=len(loads[0].own.tables.tokens) - 1,
                by_layer=self.offloading.cache == "lru-by-layer",
            )
            shelves.append(Shelf(recency=recency, places=tuple(places)))
        return tuple(shelves)

    def station(self, crowd: Crowd | None = None, member: int = 0, *, beside: int = 0) -> Station:
        """Return the station; CapacityError where its memory does not hold what it should."""
        if self.memory is not None:
            self.memory.require_fit()
        replicas = tuple(
            self.builder.replica(model, cost, blocks, self.part)
            for model, cost, blocks in zip(self.models, self.costs(), self.blocks, strict=True)
        )
        shelves = self._shelves()
        rules = self.rules if len(self.models) > 1 else alone() if shelves else None
        return Station(
            replicas=replicas,
            models=self.models,
            rules=rules,
            crowd=crowd,
            member=member,
            beside=beside,
            shelves=shelves,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Drafted:
    """The drafts of devices that have nothing to do with others.

    `crowding` says how neighbours slow each other down, if they do. In one `pool` all have the same
    memory.
    """

    drafts: Sequence[Draft]
    crowding: Callable[[Sequence[Draft]], Crowd | None] | None = None
    pool: bool = False

    def stations(self) -> list[Station]:
        """Return the stations; raises CapacityError where a slice does not hold what it should."""
        crowd = self.crowding(self.drafts) if self.crowding else None
        beside = len(self.drafts) - 1 if self.crowding else 0
        return [
            draft.station(crowd, member, beside=beside) for member, draft in enumerate(self.drafts)
        ]

    def memories(self) -> list[SliceMemory]:
        """Return what sits on each slice."""
        known = [draft.memory for draft in self.drafts if draft.memory is not None]
        return known[:1] if self.pool else known
