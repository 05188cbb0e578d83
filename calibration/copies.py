"""Copies to the device, timed alone: absent experts one or several at a time, swaps of layers.

On CUDA experts wait in pinned memory or, for comparison, in pageable memory. A CPU copies within
its own memory, where nothing is pinned: those rows say `host`. What is timed is what the engine
does (`engine.variants`): a copy an expert matrix on a stream of its own, one copy of a packed set.
"""

import time
from collections.abc import Mapping
from itertools import cycle, product

import torch
from torch import Tensor

from calibration.rounds import FEWEST_ROUNDS
from calibration.timing import median_and_spread
from engine.model.decoder import Decoder
from engine.variants.host import HostMemory
from engine.variants.reconfigure import LooseSets, PackedSets, Sets
from engine.variants.skeleton import meta_weights
from moesim.cost.profile import ExpertLoad, Swap
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec

PARTS = (1, 2, 4)
"""The sizes that are timed: an expert's whole, half and quarter, as of narrower formats."""

IN_FLIGHT = (1, 2, 4)
VARIANTS = 2
ROUNDS = 9

SWAP_ROUNDS = FEWEST_ROUNDS
"""Whole models take seconds a copy, and long copies scatter little."""


def expert_loads(
    spec: ModelSpec, device: torch.device, rounds: int = ROUNDS, slots: int = 2
) -> list[ExpertLoad]:
    """Time loads by size and by how many are asked for at once.

    Each load is of another expert than the one before, among enough of them that the caches of a
    CPU do not hold them all; they go to the store's staging `slots` in turn.
    """
    whole = spec.expert_parameters * spec.dtype_bytes
    waiting = max(16, -(-(64 << 20) // whole))  # 64 MiB: more than most last-level caches
    rows = []
    for memory, pageable in _memories(device):
        host = HostMemory("experts to be timed", whole * waiting, device, pageable=pageable)
        host.bytes.fill_(1)  # touches every page
        room = torch.zeros(slots, whole, dtype=torch.uint8, device=device)
        waits = cycle(host.bytes.view(waiting, whole).unbind())
        samples: dict[tuple[int, int], list[float]] = {}
        for turn, part, count in product(range(rounds + 1), PARTS, IN_FLIGHT):
            size = whole // part
            pairs = [(room[n % slots, :size], next(waits)[:size]) for n in range(count)]
            taken_s = _copied_s(pairs, device)
            if turn:
                samples.setdefault((size, count), []).append(taken_s / count)
        for (size, count), taken in samples.items():
            middle_s, spread = median_and_spread(taken)
            content = {"memory": memory, "how": "alone", "expert_bytes": size, "in_flight": count}
            content |= {"median_s": middle_s, "spread": round(spread, 4), "repeats": len(taken)}
            rows.append(ExpertLoad.model_validate(content))
    return rows


def swaps(
    spec: ModelSpec,
    device: torch.device,
    rounds: int = SWAP_ROUNDS,
    notes: list[str] | None = None,
) -> list[Swap]:
    """Time the replacing of a non-expert set and of a whole model, packed and tensor by tensor.

    What has no room is told in `notes`; without these it is an EngineError.
    """
    wholes = {name: torch.empty_like(w) for name, w in Decoder(spec, "meta").named_parameters()}
    rows = []
    for what, like in (("non_expert_set", meta_weights(spec)), ("whole_model", wholes)):
        try:
            rows += _swaps_of(what, like, device, rounds)
        except EngineError as wrong:
            if notes is None:
                raise
            notes.append(f"swaps of a {what.replace('_', ' ')}: not measured: {wrong}")
    return rows


def _swaps_of(
    what: str, like: Mapping[str, Tensor], device: torch.device, rounds: int
) -> list[Swap]:
    """Swap to and fro in every way, all ways in every round, after one that is not counted."""
    ways: dict[tuple[str, str], Sets] = {}
    for memory, pageable in _memories(device):
        ways["packed", memory] = PackedSets(like, VARIANTS, device, pageable=pageable)
    loose = "pageable" if device.type == "cuda" else "host"
    ways["per_tensor", loose] = LooseSets(like, VARIANTS, device)
    samples: dict[tuple[str, str], list[float]] = {key: [] for key in ways}
    for sets in ways.values():
        for variant in range(VARIANTS):
            for weight in sets.room(variant).values():
                weight.fill_(variant)  # touches every page
    for turn in range(rounds + 1):
        for key, sets in ways.items():
            taken_s = sets.load(turn % VARIANTS)
            if turn:
                samples[key].append(taken_s)
    size = sum(weight.nbytes for weight in like.values())
    rows = []
    for (way, where), taken in samples.items():
        middle_s, spread = median_and_spread(taken)
        content = {"what": what, "way": way, "memory": where, "set_bytes": size}
        content |= {"tensors": len(like), "median_s": middle_s, "spread": round(spread, 4)}
        rows.append(Swap.model_validate({**content, "repeats": len(taken)}))
    return rows


def _memories(device: torch.device) -> tuple[tuple[str, bool], ...]:
    """Return what host memory is called, and whether it is left unpinned."""
    if device.type == "cuda":
        return ("pinned", False), ("pageable", True)
    return (("host", True),)


def _copied_s(pairs: list[tuple[Tensor, Tensor]], device: torch.device) -> float:
    """Return how long copies take that are asked for at once, until the last has ended [s]."""
    began_s = time.perf_counter()
    for to, source in pairs:
        to.copy_(source, non_blocking=True)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - began_s
