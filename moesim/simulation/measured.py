"""Durations of copies to the device: what the scenario says, else the profile, else a datasheet."""

from typing import NamedTuple

from moesim.cost.laden import GIVEN
from moesim.cost.profile import ExpertLoad, Profile, Swap
from moesim.deployment import Offloading
from moesim.facts.hardware import Device
from moesim.simulation.residency import bandwidth_of

MEASURED = "measured"


class Known(NamedTuple):
    """How fast copies are, and what that rests on."""

    bytes_per_s: float
    basis: str


def with_measured_load(profile: Profile, offloading: Offloading) -> tuple[Offloading, str]:
    """Return how absent experts are got at, by measured loads where the scenario gives no speed.

    With it goes the basis. A measured load is all that a load takes, latency included.
    """
    load = load_of(profile) if offloading.load_gb_per_s is None else None
    if load is None:
        return offloading, GIVEN
    gb_per_s = load.expert_bytes / load.median_s / 1e9
    return offloading.model_copy(update={"load_gb_per_s": gb_per_s}), MEASURED


def load_of(profile: Profile) -> ExpertLoad | None:
    """Return the load that a miss is: one in an iteration, else one alone from the fastest memory.

    Of several sizes the one nearest to the model's own experts.
    """
    loads = profile.transfers.expert_loads if profile.transfers else []
    own = profile.spec.expert_parameters * profile.spec.dtype_bytes
    return min(
        (load for load in loads if load.how == "in_iteration" or load.in_flight == 1),
        key=lambda load: (
            load.how != "in_iteration",
            abs(load.expert_bytes - own),
            load.memory == "pageable",
        ),
        default=None,
    )


def swap_speed(
    profile: Profile, gb_per_s: float | None, device: Device, *, what: str, field: str
) -> Known:
    """Return how fast a non-expert set or a whole model is swapped.

    Raises ScenarioError where nothing says so.
    """
    swap = swap_of(profile, what) if gb_per_s is None else None
    if swap is None:
        return Known(bandwidth_of(gb_per_s, device, field), GIVEN)
    return Known(swap.set_bytes / swap.median_s, MEASURED)


def swap_of(profile: Profile, what: str) -> Swap | None:
    """Return the swap that the engine does: one copy, from pinned memory where there is any."""
    swaps = profile.transfers.swaps if profile.transfers else []
    packed = [swap for swap in swaps if swap.what == what and swap.way == "packed"]
    return min(packed, key=lambda swap: swap.memory == "pageable", default=None)
