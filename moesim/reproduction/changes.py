"""What can be varied of qos-moe's scenarios: variants, prompts, devices, instances, swaps.

Every change applies to any of the deployments that are compared, and leaves alone those that it
means nothing to.
"""

from moesim.deployment import Consolidated, Mig, TimeShared
from moesim.errors import CapacityError, ScenarioError
from moesim.facts.catalog import load_device
from moesim.facts.mig import geometry_of
from moesim.facts.slices import mig_slices
from moesim.planning.load import at_load
from moesim.scenario import Scenario
from moesim.traffic.arrivals import Poisson
from moesim.traffic.lengths import Fixed

LEAST_TOKENS = 64
"""Tokens that an iteration may have at least; a longer prompt is one iteration all the same."""


def requests_per_s(scenario: Scenario) -> float:
    """Return the requests of all Poisson streams together [requests/s]."""
    streams = (tenant.arrivals for tenant in scenario.tenants.values())
    return sum(stream.rate_per_s for stream in streams if isinstance(stream, Poisson))


def at_rate(scenario: Scenario, rate_per_s: float) -> Scenario:
    """Return the scenario with so many requests over all streams [requests/s]."""
    return at_load(scenario, rate_per_s / requests_per_s(scenario))


def of_variants(scenario: Scenario, count: float) -> Scenario:
    """Return the scenario with so many variants, which share its requests.

    On MIG each has an instance, of equal ones the largest.
    """
    model = next(iter(scenario.models.values()))
    tenant = next(iter(scenario.tenants.values()))
    names = [f"variant-{place}" for place in range(1, int(count) + 1)]
    more = scenario.model_copy(
        update={
            "models": dict.fromkeys(names, model),
            "tenants": {name: tenant.model_copy(update={"model": name}) for name in names},
        }
    )
    return on_instances(at_rate(more, requests_per_s(scenario)))


def on_device(scenario: Scenario, device: str, layout: tuple[str, ...] = ()) -> Scenario:
    """Return the scenario on another device with its kernels, and on MIG instances of it."""
    hardware = scenario.hardware.model_copy(update={"device": device})
    there = scenario.model_copy(update={"hardware": hardware}).with_profile(device)
    return on_instances(there, layout)


def on_instances(scenario: Scenario, layout: tuple[str, ...] = ()) -> Scenario:
    """Return the scenario with a MIG layout; with an equal instance a model where none is given."""
    if not isinstance(scenario.deployment, Mig):
        return scenario
    device, count = scenario.hardware.device, len(scenario.models)
    return _deployed(scenario, layout=layout or equal_instances(device, count))


def equal_instances(device: str, count: int) -> tuple[str, ...]:
    """Return so many equal instances, the largest that there are; CapacityError if there are none.

    >>> equal_instances("a100-sxm-80gb", 4)
    ('1g.20gb', '1g.20gb', '1g.20gb', '1g.20gb')
    """
    known = load_device(device)
    for profile in geometry_of(known).profiles:
        layout = (profile.name,) * count
        try:
            mig_slices(known, layout)
        except (CapacityError, ScenarioError):
            continue
        return layout
    raise CapacityError(
        f"hardware.device {device}: there are no {count} MIG instances; take fewer models"
    )


def with_prompts(scenario: Scenario, tokens: float) -> Scenario:
    """Return the scenario with prompts of so many tokens, each of them one iteration."""
    prompt = Fixed(kind="fixed", tokens=int(tokens))
    tenants = {
        name: tenant.model_copy(update={"prompt_tokens": prompt})
        for name, tenant in scenario.tenants.items()
    }
    longer = scenario.model_copy(update={"tenants": tenants})
    return _scheduled(longer, max_batched_tokens=max(LEAST_TOKENS, int(tokens)))


def with_swaps(scenario: Scenario, gb_per_s: float) -> Scenario:
    """Return the scenario with another bandwidth of swaps, of whole models too [GB/s]."""
    if isinstance(scenario.deployment, Consolidated):
        return _deployed(scenario, swap_gb_per_s=gb_per_s)
    if isinstance(scenario.deployment, TimeShared):
        return _deployed(scenario, load_gb_per_s=gb_per_s)
    return scenario


def with_ratio(scenario: Scenario, ratio: float) -> Scenario:
    """Return the scenario with another share of positions whose experts are shared."""
    if isinstance(scenario.deployment, Consolidated):
        return _deployed(scenario, ratio=ratio)
    return scenario


def with_floor(scenario: Scenario, floor_s: float) -> Scenario:
    """Return the scenario with software that takes so long for a token at least [s]."""
    return _scheduled(scenario, floor_s=floor_s)


def _deployed(scenario: Scenario, **update: object) -> Scenario:
    deployment = scenario.deployment.model_copy(update=update)
    return scenario.model_copy(update={"deployment": deployment})


def _scheduled(scenario: Scenario, **update: object) -> Scenario:
    return _deployed(scenario, scheduler=scenario.deployment.scheduler.model_copy(update=update))
