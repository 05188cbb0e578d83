"""What a validation is asked for."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from moesim.cost.profile import Profile
from moesim.deployment import Mps
from moesim.scenario import Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is validated: a workload, served by the engine on this host.

    For one model, or for the `variants` that share the device, by the names of the scenario's
    models; the profile is of their shape. Where each has a share of the device, `share_profiles`
    were measured on these.
    """

    scenario: Scenario
    profile: Profile
    model: str
    runs: int
    seed: int
    device: torch.device
    variants: Mapping[str, Path] = field(default_factory=dict)
    share_profiles: Mapping[str, Profile] = field(default_factory=dict)

    @property
    def profiles(self) -> dict[str, Profile]:
        """The profile of each of the scenario's models: of a variant with its own router."""
        return {name: self.profile.of_variant(name) for name in self.scenario.models}

    @property
    def probed_s(self) -> float | None:
        """What one small batch took while profiling, where the real runs take the same [s]."""
        if not isinstance(self.scenario.deployment, Mps):
            return self.profile.verdict.probe_s
        found = [profile.verdict.probe_s for profile in self.share_profiles.values()]
        known = [probe_s for probe_s in found if probe_s is not None]
        whole = len(known) == len(self.scenario.models)
        return sum(known) / len(known) if whole else None
