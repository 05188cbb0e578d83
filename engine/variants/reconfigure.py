"""Reconfiguration: which variant's non-expert set the device has, and how it is replaced.

| way | on the device | a change of variant |
|---|---|---|
| `PackedSets` | one set | one asynchronous copy from a pinned arena |
| the same, `ahead` | two sets | that copy beside the iterations before, then one on the device |
| `LooseSets` | one set | a copy a tensor from pageable memory, as Imani et al. measured it |
| `AllSets` | all of them | nothing: skeletons point at different arenas |

Imani et al., ICML 2025, arXiv:2505.06481: about 1.2 s for about 3 GB in the third way. The sets may
as well be whole models, experts and all: what they reject as up to two minutes a change.
"""

import time
from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor

from engine.model.allocation import allocating
from engine.variants.arena import Packing
from engine.variants.host import HostMemory
from engine.variants.links import link_to

Weights = dict[str, Tensor]
"""A non-expert set, or all weights of a model, by the names of a decoder's parameters."""


class Sets(Protocol):
    """The non-expert sets of all variants."""

    def room(self, variant: int) -> Weights:
        """Return where the weights of a variant are to be read into."""

    def weights(self, variant: int) -> Weights:
        """Return where a variant finds its weights on the device once it is loaded."""

    @property
    def ahead(self) -> bool:
        """Whether it is of use to say who is next."""

    def expect(self, variant: int) -> None:
        """Begin to bring the weights of who is probably next, beside what is computed."""

    def load(self, variant: int) -> float:
        """Have a variant's weights there; return how long it took [s]."""


class Unforeseen:
    """A way in which nothing can be done before a variant is loaded."""

    ahead = False

    def expect(self, variant: int) -> None:
        """Do nothing."""


class AllSets(Unforeseen):
    """Every variant's set on the device, in an arena each."""

    def __init__(self, like: Mapping[str, Tensor], variants: int, device: torch.device) -> None:
        packing = Packing(like)
        self._sets = [packing.views(_on(device, packing.size)) for _ in range(variants)]

    def room(self, variant: int) -> Weights:
        """Return where the weights of a variant are to be read into."""
        return self._sets[variant]

    def weights(self, variant: int) -> Weights:
        """Return where a variant finds its weights on the device."""
        return self._sets[variant]

    def load(self, variant: int) -> float:
        """Do nothing, which takes no time."""
        return 0.0


class PackedSets:
    """One set on the device; each variant's waits in an arena of host memory.

    With `ahead` the device has a second arena, which the set that is expected is copied to on a
    stream of its own. What runs is not touched: the set gets to its place when it is loaded, so
    that pointers stay as they are.
    """

    def __init__(
        self,
        like: Mapping[str, Tensor],
        variants: int,
        device: torch.device,
        *,
        pageable: bool = False,
        ahead: bool = False,
    ) -> None:
        self._packing = Packing(like)
        size, what = self._packing.size, "host memory for a variant's weights"
        self._device = device
        self._loaded = _on(device, size)
        self._next = _on(device, size) if ahead else None
        self._link = link_to(device, slots=1)
        self._expected: int | None = None  # whose set is in `_next`, or on its way there
        self._variant: int | None = None
        self._waiting = [HostMemory(what, size, device, pageable=pageable) for _ in range(variants)]

    def room(self, variant: int) -> Weights:
        """Return where the weights of a variant are to be read into."""
        return self._packing.views(self._waiting[variant].bytes)

    def weights(self, variant: int) -> Weights:
        """Return where the loaded variant has its weights, whichever it is."""
        return self._packing.views(self._loaded)

    @property
    def ahead(self) -> bool:
        """Whether there is a second arena."""
        return self._next is not None

    def expect(self, variant: int) -> None:
        """Begin to copy a variant's arena to the second one, unless it is there already."""
        following, waiting = self._next, self._waiting[variant].bytes
        if following is None or variant in (self._variant, self._expected):
            return
        self._link.fill(0, lambda: following.copy_(waiting, non_blocking=True))
        self._expected = variant

    def load(self, variant: int) -> float:
        """Copy a variant's arena to its place on the device; return how long it took [s]."""
        began_s = time.perf_counter()
        if self._next is not None and variant == self._expected:
            self._link.wait(0)
            self._loaded.copy_(self._next)
            self._link.used(0)
        else:
            self._loaded.copy_(self._waiting[variant].bytes, non_blocking=True)
        self._variant = variant
        return _ended(self._device) - began_s


class LooseSets(Unforeseen):
    """One set on the device; each variant's tensors lie about in pageable host memory."""

    def __init__(self, like: Mapping[str, Tensor], variants: int, device: torch.device) -> None:
        packing = Packing(like)
        self._device = device
        self._loaded = packing.views(_on(device, packing.size))
        self._waiting = [
            {name: torch.empty_like(tensor, device="cpu") for name, tensor in like.items()}
            for _ in range(variants)
        ]

    def room(self, variant: int) -> Weights:
        """Return where the weights of a variant are to be read into."""
        return self._waiting[variant]

    def weights(self, variant: int) -> Weights:
        """Return where the loaded variant has its weights, whichever it is."""
        return self._loaded

    def load(self, variant: int) -> float:
        """Copy a variant's tensors to the device one by one; return how long it took [s]."""
        began_s = time.perf_counter()
        for name, tensor in self._waiting[variant].items():
            self._loaded[name].copy_(tensor)
        return _ended(self._device) - began_s


def _on(device: torch.device, size: int) -> Tensor:
    """Return bytes of a device."""
    remedy = "have one variant's on the device at a time, fewer experts, or a larger device"
    with allocating("a variant's weights", size, device, remedy):
        return torch.empty(size, dtype=torch.uint8, device=device)


def _ended(device: torch.device) -> float:
    """Return the time [s] at which the device has done what was asked of it."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
