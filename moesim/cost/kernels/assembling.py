"""A model's profile, added up from a device's kernels (`operations` says of which).

Each rank of a group is looked up by the shapes that it computes itself. Parts of one device are
scaled (`moesim.cost.roofline.on_slice`).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from moesim.cost.expected import Popularity, uniform_popularity
from moesim.cost.kernels.operations import Operations
from moesim.cost.kernels.sizes import Sizes
from moesim.cost.kernels.tables import SPIKES, Kernels
from moesim.cost.kernels.uncertainty import iteration_residuals
from moesim.cost.profile import FORMAT, FORMAT_VERSION, Cell, Profile
from moesim.cost.roofline import BLOCK_SIZE, blocks_beside, on_slice
from moesim.errors import ProfileError
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice, whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Assembly:
    """What draws a model's profile from kernels, on a device or on each device of a group."""

    kernels: Kernels
    spec: ModelSpec
    device: Device
    precision: Precision
    max_batched_tokens: int
    max_num_seqs: int

    def on(self, part: Slice, popularity: Popularity) -> Profile:
        """Return the profile on a group of devices, with the routers' popularity."""
        return assembled_profile(
            self.kernels,
            self.spec,
            self.device,
            precision=self.precision,
            part=part,
            max_batched_tokens=self.max_batched_tokens,
            max_num_seqs=self.max_num_seqs,
            popularity=popularity,
        )


def assembled_profile(
    kernels: Kernels,
    spec: ModelSpec,
    device: Device,
    *,
    precision: Precision | None = None,
    part: Slice | None = None,
    max_batched_tokens: int,
    max_num_seqs: int,
    popularity: Popularity | None = None,
) -> Profile:
    """Return a decoder's profile from a device's kernels, on a part of it or a group.

    The model's dtype is taken unless `precision` says otherwise, routers choose any expert alike
    unless `popularity` does. Raises ProfileError where the kernels are of another device, lack the
    format, or the model is no decoder; ScenarioError where it cannot be cut over the group.
    """
    check_device(kernels, device)
    if spec.num_encoder_layers:
        raise ProfileError(f"kernels: know decoders, not {spec.model_type}; take a decoder")
    part = part or whole(device)
    precision = precision or Precision.of_dtype(spec.dtype)
    group = part if part.devices > 1 else whole(device)
    rank = Operations(
        kernels, spec, device, precision, group, popularity or uniform_popularity(spec)
    )
    sizes = Sizes.of(kernels, spec, max_batched_tokens, max_num_seqs)
    operations = rank.cells(sizes)
    assembly = Assembly(
        kernels=kernels,
        spec=spec,
        device=device,
        precision=precision,
        max_batched_tokens=max_batched_tokens,
        max_num_seqs=max_num_seqs,
    )
    profile = Profile.model_validate(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": spec.to_config(),
            "max_batched_tokens": max_batched_tokens,
            "kv": {"block_size": BLOCK_SIZE, "num_blocks": _blocks(spec, device, precision)},
            "router": {"popularity": rank.popularity, "tokens": 1, "distinct": []},
            "operations": operations,
            "provenance": _provenance(kernels, spec, device),
            "source": "kernels",
            "bases": rank.bases,
            "verdict": _verdict(kernels, spec, operations, rank.bases),
        }
    ).with_parts(assembly)
    return profile if part.devices > 1 else on_slice(profile, device, part, precision=precision)


def check_device(kernels: Kernels, device: Device) -> None:
    """Raise ProfileError where the kernels were measured on another device."""
    if kernels.device != device.name:
        raise ProfileError(
            f"profile: kernels measured on {kernels.device}, hardware.device is {device.name}; "
            f"take a profile of {device.name}, or `profile: roofline`"
        )


def _blocks(spec: ModelSpec, device: Device, precision: Precision) -> int:
    return max(1, blocks_beside(spec, device.memory_bytes, BLOCK_SIZE, precision=precision))


def _provenance(kernels: Kernels, spec: ModelSpec, device: Device) -> dict[str, object]:
    return {
        "device": device.name,
        "device_kind": device.kind,
        "host_hash": "",
        "software": {"kernels": kernels.origin.software},
        "threads": 1,
        "date": kernels.origin.date,
        "model_source": spec.model_type,
        "model_digest": "",
        "duration_s": 0.0,
    }


def _verdict(
    kernels: Kernels,
    spec: ModelSpec,
    operations: Mapping[str, Sequence[Cell]],
    bases: Mapping[str, str],
) -> dict[str, object]:
    residuals = iteration_residuals(kernels.residuals, spec, operations)
    off = np.abs(residuals)
    return {
        "stable": True,
        "unstable_cells": 0,
        "cells": sum(len(cells) for cells in operations.values()),
        "iteration_error_p50": float(np.median(off)) if residuals else None,
        "iteration_error_p90": float(np.quantile(off, 0.9)) if residuals else None,
        "iteration_residuals": residuals,
        "drift": 0.0,
        "warnings": [
            f"assembled from kernels of {kernels.origin.software}, {kernels.origin.source}",
            "basis: " + ", ".join(f"{name} {basis}" for name, basis in bases.items()),
            "the host's own time is in no table of kernels and taken as nothing",
            *_in_short(kernels.warnings),
        ],
    }


def _in_short(warnings: Sequence[str]) -> list[str]:
    """Return the warnings, all spikes in one."""
    others = [warning for warning in warnings if SPIKES not in warning]
    spikes = len(warnings) - len(others)
    return [*others, f"{spikes} curves had {SPIKES}"] if spikes else others
