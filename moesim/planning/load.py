"""More or less of the same traffic: every tenant's rate scaled by one factor."""

from typing import Any

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, Tenant

RATES = ("rate_per_s", "on_rate_per_s", "rates_per_s", "speedup", "count")
"""What says how much a tenant asks for, whichever its arrivals have."""


def at_load(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with `factor` times the requests; users become more, traces faster.

    Raises ScenarioError where the factor is not above zero.
    """
    if not 0 < factor < float("inf"):
        raise ScenarioError(f"load: {factor:g} must be a number above 0")
    if factor == 1:
        return scenario
    tenants = {name: _scaled(tenant, factor) for name, tenant in scenario.tenants.items()}
    return scenario.model_copy(update={"tenants": tenants})


def _scaled(tenant: Tenant, factor: float) -> Tenant:
    arrivals = tenant.arrivals
    name = next(field for field in RATES if field in type(arrivals).model_fields)
    update = {name: _times(getattr(arrivals, name), factor)}
    return tenant.model_copy(update={"arrivals": arrivals.model_copy(update=update)})


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(rate * factor for rate in value)
    if isinstance(value, int):
        return max(1, round(value * factor))
    return value * factor
