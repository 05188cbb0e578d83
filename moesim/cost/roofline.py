"""A profile without measurements: what a datasheet lets one expect, marked as such.

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

from collections.abc import Callable
from dataclasses import dataclass

from moesim.cost.profile import FORMAT, FORMAT_VERSION, Profile
from moesim.errors import CapacityError, ProfileError
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.units import format_bytes

LINEAR_COMPUTE, LINEAR_BANDWIDTH = 0.77, 0.65
EXPERTS_COMPUTE, EXPERTS_BANDWIDTH = 0.5, 0.86
PREFILL_COMPUTE, DECODE_BANDWIDTH = 0.56, 0.84

RESIDUALS = (
    -0.08, -0.05, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.20, 0.25, 0.33, 0.41,
    0.52, 0.68, 0.96, 1.19,
)  # fmt: skip
"""Measured over expected duration, minus 1, at the 5th, 10th, ... 95th percentile of the rows."""

KV_SHARE = 0.9
"""Share of the device's memory that weights and KV cache fill together, as vLLM's default."""

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


def roofline_profile(
    spec: ModelSpec, device: Device, *, max_batched_tokens: int, max_num_seqs: int
) -> Profile:
    """Return a profile of rooflines for a decoder with experts in every layer, whole in 16 bit.

    Raises ProfileError where the datasheet or the architecture does not allow for one,
    CapacityError where the weights do not fit.
    """
    if not spec.num_local_experts or spec.num_encoder_layers or spec.dense_layers:
        raise ProfileError(
            f"profile roofline: knows decoders with experts in every layer, not {spec.model_type}; "
            "profile the model"
        )
    rates = Rates.of(device)
    share = spec.num_experts_per_tok / spec.num_local_experts
    return Profile.model_validate(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": spec.to_config(),
            "max_batched_tokens": max_batched_tokens,
            "kv": {"block_size": BLOCK_SIZE, "num_blocks": _blocks(spec, device)},
            "router": {
                "popularity": [[share] * spec.num_local_experts] * spec.num_hidden_layers,
                "tokens": 1,
                "distinct": [],
            },
            "operations": _operations(spec, rates, max_batched_tokens, max_num_seqs),
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


def _blocks(spec: ModelSpec, device: Device) -> int:
    free = KV_SHARE * device.memory_bytes - spec.weight_bytes
    blocks = int(free // (BLOCK_SIZE * spec.kv_bytes_per_token))
    if blocks < 1:
        raise CapacityError(
            f"hardware.device {device.name}: {KV_SHARE:.0%} of {format_bytes(device.memory_bytes)} "
            f"do not hold weights of {format_bytes(spec.weight_bytes)} and a KV cache; take a "
            "larger device"
        )
    return blocks


def _operations(
    spec: ModelSpec, rates: Rates, max_batched_tokens: int, max_num_seqs: int
) -> dict[str, list[dict[str, object]]]:
    tokens = _doubling(max_batched_tokens)
    sequences = _doubling(max_num_seqs)
    experts = spec.num_local_experts
    kv_bytes = spec.kv_bytes_per_token / spec.num_hidden_layers
    head = spec.vocab_size * spec.hidden_size
    width = spec.num_attention_heads * spec.head_dim

    def linear(parameters: int, count: float) -> float:
        flop, moved = 2 * parameters * count, parameters * spec.dtype_bytes
        return rates.seconds(flop, moved, LINEAR_COMPUTE, LINEAR_BANDWIDTH)

    def visits(count: float, distinct: float) -> float:
        flop = 2 * spec.expert_parameters * spec.num_experts_per_tok * count
        moved = spec.expert_parameters * spec.dtype_bytes * distinct
        return rates.seconds(flop, moved, EXPERTS_COMPUTE, EXPERTS_BANDWIDTH)

    def decode(_: float, context: float) -> float:
        return kv_bytes * context / (rates.bytes_per_s * DECODE_BANDWIDTH)

    def prefill(new: float, cached: float) -> float:
        flop = 4 * width * new * (cached + new / 2)  # scores and values, the mask's half left out
        moved = kv_bytes * (cached + new)
        return rates.seconds(flop, moved, PREFILL_COMPUTE, DECODE_BANDWIDTH)

    return {
        "host": _cells(lambda _: 0.0, [1]),
        "embedding": _cells(lambda _: 0.0, [1]),
        "projections": _cells(lambda count: linear(spec.attention_parameters, count), tokens),
        "router": _cells(lambda _: 0.0, [1]),
        "experts": _cells(visits, tokens, list(range(1, experts + 1))),
        "attention_decode": _cells(decode, sequences, [0, LONGEST_CONTEXT]),
        "attention_prefill": _cells(prefill, _doubling(max_batched_tokens)[1:] or [2], _contexts()),
        "head": _cells(lambda count: linear(head, count), sequences),
        "sampling": _cells(lambda _: 0.0, [1]),
    }


def _doubling(most: int) -> list[int]:
    """Return 1, 2, 4, ... up to `most`, which is the last."""
    powers = [2**power for power in range(most.bit_length())]
    return [size for size in powers if size < most] + [most]


def _contexts() -> list[int]:
    return [0, *(2**power for power in range(6, 18))]


def _cells(seconds: Callable[..., float], *axes: list[int]) -> list[dict[str, object]]:
    points = [(x,) for x in axes[0]]
    if len(axes) == 2:
        points = [(x, y) for x in axes[0] for y in axes[1]]  # type: ignore[misc]
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
