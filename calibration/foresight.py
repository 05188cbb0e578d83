"""From what is asked for to what is simulated: shares in whole units, profiles that fit them."""

from collections.abc import Mapping
from dataclasses import dataclass

from calibration.plan import Plan
from calibration.share_profile import require_share
from calibration.slices import realised
from moesim.cost.profile import Profile
from moesim.deployment import Mps
from moesim.errors import ScenarioError
from moesim.scenario import PROFILED, Scenario


@dataclass(frozen=True, slots=True, kw_only=True)
class Foreseen:
    """What is simulated: the scenario as this host can serve it, and what it is predicted from."""

    scenario: Scenario
    profiles: Mapping[str, Profile]
    notes: tuple[str, ...] = ()


def foresee(plan: Plan) -> Foreseen:
    """Return what is simulated for a plan."""
    if not isinstance(plan.scenario.deployment, Mps):
        return Foreseen(scenario=plan.scenario, profiles=plan.profiles)
    if plan.scenario.hardware.device == PROFILED:
        raise ScenarioError(
            f"hardware.device: {PROFILED!r} has no rates, which shares need; name a shipped GPU "
            "or a file that moesim-calibrate datasheet wrote"
        )
    scenario, parts = realised(plan.scenario, plan.device)
    # Engines on shares capture no graphs, which stay in the context that they were captured in.
    profiles = {name: profile.launched() for name, profile in plan.profiles.items()}
    for name, own in plan.share_profiles.items():
        require_share(own, parts[name], f"--share-profiles: {name}")
        profiles[name] = own
    shares = ", ".join(f"{name} had {part}" for name, part in parts.items())
    return Foreseen(
        scenario=scenario,
        profiles=profiles,
        notes=(
            f"Of the device {shares}; memory and its bandwidth were everybody's.",
            f"Profiled on its own share: {', '.join(plan.share_profiles) or 'none'}; other models "
            "are scaled from the profile of the whole device.",
        ),
    )
