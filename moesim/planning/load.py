"""More or less of the same traffic: every tenant's rate scaled by one factor."""

from typing import Any

from moesim.checked import checked
from moesim.errors import ScenarioError
from moesim.scenario import Scenario, Tenant
from moesim.traffic.users import Users

RATES = ("rate_per_s", "on_rate_per_s", "rates_per_s", "speedup", "count")
"""What says how much a tenant asks for, whichever its arrivals have."""


LOADS = (1e-3, 1e3)
"""The least and the greatest factor: a thousandth of the traffic, and a thousand times it."""

ROUNDING = 0.03
"""Share by which a rounded count of users may miss the load without a word."""


def at_load(scenario: Scenario, factor: float) -> Scenario:
    """Return the scenario with `factor` times the requests; users become more, traces faster.

    Raises ScenarioError where the factor is not between `LOADS`, or asks for more of a tenant than
    a scenario may.
    """
    least, most = LOADS
    if not least <= factor <= most:
        raise ScenarioError(f"load: {factor:g} must be a number from {least:g} to {most:g}")
    if factor == 1:
        return scenario
    tenants = {name: _scaled(name, tenant, factor) for name, tenant in scenario.tenants.items()}
    return scenario.model_copy(update={"tenants": tenants})


def rounded(scenario: Scenario, factor: float) -> list[str]:
    """Say which tenants' users cannot be so many times as many, as they are whole people."""
    said = []
    for name, tenant in scenario.tenants.items():
        if not isinstance(tenant.arrivals, Users) or factor == 1:
            continue
        count = tenant.arrivals.count
        users = _times(count, factor)
        if abs(users / (count * factor) - 1) > ROUNDING:
            said.append(
                f"tenants.{name}: {count} users x {factor:g} is rounded to {users}, which is load "
                f"x {users / count:.3g}; choose loads that give whole users"
            )
    return said


def _scaled(name: str, tenant: Tenant, factor: float) -> Tenant:
    arrivals = tenant.arrivals
    field = next(field for field in RATES if field in type(arrivals).model_fields)
    content = arrivals.model_dump() | {field: _times(getattr(arrivals, field), factor)}
    source = f"load {factor:g}: tenants.{name}.arrivals"
    return tenant.model_copy(update={"arrivals": checked(type(arrivals), content, source)})


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, tuple):
        return tuple(rate * factor for rate in value)
    if isinstance(value, int):
        return max(1, round(value * factor))
    return value * factor
