"""Slices: what a replica runs on, a whole GPU or a MIG instance, as shares of the whole.

Compute goes with the SMs, bandwidth and memory with the memory slices. Launches and the host do not
shrink, and the link to the host is shared by all.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from moesim.facts.hardware import Device
from moesim.facts.mig import check_layout, geometry_of


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """A part of a device, or all of it."""

    name: str
    compute_share: float
    bandwidth_share: float
    memory_bytes: int

    @property
    def whole(self) -> bool:
        """Whether it is a device that is not divided."""
        return self.compute_share == self.bandwidth_share == 1.0


def whole(device: Device) -> Slice:
    """Return a device that is not divided."""
    return Slice(
        name=device.name, compute_share=1.0, bandwidth_share=1.0, memory_bytes=device.memory_bytes
    )


def mig_slices(device: Device, layout: Sequence[str]) -> list[Slice]:
    """Return the instances of a MIG layout, in the order given.

    Raises ScenarioError or CapacityError, naming layouts that exist, where this one does not.
    """
    check_layout(device, layout)
    geometry = geometry_of(device)
    profiles = [geometry.by_name[name] for name in layout]
    return [
        Slice(
            name=f"{device.name}/{profile.name}",
            compute_share=geometry.compute_share(profile),
            bandwidth_share=profile.bandwidth_share,
            memory_bytes=profile.memory_bytes,
        )
        for profile in profiles
    ]
