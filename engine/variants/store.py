"""The expert store: copies of experts in the slots of a device, the others in host memory.

The slots are two tensors, gate_up (S, 2 I, H) and down (S, H, I). Where every copy has a slot, a
layer runs as ever, with slots in place of its experts' numbers. Where some are absent, its experts
run one after another: first those that are there, then the absent ones as they arrive, so that any
number of slots will do. The sum over a token's experts is taken in the router's order at the end,
whatever arrived when.

Shapes: T tokens, H hidden size, I inner size, E experts of a layer, k experts a token, V = T * k
visits, S slots, C copies.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.allocation import allocating
from engine.model.experts.loop import feed_forward
from engine.variants.arena import Packing
from engine.variants.caches import STAGING, Cache, Pinned, cache_of
from engine.variants.copies import Copies
from engine.variants.host import HostMemory
from engine.variants.links import link_to
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec


@dataclass(frozen=True, slots=True, kw_only=True)
class Residency:
    """Which expert copies stay on the device.

    `resident` is their share of all copies; `cache` says which, one of `caches.POLICIES`. Those of
    `pinned` have `staging` more slots for the others to pass through. With `prefetch` the router of
    the next layer is asked ahead, on what this layer's experts are given, and what it names is
    copied meanwhile (Eliseev and Mazur 2023, arXiv:2312.17238). `pageable` leaves host memory
    unpinned.
    """

    resident: float = 1.0
    cache: str = "pinned"
    staging: int = STAGING
    prefetch: bool = False
    pageable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.resident <= 1:
            raise EngineError(f"resident: {self.resident} must be between 0 and 1")
        if self.staging < 1:
            raise EngineError(f"staging: {self.staging} must be at least 1")


@dataclass(slots=True, kw_only=True)
class Statistics:
    """What the store has done since the beginning, where not every copy has a slot.

    An expert with tokens in an iteration is a hit, or a miss if its copy had to be brought for it;
    of the misses `prefetched` had been named ahead. `wasted` copies were named ahead and left
    before anybody used them.
    """

    hits: int = 0
    misses: int = 0
    prefetched: int = 0
    wasted: int = 0
    moved_bytes: int = 0
    waited_s: float = 0.0


class ExpertStore:
    """Keeps the copies of all variants; `room` is where each is to be read into."""

    def __init__(
        self, spec: ModelSpec, copies: Copies, residency: Residency, device: torch.device
    ) -> None:
        self.copies = copies
        self.prefetch = residency.prefetch
        resident = round(residency.resident * len(copies))
        self.complete = resident == len(copies)
        """Whether every copy has a slot of its own number."""
        self._cache = self._cache_for(resident, residency)
        self._link = link_to(device, self._cache.slots)
        self._statistics = Statistics()
        self._ahead: set[int] = set()
        self.gate_up, self.down = self._slots(spec, device)
        self._host, self._absent = self._in_host_memory(spec, device, residency.pageable)

    @property
    def statistics(self) -> Statistics:
        """What the store has done so far."""
        self._statistics.waited_s = self.waited_s
        return self._statistics

    @property
    def waited_s(self) -> float:
        """How long computing has waited for copies so far [s]; waits for what is being computed."""
        return self._link.waited_s()

    @property
    def hit(self) -> int:
        """Hits so far."""
        return self._statistics.hits

    @property
    def missed(self) -> int:
        """Misses so far."""
        return self._statistics.misses

    def room(self, copy: int) -> tuple[Tensor, Tensor]:
        """Return where a copy's gate_up (2 I, H) and down (H, I) are kept.

        Those that never leave have their slots alone, the others a place in host memory.
        """
        kept = self._cache.kept
        if copy < kept:
            return self.gate_up[copy], self.down[copy]
        return self._absent[0][copy - kept], self._absent[1][copy - kept]

    def open(self) -> None:
        """Fill the slots that have copies in host memory, once all copies have been read."""
        for copy, slot in self._cache.held():
            if copy < self._cache.kept:
                continue
            gate_up, down = self.room(copy)
            self.gate_up[slot].copy_(gate_up)
            self.down[slot].copy_(down)

    def run(self, copies: Row[int], x: Tensor, weights: Tensor, ids: Tensor) -> Tensor:
        """Add up the outputs (T, H) of each token's experts; `copies` are those of the layer (E,).

        Tokens are x (T, H), their experts' weights (T, k) in float32, their ids (T, k).
        """
        order = ids.flatten().argsort(stable=True)  # [V]
        counts = ids.flatten().bincount(minlength=len(copies)).tolist()
        tokens = order // ids.shape[1]  # [V]
        visits = x.new_empty(ids.numel(), x.shape[1])  # [V, H]
        for expert, start in self._in_turn(copies, counts):
            rows = slice(start, start + counts[expert])
            slot = self._ready(copies[expert])
            y = feed_forward(x[tokens[rows]], self.gate_up[slot], self.down[slot])
            self._link.used(slot)
            visits[order[rows]] = y
        return (visits.view(*ids.shape, -1) * weights.unsqueeze(-1)).sum(dim=1).to(x.dtype)

    def expect(self, copies: Iterable[int]) -> None:
        """Bring copies that may be used next, as many as there is room for."""
        absent = [copy for copy in copies if self._cache.find(copy) is None]
        for copy in absent[: self._cache.spare]:
            self._bring(copy)
            self._ahead.add(copy)

    def _in_turn(self, copies: Row[int], counts: Row[int]) -> list[tuple[int, int]]:
        """Return the experts that have visits and where these start, those that are there first."""
        starts, end = list[tuple[int, int]](), 0
        for expert, count in enumerate(counts):
            if count:
                starts.append((expert, end))
            end += count
        absent = {expert for expert, _ in starts if self._cache.find(copies[expert]) is None}
        return sorted(starts, key=lambda pair: pair[0] in absent)

    def _ready(self, copy: int) -> int:
        """Return the slot of a copy, once it is filled."""
        slot = self._cache.find(copy)
        if slot is None:
            self._statistics.misses += 1
            slot = self._bring(copy)
        elif copy in self._ahead:
            self._ahead.remove(copy)
            self._statistics.misses += 1
            self._statistics.prefetched += 1
        else:
            self._statistics.hits += 1
        self._link.wait(slot)
        return slot

    def _bring(self, copy: int) -> int:
        """Let an absent copy take a slot; return which."""
        slot, gone = self._cache.place(copy)
        if gone in self._ahead:
            self._ahead.remove(gone)
            self._statistics.wasted += 1
        self._move(copy, slot)
        return slot

    def _move(self, copy: int, slot: int) -> None:
        gate_up, down = self.room(copy)

        def move() -> None:
            self.gate_up[slot].copy_(gate_up, non_blocking=True)
            self.down[slot].copy_(down, non_blocking=True)

        self._link.fill(slot, move)
        self._statistics.moved_bytes += gate_up.nbytes + down.nbytes

    def _cache_for(self, resident: int, residency: Residency) -> Cache:
        layers = [copy.position.layer for copy in self.copies.all]
        cache = cache_of(residency.cache, layers, resident, residency.staging)
        return Pinned(resident, staging=0) if self.complete else cache

    def _slots(self, spec: ModelSpec, device: torch.device) -> tuple[Tensor, Tensor]:
        count, dtype = self._cache.slots, getattr(torch, spec.dtype)
        size = count * spec.expert_parameters * spec.dtype_bytes
        with allocating(f"{count} expert copies", size, device, "lower resident"):
            shapes = _shapes(spec, count)
            gate_up, down = (torch.empty(shape, dtype=dtype, device=device) for shape in shapes)
        return gate_up, down

    def _in_host_memory(
        self, spec: ModelSpec, device: torch.device, pageable: bool
    ) -> tuple[HostMemory, tuple[Tensor, Tensor]]:
        """Return one piece of host memory for all copies that may leave, and its tensors."""
        count, dtype = len(self.copies) - self._cache.kept, getattr(torch, spec.dtype)
        shapes = zip(("gate_up", "down"), _shapes(spec, count), strict=True)
        packing = Packing({name: torch.empty(s, dtype=dtype, device="meta") for name, s in shapes})
        what = f"host memory for {count} expert copies"
        host = HostMemory(what, packing.size, device, pageable=pageable)
        views = packing.views(host.bytes)
        return host, (views["gate_up"], views["down"])


def _shapes(spec: ModelSpec, count: int) -> tuple[tuple[int, int, int], tuple[int, int, int]]:
    hidden, inner = spec.hidden_size, spec.intermediate_size
    return (count, 2 * inner, hidden), (count, hidden, inner)
