"""Rooflines: profiles without measurements, and measured ones on another slice of their device.

A roofline profile is `moesim.cost.expected` laid out over the grid of a profile, and a few
microseconds for each pass over the tokens between these kernels. How far off the kernels are, on
the 14,556 bf16 GEMM and MoE rows of AIConfigurator's tables, goes with it as its residuals.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from fractions import Fraction
from itertools import product
from math import isclose

from moesim.cost.collectives import collectives_s
from moesim.cost.expected import PASS_S, Durations, Rates, expected_s, uniform_popularity
from moesim.cost.experts import expected_distinct
from moesim.cost.parallel import Shard
from moesim.cost.profile import FORMAT, FORMAT_VERSION, REPLAY, Cell, Profile
from moesim.errors import ProfileError
from moesim.facts.hardware import Device
from moesim.facts.memory import RESERVED_SHARE
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.slices import MIG, Slice, mig_slices, whole
from moesim.facts.sm_share import sm_share

RESIDUALS = (
    -0.08, -0.05, -0.02, -0.01, 0.01, 0.02, 0.04, 0.06, 0.09, 0.12, 0.16, 0.20, 0.25, 0.33, 0.41,
    0.52, 0.68, 0.96, 1.19,
)  # fmt: skip
"""Measured over expected duration, minus 1, at the 5th, 10th, ... 95th percentile of the rows."""

PASSES, EXPERT_PASSES = 4, 5
"""Passes of a layer beside its products and attention: norm, rotation, norm and activation; with
experts also the gate, the choice of experts, and tokens gathered, scattered and added up again."""

BLOCK_SIZE = 16
LONGEST_CONTEXT = 2**20
"""Context up to which attention is laid out; it is a straight line anyway [tokens]."""


def roofline_profile(
    spec: ModelSpec,
    device: Device,
    *,
    max_batched_tokens: int,
    max_num_seqs: int,
    precision: Precision | None = None,
) -> Profile:
    """Return a profile of rooflines for a decoder on one device, its weights in `precision`.

    The model's dtype is taken unless told. Raises ProfileError where the datasheet or the
    architecture does not allow for a roofline.
    """
    if spec.num_encoder_layers:
        raise ProfileError(
            f"profile roofline: knows decoders, not {spec.model_type}; take a decoder"
        )
    durations = {
        **expected_s(spec, Rates.of(device), precision=precision),
        "router": lambda _: passes_s(spec),
    }
    grid = _grid(spec, max_batched_tokens, max_num_seqs)
    blocks = blocks_beside(spec, device.memory_bytes, BLOCK_SIZE, precision=precision)
    return Profile.model_validate(
        {
            "format": FORMAT,
            "format_version": FORMAT_VERSION,
            "model": spec.to_config(),
            "max_batched_tokens": max_batched_tokens,
            "kv": {
                "block_size": BLOCK_SIZE,
                "num_blocks": max(1, blocks),
            },
            "router": {
                "popularity": uniform_popularity(spec),
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


def on_slice(
    profile: Profile, device: Device, part: Slice, *, precision: Precision | None = None
) -> Profile:
    """Return a profile of a device as it would be on a part of it, or on a group.

    One that was measured on a part holds for that part: as it is, or scaled to what bandwidth busy
    neighbours leave it, and for no other.

    What a cell takes beyond its launches is scaled by the ratio of its rooflines, in the
    `precision` that the profile is of; launches (`launch_s`) and what has no roofline (routing, the
    host) stay as they were. A group adds its collectives. Raises ProfileError where the datasheet
    does not allow for that, ScenarioError where the model cannot be cut over the group.
    """
    own = measured_on(profile, device)
    _check_same(own, part, profile)
    if part.devices == 1 and part.bandwidth_share == own.bandwidth_share and not own.whole:
        return profile
    if part.whole:
        return profile
    if part.devices > 1 and (looked_up := profile.on_group(part)) is not None:
        return looked_up
    spec, full = profile.spec, Rates.of(device)
    precision = precision or Precision.of_dtype(spec.dtype)
    before = expected_s(spec, full.on(own), precision=precision)
    after = expected_s(
        spec,
        full.on(part),
        precision=precision,
        part=part,
        popularity=profile.router.popularity,
    )
    before, after = _with_replays(profile, before), _with_replays(profile, after)
    operations = {
        name: _scaled(cells, before[name], after[name]) if name in before else cells
        for name, cells in profile.operations.items()
    }
    if part.devices > 1:
        value_bytes = FORMATS[precision.plain].bytes_of(1)
        seconds = collectives_s(spec, device, part.devices, value_bytes)
        points = [(count,) for count in _doubling(profile.max_batched_tokens)]
        operations["collectives"] = _cells(seconds, points)
        if REPLAY in operations:
            operations[REPLAY] = [
                _cell(
                    cell.at,
                    cell.median_s + spec.num_hidden_layers * seconds(cell.at[0]),
                    cell.spread,
                    cell.repeats,
                )
                for cell in operations[REPLAY]
            ]
    source = "scaled" if profile.source in {"measured", "kernels"} else profile.source
    return profile.model_copy(update={"operations": operations, "source": source, "bases": {}})


def _with_replays(profile: Profile, durations: Durations) -> Durations:
    """Return the rooflines with that of a whole iteration of decodes alone."""
    popularity, layers = profile.replayed_router.popularity, profile.spec.num_hidden_layers

    def replay(sequences: float, context: float) -> float:
        distinct = float(expected_distinct(popularity, [sequences]).mean())
        layer = durations["projections"](sequences) + durations["experts"](sequences, distinct)
        layer += durations["attention_decode"](sequences, context)
        return layers * layer + durations["head"](sequences)

    return {**durations, REPLAY: replay}


def passes_s(spec: ModelSpec) -> float:
    """Return what a layer takes for its passes over few tokens, the mean over layers [s]."""
    sparse = 1 - len(spec.dense_layers) / spec.num_hidden_layers if spec.num_local_experts else 0
    return PASS_S * (PASSES + EXPERT_PASSES * sparse)


def measured_on(profile: Profile, device: Device) -> Slice:
    """Return the part of the device that was measured: a share, a MIG instance, or all of it."""
    made = profile.provenance
    if made.share is not None:
        share = Fraction(made.share.split()[0])
        return replace(sm_share(device, 100 * float(share)), name=made.share)
    _, _, instance = made.device.partition(MIG)
    if instance and device.mig is not None:
        return mig_slices(device, [instance])[0]
    return whole(device)


def _check_same(own: Slice, part: Slice, profile: Profile) -> None:
    """Raise ProfileError where a part was measured, and another is asked for."""
    alike = isclose(own.compute_share, part.compute_share) and part.devices == 1
    if own.whole or (alike and own.memory_bytes == part.memory_bytes):
        return
    raise ProfileError(
        f"profile of {profile.provenance.model_source}: measured on {own.name}, here the model is "
        f"on {part.name}; profile that, or the whole device"
    )


def blocks_beside(
    spec: ModelSpec,
    memory_bytes: int,
    block_size: int,
    *,
    precision: Precision | None = None,
    part: Slice | None = None,
) -> int:
    """Return the KV blocks that fit beside the weights; 0 or less where none does.

    `memory_bytes` are those of one device; of a group each holds its share of all weights, and its
    heads of every block.
    """
    precision = precision or Precision.of_dtype(spec.dtype)
    shard = Shard.of(spec, part)
    free = (1 - RESERVED_SHARE) * memory_bytes - shard.weight_bytes(precision)
    return int(free // FORMATS[precision.kv].bytes_of(block_size * shard.kv_values_per_token))


def launch_s(cells: Sequence[Cell], roofline: Callable[..., float]) -> float:
    """Return what an operation takes that no rate explains: kernel launches, Python, latencies [s].

    Durations are taken for a line over their rooflines, through the cells with the shortest and the
    longest one: its slope is what the kernels miss of the roofline, its intercept the launches. A
    line that begins below zero has none.

    >>> cells = [Cell(at=(n,), median_s=5.0 + 2.0 * n, spread=0.0, repeats=1) for n in (1, 4)]
    >>> launch_s(cells, lambda tokens: tokens)
    5.0
    """
    points = sorted((roofline(*cell.at), cell.median_s) for cell in cells)
    (shortest, least_s), (longest, most_s) = points[0], points[-1]
    if longest <= shortest:
        return 0.0
    slope = (most_s - least_s) / (longest - shortest)
    return min(max(0.0, least_s - slope * shortest), min(cell.median_s for cell in cells))


def _scaled(
    cells: Sequence[Cell], before: Callable[..., float], after: Callable[..., float]
) -> list[Cell]:
    fixed_s = launch_s(cells, before)
    scaled = []
    for cell in cells:
        was = before(*cell.at)
        factor = after(*cell.at) / was if was else 1.0
        seconds = fixed_s + (cell.median_s - fixed_s) * factor
        scaled.append(_cell(cell.at, seconds, cell.spread, cell.repeats))
    return scaled


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
        "experts": list(product(tokens, range(1, max(1, spec.num_local_experts) + 1))),
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


def _cells(seconds: Callable[..., float], points: Sequence[tuple[float, ...]]) -> list[Cell]:
    return [_cell(point, seconds(*point), 0.0, 1) for point in points]


def _cell(at: tuple[float, ...], median_s: float, spread: float, repeats: int) -> Cell:
    """Make a cell of values that are valid as they are: thousands are made at once."""
    return Cell.model_construct(at=at, median_s=median_s, spread=spread, repeats=repeats)


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
