"""What stations are built with: replicas, what their iterations cost, what absent experts add."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any, NamedTuple

import numpy as np

from moesim.cost.iteration import Cost, CostModel
from moesim.cost.laden import GIVEN, LadenCost
from moesim.cost.offload import Loading, Loads, Misses, offload_table
from moesim.cost.parallel import Shard
from moesim.cost.profile import Profile
from moesim.cost.roofline import on_slice
from moesim.cost.stored import through_store
from moesim.deployment import Offloading, Scheduler, Simple
from moesim.errors import ScenarioError
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.slices import Slice
from moesim.scenario import PROFILED, Scenario
from moesim.serving.iterations import Floats
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits
from moesim.simulation.inputs import Inputs, precision_of, takes
from moesim.simulation.measured import swap_speed, with_measured_load
from moesim.simulation.replica import Replica
from moesim.simulation.residency import Mask, loading_of, misses_of
from moesim.units import GIB


def limits_of(scheduler: Scheduler, spec: ModelSpec, block_size: int) -> Limits:
    """Return what each replica of a model accepts."""
    swap_bytes = int(scheduler.swap_gib * GIB) if scheduler.preemption == "swap" else 0
    return Limits(
        max_num_seqs=scheduler.max_num_seqs,
        max_batched_tokens=scheduler.max_batched_tokens,
        max_model_len=spec.max_position_embeddings,
        policy=POLICIES[scheduler.policy],
        swap_blocks=swap_bytes // (block_size * spec.kv_bytes_per_token),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What absent experts add to a model's own cost on a slice."""

    own: Cost
    misses: Misses
    loading: Loading
    layers: int
    floor_s: float
    basis: str = GIVEN

    def beside(self, own: Cost) -> "Load":
        """Return the same with another cost of the model's own."""
        return self if own is self.own else replace(self, own=own)

    def cost(self, stretch: float = 1.0, cpu_stretch: float = 1.0) -> Cost:
        """Return the cost with copies that take `stretch` times as long as on an idle link.

        What the CPU computes takes `cpu_stretch` times as long as on an idle one.
        """
        loads = self.loads(stretch, cpu_stretch)
        extra_s = loads.wait_s + up_to(self.floor_s, self.own)
        return LadenCost(
            self.own, extra_s, name="expert loads", copies=loads.copies, basis=self.basis
        )

    def loads(self, stretch: float = 1.0, cpu_stretch: float = 1.0) -> Loads:
        """Return what iterations of 0, 1, ... tokens copy and wait for."""
        layer_s = np.array(self.own.tables.tokens) / self.layers
        return offload_table(
            self.misses, self.loading, layer_s=layer_s, stretch=stretch, cpu_stretch=cpu_stretch
        )

    @property
    def link_share(self) -> float:
        """The largest share of its time that an iteration needs the link for."""
        return self.loads().link_share(self._least_s)

    @property
    def cpu_share(self) -> float:
        """The largest share of its time that an iteration needs the CPU for."""
        return self.loads().cpu_share(self._least_s)

    @property
    def _least_s(self) -> Floats:
        """What iterations of 0, 1, ... tokens take at least if nothing is missed [s]."""
        return least_s(self.own) + up_to(self.floor_s, self.own)


class Store(NamedTuple):
    """Copies of experts that variants run from; `complete` is whether all are on the slice."""

    copies: int
    complete: bool


class Builder:
    """Builds the replicas of one deployment."""

    def __init__(self, scenario: Scenario, inputs: Inputs, deployment: Simple) -> None:
        self.deployment = deployment
        self.scheduler = deployment.scheduler
        self._scenario = scenario
        self._inputs = inputs
        self._counted: Counter[str] = Counter()
        self._costs: dict[tuple[str, Slice | None, Store | None], CostModel] = {}

    @property
    def device(self) -> Device:
        """The scenario's device; ScenarioError where it is only the one that was profiled."""
        if self._inputs.device is None:
            raise ScenarioError(
                f"deployment.kind: {self.deployment.kind} needs a hardware.device whose memory and "
                f"links are known, not {PROFILED!r}"
            )
        return self._inputs.device

    @property
    def has_device(self) -> bool:
        """Whether the scenario names a device, rather than the one that was profiled."""
        return self._inputs.device is not None

    def profile(self, model: str) -> Profile:
        """Return a model's profile on a whole device."""
        return self._inputs.profiles[model]

    def precision(self, model: str, weights: str | None = None) -> Precision:
        """Return the formats that a model is served in, or would be with other `weights`."""
        written = self._scenario.models[model]
        if weights is not None:
            written = written.model_copy(update={"precision": weights})
        return precision_of(written, self.profile(model).spec)

    def takes(self, model: str, weights: str) -> bool:
        """Whether a model's profile goes with other `weights`."""
        return takes(self._scenario, model, weights, self.profile(model), self.device)

    def common_precision(self, models: Sequence[str]) -> Precision:
        """Return the formats that some models are served in; ScenarioError where they differ.

        Their experts are counted, shared and dealt to the memory of a slice as copies of one size.
        """
        first, *others = models
        common = self.precision(first)
        for other in others:
            if self.precision(other) != common:
                raise ScenarioError(
                    f"models.{other}.precision: another than that of {first}; models whose experts "
                    "share the memory of a slice need one format: give both the same, or a slice "
                    "each (mig, dedicated), or take turns with time_shared"
                )
        return common

    def weight_bytes(self, model: str) -> int:
        """Return what a whole model takes [B]."""
        spec = self.profile(model).spec
        experts = spec.expert_positions * spec.expert_bytes(self.precision(model))
        return experts + self.non_expert_bytes(model)

    def non_expert_bytes(self, model: str) -> int:
        """Return what a model takes without its experts [B]."""
        return self.profile(model).spec.non_expert_bytes(self.precision(model))

    def swap_s(self, model: str, size: int, gb_per_s: float | None, *, what: str) -> float:
        """Return what it takes to load a model's `what`, `size` bytes, in place of another's [s].

        At the scenario's speed, else as the profile measured it, else as the datasheet has it.
        """
        field = "load_gb_per_s" if what == "whole_model" else "swap_gb_per_s"
        known = swap_speed(self.profile(model), gb_per_s, self.device, what=what, field=field)
        return size / known.bytes_per_s

    def cost(self, model: str, part: Slice | None, store: Store | None = None) -> Cost:
        """Return what a model's iterations cost on a slice; None is the device as profiled.

        `store` is what its experts are in, if they are those of several variants.
        """
        key = model, part, store
        if key not in self._costs:
            profile = self.profile(model)
            if store is not None:
                profile = through_store(profile, store.copies, complete=store.complete)
            if part is not None:
                profile = on_slice(profile, self.device, part, precision=self.precision(model))
            self._costs[key] = CostModel(
                profile,
                max_batched_tokens=self.scheduler.max_batched_tokens,
                max_num_seqs=self.scheduler.max_num_seqs,
            )
        return self._costs[key]

    def on_floor(self, own: Cost) -> Cost:
        """Return a cost that is nowhere less than what the serving software takes."""
        if not self.scheduler.floor_s:
            return own
        return LadenCost(own, up_to(self.scheduler.floor_s, own), name="software floor")

    def load(self, model: str, own: Cost, seen: Mask, offloading: Offloading) -> Load:
        """Return what absent experts add to a model's own cost; it can use the copies `seen`."""
        profile, precision = self.profile(model), self.precision(model)
        offloading, basis = with_measured_load(profile, offloading)
        loading = loading_of(offloading, profile.spec, precision, self.device)
        most = len(own.tables.tokens) - 1
        return Load(
            own=own,
            misses=misses_of(profile, seen, offloading, loading, most),
            loading=loading,
            layers=profile.spec.num_hidden_layers,
            floor_s=self.scheduler.floor_s,
            basis=basis,
        )

    def replica(
        self, model: str, cost: Cost, num_blocks: int, part: Slice | None = None
    ) -> Replica:
        """Return the next replica of a model; each device of a group copies its own heads' KV."""
        scheduler, profile = self.scheduler, self.profile(model)
        block_size = profile.kv.block_size
        tenants = {
            name: tenant
            for name, tenant in self._scenario.tenants.items()
            if tenant.model == model or tenant.model not in self._scenario.models
        }
        kv = FORMATS[self.precision(model).kv]
        values = Shard.of(profile.spec, part).kv_values_per_token
        block_bytes = kv.bytes_of(block_size * values)
        index = self._counted[model]
        self._counted[model] += 1
        kind = PrefixCache if scheduler.prefix_caching else KvCache
        return Replica(
            name=f"{model}/{index}",
            limits=limits_of(scheduler, profile.spec, block_size),
            cache=kind(num_blocks, block_size),
            cost=cost,
            order=self._order(len(tenants)),
            priorities=_by(tenants, "priority") if scheduler.order == "priority" else {},
            weights=_by(tenants, "weight") if scheduler.order == "fair" else {},
            swap_block_s=block_bytes / (scheduler.swap_gb_per_s or inf) / 1e9,
        )

    def _order(self, tenants: int) -> str:
        """Return the queue's order; with one tenant there is only the order of arrival."""
        shared = len(self._scenario.models) > 1 and self.scheduler.order == "priority"
        return self.scheduler.order if tenants > 1 or shared else "fcfs"


def _by(tenants: Mapping[str, Any], field: str) -> dict[str, Any]:
    return {name: getattr(tenant, field) for name, tenant in tenants.items()}


def least_s(own: Cost) -> Floats:
    """Return what iterations of 0, 1, ... tokens take at least: one sequence, no context [s].

    Without the head, so that a faster device cannot slow an iteration on the floor.
    """
    tables = own.tables
    return np.array(tables.tokens) + tables.sequences[1]


def up_to(floor_s: float, own: Cost) -> Floats:
    """Return what iterations of 0, 1, ... tokens lack of a floor, attention and head apart [s]."""
    lack_s = np.maximum(floor_s - least_s(own), 0.0)
    lack_s[0] = 0.0
    return lack_s
