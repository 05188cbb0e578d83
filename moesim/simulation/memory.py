"""What sits where on each slice of a scenario, without running it and whether or not it fits."""

from collections.abc import Mapping

from moesim.cost.profile import Profile
from moesim.errors import ScenarioError
from moesim.requests import Traces
from moesim.scenario import PROFILED, Scenario
from moesim.simulation.deploy import drafted_of
from moesim.simulation.inputs import Inputs, device_of, load_profiles
from moesim.simulation.slice_memory import SliceMemory


def memory_of(
    scenario: Scenario, profiles: Mapping[str, Profile] | None = None
) -> list[SliceMemory]:
    """Return the memory of every slice, as `simulate` divides it up.

    `profiles` replaces the profiles that the scenario names, by model. What merely does not fit is
    said there. Raises ScenarioError (CapacityError) where a slice does not exist or the device's
    memory is not known, ProfileError where a profile is of another model.
    """
    device = device_of(scenario)
    if device is None:
        raise ScenarioError(
            f"hardware.device: {PROFILED!r}: its memory is not known; "
            "name a device or give its file"
        )
    inputs = Inputs(
        device=device,
        profiles=load_profiles(scenario, profiles or {}, device),
        traces=Traces(requests={}, clients={}, lengths={}),
    )
    return [memory for each in drafted_of(scenario, inputs) for memory in each.memories()]


def counted(memories: list[SliceMemory]) -> dict[SliceMemory, int]:
    """Return how many slices are alike, in the order in which each first comes."""
    found: dict[SliceMemory, int] = {}
    for memory in memories:
        found[memory] = found.get(memory, 0) + 1
    return found
