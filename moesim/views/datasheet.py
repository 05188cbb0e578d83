"""What a device's datasheet says beside a profile that was measured on it."""

from collections.abc import Callable

from moesim.cost.expected import Rates, expected_s
from moesim.cost.profile import Profile
from moesim.errors import MoesimError
from moesim.facts.catalog import load_device, shipped
from moesim.facts.hardware import Device


def device_of(profile: Profile) -> Device | None:
    """Return the shipped device that was measured, if it is one."""
    for name in shipped("hardware"):
        device = load_device(name)
        if profile.provenance.device in (name, *device.reported_as):
            return device
    return None


def roofline_of(
    operation: str, profile: Profile, device: Device | None
) -> Callable[..., float] | None:
    """Return what an operation takes by the datasheet [s]; None where that says nothing of it."""
    if device is None or profile.source in ("scaled", "roofline"):
        return None
    try:
        return expected_s(profile.spec, Rates.of(device), precision=profile.formats).get(operation)
    except MoesimError:
        return None
