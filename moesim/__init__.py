"""moesim predicts what serving mixture-of-experts models will do on your GPUs.

Read the rooms from the ground up: `facts` (GPUs and models), `traffic` (who asks for what, when),
`serving` (the rules an engine and the simulator share), `cost` (how long things take), `scenario`
(what a planner writes), `simulation` (simpy), then `views`, `evidence` and `dashboard`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from moesim.cost.profile import Profile, load_profile
    from moesim.scenario import Scenario, load_scenario
    from moesim.simulation.run import Result, simulate

__version__ = "0.1.0"
MODEL_REVISION = 3
"""Rises whenever the same scenario, profile and seed would give other numbers than before."""

__all__ = [
    "MODEL_REVISION",
    "Profile",
    "Result",
    "Scenario",
    "load_profile",
    "load_scenario",
    "simulate",
]

_HOMES = {
    "Profile": "moesim.cost.profile",
    "load_profile": "moesim.cost.profile",
    "Scenario": "moesim.scenario",
    "load_scenario": "moesim.scenario",
    "Result": "moesim.simulation.run",
    "simulate": "moesim.simulation.run",
}


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `import moesim` stays light."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'moesim' has no attribute {name!r}")
