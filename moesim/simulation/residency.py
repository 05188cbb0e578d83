"""What stays on a slice: KV blocks, expert copies, and what an absent expert costs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from moesim.cost.offload import Loading, Misses, Pinned, expected_misses
from moesim.cost.profile import Profile
from moesim.deployment import Offloading
from moesim.errors import ScenarioError
from moesim.facts.hardware import Device
from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.remedies import fill_with_blocks, fill_with_experts

Mask = NDArray[np.bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """What one slice holds of its models.

    `seen` are the copies that each can use, (L, E); at the positions `shared`, (L, E), one copy is
    for all.
    """

    demand: MemoryDemand
    plan: MemoryPlan
    seen: tuple[Mask, ...]
    shared: Mask

    @property
    def complete(self) -> bool:
        """Whether every expert is on the slice."""
        return self.demand.resident_copies == self.demand.expert_copies


def reside(
    profiles: Sequence[Profile],
    slice_bytes: int,
    *,
    precision: Precision,
    offloading: Offloading,
    kv_blocks: int | None,
    max_batched_tokens: int,
    max_num_seqs: int,
    reserved_share: float,
    ratio: float = 0.0,
    non_expert_sets: int | None = None,
) -> Residency:
    """Lay out variants of one shape on a slice, whether they fit or not.

    Unless told, the KV cache of each holds one longest sequence, as `moesim memory` takes it;
    `topped_up` adds what is free besides.
    Raises ScenarioError where the shapes differ.
    """
    spec, count = profiles[0].spec, len(profiles)
    block_size = profiles[0].kv.block_size
    _same_shape([profile.spec for profile in profiles])
    blocks = kv_blocks or -(-spec.max_position_embeddings // block_size)
    fit = offloading.resident == "fit"
    demand = MemoryDemand(
        spec=spec,
        slice_bytes=slice_bytes,
        precision=precision,
        kv_blocks=count * blocks,
        block_size=block_size,
        variants=count,
        ratio=ratio,
        resident=1.0 if offloading.resident == "fit" else offloading.resident,
        non_expert_sets=non_expert_sets,
        max_batched_tokens=max_batched_tokens,
        max_num_seqs=max_num_seqs,
        reserved_share=reserved_share,
    )
    if fit:
        demand = fill_with_experts(demand)
    shared = _shared(demand, np.shape(profiles[0].router.popularity))
    return Residency(
        demand=demand,
        plan=plan_memory(demand),
        seen=_seen(demand, profiles, shared.ravel()),
        shared=shared,
    )


def topped_up(residency: Residency, most: int | None) -> Residency:
    """Return the same with what is free in KV blocks, an even part a model; beyond none `most`."""
    demand = fill_with_blocks(residency.demand, most)
    return replace(residency, demand=demand, plan=plan_memory(demand))


def misses_of(
    model: Profile, seen: Mask, offloading: Offloading, loading: Loading, most_tokens: int
) -> Misses:
    """Return what iterations of a model miss, that can use the copies `seen` (L, E).

    What a cache of the last used holds depends on what ran before (`moesim.simulation.shelf`): this
    is what they miss if nothing is there.
    """
    kept = seen & (not last_used(offloading))
    resident = Pinned(model.router.popularity, kept)
    return expected_misses(resident, loading, max_batched_tokens=most_tokens)


def last_used(offloading: Offloading) -> bool:
    """Whether the copies that were used last stay."""
    return offloading.cache in {"lru", "lru-by-layer"}


def loading_of(
    offloading: Offloading, spec: ModelSpec, precision: Precision, device: Device
) -> Loading:
    """Return how absent experts are got at; ScenarioError where no bandwidth is known."""
    return Loading(
        expert_bytes=spec.expert_bytes(precision),
        bytes_per_s=bandwidth_of(offloading.load_gb_per_s, device, "experts.load_gb_per_s"),
        latency_s=offloading.load_latency_s,
        overlap=offloading.overlap,
        prefetch_accuracy=offloading.prefetch_accuracy,
        prefetch_waste=offloading.prefetch_waste,
        cpu_s_per_token_expert=offloading.cpu_s_per_token_expert,
    )


def bandwidth_of(gb_per_s: float | None, device: Device, field: str) -> float:
    """Return a bandwidth to the device [B/s], its pinned copies' if none is given."""
    if gb_per_s is not None:
        return gb_per_s * 1e9
    if device.pcie_pinned_bytes_per_s is None:
        raise ScenarioError(
            f"deployment.{field}: not given, and hardware.device {device.name} has no "
            "pcie_pinned_bytes_per_s; measure it and give one of them"
        )
    return device.pcie_pinned_bytes_per_s


def _same_shape(specs: Sequence[ModelSpec]) -> None:
    for spec in specs[1:]:
        if replace(spec, max_position_embeddings=specs[0].max_position_embeddings) != specs[0]:
            raise ScenarioError(
                "deployment: models that share a slice so must be variants of one shape; "
                "use time_shared, mig or mps for different ones"
            )


def _shared(demand: MemoryDemand, shape: tuple[int, ...]) -> Mask:
    """Return the positions with one copy for all, of shape (L, E).

    Which are similar is not known here: they are taken to lie evenly over the model.
    """
    count, shared = demand.shared_positions, np.zeros(shape, dtype=bool)
    places = np.floor(np.arange(count) * shared.size / max(1, count))
    shared.flat[places.astype(int)] = True
    return shared


def _seen(demand: MemoryDemand, profiles: Sequence[Profile], shared: Mask) -> tuple[Mask, ...]:
    """Return the resident copies that each variant can use, (L, E) each.

    Those at `shared` positions (L E,) are resident first, then private ones, dealt to the variants
    in turn; of either kind the most popular first.
    """
    popularity = [np.asarray(profile.router.popularity) for profile in profiles]
    shape, count = popularity[0].shape, demand.shared_positions
    left = demand.resident_copies
    common = _most_popular(np.sum(popularity, axis=0).ravel(), shared, min(left, count))
    left -= int(common.sum())
    seen = []
    for place, shares in enumerate(popularity):
        own = left // len(profiles) + (place < left % len(profiles))
        private = _most_popular(shares.ravel(), ~shared, own)
        seen.append((common | private).reshape(shape))
    return tuple(seen)


def _most_popular(shares: NDArray[np.float64], among: Mask, count: int) -> Mask:
    """Return the `count` most popular of some positions; of equal ones, spread over the model."""
    candidates = np.flatnonzero(among)
    # Ties are broken by a stride that visits layers evenly (the golden ratio's).
    spread = (np.arange(len(candidates)) * 0.6180339887498949) % 1.0
    order = np.lexsort((spread, -np.round(shares[candidates], 12)))
    kept = np.zeros(len(shares), dtype=bool)
    kept[candidates[order[:count]]] = True
    return kept
