"""Rooflines: profiles without measurements, and measured ones on a part of their device.

Each operation takes the longer of its arithmetic and its memory traffic (Williams, Waterman and
Patterson 2009), at the share of the datasheet's rates that kernels of its kind reach. The shares
are medians over the bf16 kernel tables of AIConfigurator (NVIDIA, Apache-2.0) for A100, H100 and
H200 (SXM), Mixtral's shapes:

| kernels | share of arithmetic, from 4096 tokens on | of bandwidth, few tokens |
|---|---|---|
| projections, head | 0.77 (0.66 to 0.83) | 0.65 (0.52 to 0.76) |
| experts | 0.5 (0.21 to 0.82) | 0.86 (0.55 to 0.89) |
| prefill attention | 0.56 (0.45 to 0.65) | - |
| decode attention | - | 0.84 (0.48 to 0.94) |

(in brackets the 10th to 90th percentile on any of the three). Launches, routing and the host cost
nothing here, so that small batches are taken for faster than they are. How far off this is, on the
tables' 14,556 GEMM and MoE rows, goes with the profile as its residuals.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product

from moesim.cost.profile import FORMAT, FORMAT_VERSION, Cell, Profile
from moesim.errors import ProfileError
from moesim.facts.hardware import Device
from moesim.facts.memory import RESERVED_SHARE
from moesim.facts.models import ModelSpec
from moesim.facts.slices import Slice

LINEAR_COMPUTE, LINEAR_BANDWIDTH = 0.77, 0.65
EXPERTS_COMPUTE, EXPERTS_BANDWIDTH = 0.5, 0.86
PREFILL_COMPUTE, DECODE_BANDWIDTH = 0.56, 0.84

RESIDUALS = (
    -0.08, -0.05, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.20, 0.25, 0.33, 0.41,
    0.52, 0.68, 0.96, 1.19,
)  # fmt: skip
"""Measured over expected duration, minus 1, at the 5th, 10th, ... 95th percentile of the rows."""

BLOCK_SIZE = 16
LONGEST_CONTEXT = 2**20
"""Context up to which attention is laid out; it is a straight line anyway [tokens]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """What a device, or a part of one, does at best."""

    flop_per_s: float
    bytes_per_s: float

    @classmethod
    def of(cls, device: Device) -> "Rates":
        """Take the datasheet's; ProfileError where it is silent."""
        for name in ("bf16_flop_per_s", "memory_bandwidth_bytes_per_s"):
            if getattr(device, name) is None:
                raise ProfileError(
                    f"hardware.device {device.name}: no {name}, which a roofline needs; add it to "
                    "the device's file, or profile on the device"
                )
        return cls(
            flop_per_s=device.bf16_flop_per_s or 0.0,
            bytes_per_s=device.memory_bandwidth_bytes_per_s or 0.0,
        )

    def seconds(self, flop: float, moved: float, compute: float, bandwidth: float) -> float:
        """Return the longer of arithmetic and traffic, at these shares of the rates [s]."""
        return max(flop / (self.flop_per_s * compute), moved / (self.bytes_per_s * bandwidth))


Durations = Mapping[str, Callable[..., float]]
"""By operation: seconds at the coordinates of its cells."""


def expected_s(spec: ModelSpec, rates: Rates) -> Durations:
    """Return what each operation that computes or reads takes at best; the others cost nothing."""
    kv_bytes = spec.kv_bytes_per_token / spec.num_hidden_layers
    head = spec.vocab_size * spec.hidden_size
    width = spec.num_attention_heads * spec.head_dim

    def linear(parameters: int, count: float) -> float:
        flop, moved = 2 * parameters * count, parameters * spec.dtype_bytes
        return rates.seconds(flop, moved, LINEAR_COMPUTE, LINEAR_BANDWIDTH)

    def experts(tokens: float, distinct: float) -> float:
        flop = 2 * spec.expert_parameters * spec.num_experts_per_tok * tokens
        moved = spec.expert_parameters * spec.dtype_bytes * distinct
        return rates.seconds(flop, moved, EXPERTS_COMPUTE, EXPERTS_BANDWIDTH)

    def decode(sequences: float, context: float) -> float:
        return kv_bytes * context / (rates.bytes_per_s * DECODE_BANDWIDTH)

    def prefill(new: float, cached: float) -> float:
        flop = 4 * width * new * (cached + new / 2)  # scores and values, the masked half left out
        moved = kv_bytes * (cached + new)
        return rates.seconds(flop, moved, PREFILL_COMPUTE, DECODE_BANDWIDTH)

    return {
        "projections": lambda tokens: linear(spec.attention_parameters, tokens),
        "experts": experts,
        "attention_decode": decode,
        "attention_prefill": prefill,
        "head": lambda sequences: linear(head, sequences),
    }


def roofline_profile(
    spec: ModelSpec, device: Device, *, max_batched_tokens: int, max_num_seqs: int
) -> Profile:
    """Return a profile of rooflines for a decoder with experts in every layer, whole in 16 bit.

    Raises ProfileError where the datasheet or the architecture does not allow for one.
    """
    if not spec.num_local_experts or spec.num_encoder_layers or spec.dense_layers:
        raise ProfileError(
            f"profile roofline: knows decoders with experts in every layer, not {spec.model_type}; "
            "profile the model"
        )
    durations = expected_s(spec, Rates.of(device))
    grid = _grid(spec, max_batched_tokens, max_num_seqs)
    share = spec.num_experts_per_tok / spec.num_local_experts
    return Profile.model_validate(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": spec.to_config(),
            "max_batched_tokens": max_batched_tokens,
            "kv": {
                "block_size": BLOCK_SIZE,
                "num_blocks": max(1, blocks_beside(spec, device.memory_bytes, BLOCK_SIZE)),
            },
            "router": {
                "popularity": [[share] * spec.num_local_experts] * spec.num_hidden_layers,
                "tokens": 1,
                "distinct": [],
            },
            "operations": {
                name: _cells(durations.get(name, _nothing), points) for name, points in grid.items()
            },
            "provenance": _provenance(spec, device),
            "verdict": {
                "stable": True,
                "unstable_cells": 0,
                "cells": 0,
                "iteration_error_p50": 0.125,
                "iteration_error_p90": 0.49,
                "iteration_residuals": list(RESIDUALS),
                "drift": 0.0,
                "warnings": ["nothing was measured"],
            },
            "source": "roofline",
        }
    )


def on_slice(profile: Profile, device: Device, part: Slice) -> Profile:
    """Return a profile of a whole device as it would be on a part of it.

    Each cell is scaled by the ratio of its rooflines; what has none (launches, routing, the host)
    stays as it was. Raises ProfileError where the datasheet does not allow for that.
    """
    if part.whole:
        return profile
    full = Rates.of(device)
    own = Rates(
        flop_per_s=full.flop_per_s * part.compute_share,
        bytes_per_s=full.bytes_per_s * part.bandwidth_share,
    )
    before, after = expected_s(profile.spec, full), expected_s(profile.spec, own)
    operations = {
        name: [_scaled(cell, before[name], after[name]) for cell in cells]
        if name in before
        else cells
        for name, cells in profile.operations.items()
    }
    source = "scaled" if profile.source == "measured" else profile.source
    return profile.model_copy(update={"operations": operations, "source": source})


def blocks_beside(spec: ModelSpec, memory_bytes: int, block_size: int) -> int:
    """Return the KV blocks that fit beside the weights; 0 or less where none does."""
    free = (1 - RESERVED_SHARE) * memory_bytes - spec.weight_bytes
    return int(free // (block_size * spec.kv_bytes_per_token))


def _scaled(cell: Cell, before: Callable[..., float], after: Callable[..., float]) -> Cell:
    was = before(*cell.at)
    factor = after(*cell.at) / was if was else 1.0
    return cell.model_copy(update={"median_s": cell.median_s * factor})


def _nothing(*_: float) -> float:
    return 0.0


def _grid(
    spec: ModelSpec, max_batched_tokens: int, max_num_seqs: int
) -> dict[str, list[tuple[int, ...]]]:
    """Return the points of each operation; curves between them are straight."""
    tokens, sequences = _doubling(max_batched_tokens), _doubling(max_num_seqs)
    lone: list[tuple[int, ...]] = [(1,)]
    return {
        "host": lone,
        "embedding": lone,
        "projections": [(count,) for count in tokens],
        "router": lone,
        "experts": list(product(tokens, range(1, spec.num_local_experts + 1))),
        "attention_decode": list(product(sequences, (0, LONGEST_CONTEXT))),
        "attention_prefill": list(product(tokens[1:] or [2], _contexts())),
        "head": [(count,) for count in sequences],
        "sampling": lone,
    }


def _doubling(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`, which is the last."""
    powers = [2**power for power in range(most.bit_length())]
    return [size for size in powers if size < most] + [most]


def _contexts() -> list[int]:
    return [0, *(2**power for power in range(6, 18))]


def _cells(
    seconds: Callable[..., float], points: Sequence[tuple[int, ...]]
) -> list[dict[str, object]]:
    return [
        {"at": point, "median_s": seconds(*point), "spread": 0.0, "repeats": 1} for point in points
    ]


def _provenance(spec: ModelSpec, device: Device) -> dict[str, object]:
    return {
        "device": device.name,
        "device_kind": device.kind,
        "host_hash": "",
        "software": {},
        "threads": 1,
        "date": "",
        "model_source": spec.model_type,
        "model_digest": "",
        "duration_s": 0.0,
    }
