"""What a system's iterations cost, and the same with some parts faster or slower."""

from dataclasses import dataclass, fields, replace
from functools import cache
from typing import Self

import numpy as np

from moesim.cost.expected import Rates
from moesim.cost.iteration import Cost, CostModel
from moesim.cost.kernels.assembling import assembled_profile
from moesim.cost.kernels.tables import load_kernels
from moesim.cost.kernels.uncertainty import iteration_residuals
from moesim.cost.parallel import Shard
from moesim.cost.profile import Profile
from moesim.cost.roofline import on_slice, roofline_profile
from moesim.errors import ProfileError
from moesim.evidence.accuracy.earlier import as_earlier
from moesim.evidence.accuracy.experiments import System
from moesim.evidence.accuracy.names import UnknownRowError, shipped_device
from moesim.evidence.accuracy.narrowed import as_many_bytes, narrowed, timed_instead
from moesim.evidence.accuracy.routing import routed_alike, routed_unevenly
from moesim.facts.catalog import shipped
from moesim.facts.precision import Precision
from moesim.scenario import ROOFLINE
from moesim.serving.iterations import Floats

TOKENS, SEQUENCES = 16384, 4096
"""What every cost reaches at least, so that one serves all lengths of a system."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Slower:
    """Factors on the parts of an iteration's duration.

    `layers` is what depends on the iteration's tokens alone, `sequences` the head, sampling and the
    host.
    """

    layers: float = 1.0
    decode_attention: float = 1.0
    prefill_attention: float = 1.0
    sequences: float = 1.0

    @classmethod
    def all_by(cls, factor: float) -> Self:
        """Return one factor on everything."""
        return cls(**{field.name: factor for field in fields(cls)})

    def times(self, factor: float) -> Self:
        """Return these factors with another on everything."""
        return replace(self, **{f.name: factor * getattr(self, f.name) for f in fields(self)})


class SlowerCost(Cost):
    """Another cost with factors on its parts."""

    def __init__(self, own: Cost, by: Slower) -> None:
        tables = own.tables
        lines = np.array(tables.lines) * by.decode_attention
        sequences = np.array(tables.sequences) * by.sequences
        emitting = np.array(tables.emitting) * by.sequences
        tokens = np.array(tables.tokens) * by.layers
        count = len(tables.joined)
        attended = lines[:, 0] + lines[:, 1] * np.arange(len(lines))
        joined = sequences[1 : count + 1] + emitting[1 : count + 1] + attended[:count]
        alone = _alone(own, by)
        slopes = lines[:, 1].tolist()
        super().__init__(
            tables._replace(
                sequences=sequences.tolist(),
                tokens=tokens.tolist(),
                emitting=emitting.tolist(),
                lines=list(map(tuple, lines.tolist())),
                decoding=list(zip(alone.tolist(), slopes, strict=False)),
                joined=list(zip(joined.tolist(), slopes, strict=False)),
            )
        )
        self._own, self._by = own, by

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        return self._own.prefill_attention_s(new_tokens, cached) * self._by.prefill_attention

    def basis(self) -> dict[str, str]:
        """Say what each operation's answers rest on."""
        return self._own.basis()


def _alone(own: Cost, by: Slower) -> Floats:
    """Return the durations of n decodes alone, nothing cached before, (N,) [s].

    Padded to a captured size, their layers are longer than the table says: what is left is theirs.
    """
    tables = own.tables
    count = len(tables.decoding)
    attended = np.array([flat + slope * n for n, (flat, slope) in enumerate(tables.lines[:count])])
    rest = np.array(tables.sequences[:count]) + np.array(tables.emitting[:count])
    layers = np.array([flat for flat, _ in tables.decoding]) - attended - rest
    return np.asarray(
        layers * by.layers + attended * by.decode_attention + rest * by.sequences, dtype=float
    )


class Costs:
    """The costs of systems by a profile, each made once.

    `profile` is `roofline`, the name or file of a profile of kernels, or None: that of kernels
    which is shipped under the device's name, where there is one.
    """

    def __init__(self, profile: str | None = ROOFLINE) -> None:
        self._profile = profile
        self._kernels = cache(load_kernels)
        self._profiles = cache(self._make_profile)
        self._costs = cache(self._make_cost)
        self._levels = cache(self._make_levels)

    def profile_of(self, device: str) -> str:
        """Return the name of the profile that stands for a device."""
        if self._profile is not None:
            return self._profile
        return device if device in shipped("profiles") else ROOFLINE

    def cost(self, system: System, tokens: int, sequences: int) -> Cost:
        """Return a cost that reaches at least so far."""
        return self._costs(system, _rounded(tokens, TOKENS), _rounded(sequences, SEQUENCES))

    def levels(self, system: System, software: str = "") -> tuple[float, ...]:
        """Return by which factors all durations may differ, as found on what was held out.

        What a software was found to add to kernels does not count for itself.
        """
        return self._levels(system, software)

    def reckoned(self, system: System) -> bool:
        """Say whether a system's experts are reckoned from kernels of another format."""
        return self._timed(system) != system.precision

    def _make_levels(self, system: System, software: str) -> tuple[float, ...]:
        profile, name = self._profiles(system, TOKENS, SEQUENCES), self.profile_of(system.device)
        residuals = profile.verdict.iteration_residuals
        if name != ROOFLINE:
            residuals = iteration_residuals(
                self._kernels(name).residuals, system.spec, profile.operations, without=software
            )
        return tuple(1 + residual for residual in residuals)

    def _make_cost(self, system: System, tokens: int, sequences: int) -> Cost:
        profile = self._profiles(system, tokens, sequences)
        if system.spec.num_local_experts:
            profile = _routed(profile, system)
        return CostModel(profile, max_batched_tokens=tokens, max_num_seqs=sequences)

    def _make_profile(self, system: System, tokens: int, sequences: int) -> Profile:
        profile = self._narrowed(system, tokens, sequences)
        if system.earlier is None:
            return profile
        shard, experts = Shard.of(system.spec, system.part), system.precision.experts
        return as_earlier(profile, system.earlier, shard, system.device, experts)

    def _narrowed(self, system: System, tokens: int, sequences: int) -> Profile:
        """Return the profile of a system's tables, its experts scaled where none such are there."""
        timed, spec = replace(system, precision=self._timed(system)), system.spec
        profile = self._of_tables(timed, tokens, sequences)
        if timed == system:
            return profile
        shard, rates = Shard.of(spec, system.part), Rates.of(shipped_device(system.device))
        shorter = as_many_bytes(spec, system.precision.experts, shard.tensor_parallel)
        fewer = self._of_tables(replace(timed, spec=shorter), tokens, sequences)
        return narrowed(profile, fewer, shard, rates)

    def _timed(self, system: System) -> Precision:
        """Return the formats that are looked up for a system."""
        name = self.profile_of(system.device)
        if name == ROOFLINE or not system.spec.num_local_experts:
            return system.precision
        return timed_instead(system.precision, {each.format for each in self._kernels(name).moe})

    def _of_tables(self, system: System, tokens: int, sequences: int) -> Profile:
        device, name = shipped_device(system.device), self.profile_of(system.device)
        if name == ROOFLINE:
            profile = roofline_profile(
                system.spec,
                device,
                max_batched_tokens=tokens,
                max_num_seqs=sequences,
                precision=system.precision,
            )
            return on_slice(profile, device, system.part, precision=system.precision)
        try:
            return assembled_profile(
                self._kernels(name),
                system.spec,
                device,
                precision=system.precision,
                part=system.part,
                max_batched_tokens=tokens,
                max_num_seqs=sequences,
            )
        except ProfileError as wrong:
            raise UnknownRowError(f"profile {name}: {wrong}") from None


def _routed(profile: Profile, system: System) -> Profile:
    """Return a profile with experts chosen as by a system."""
    if system.alike:
        return routed_alike(profile)
    return profile if system.rare is None else routed_unevenly(profile, system.rare)


def _rounded(count: int, least: int) -> int:
    """Return the next power of two, at least `least`, so that few tables serve many rows."""
    return max(least, 1 << (count - 1).bit_length())
