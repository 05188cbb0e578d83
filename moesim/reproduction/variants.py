"""qos-moe: two variants of a model on one GPU, by sharing experts, by MIG, by taking turns.

Turnaround, time to first token and throughput against each stream's rate; what the paper calls
TTFT is shorter than its own queueing, so it is counted from when a request's service begins, its
swap included. `moesim.reproduction.derived` has what follows from its figures,
`moesim.reproduction.beyond` what it does not ask.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moesim.planning.load import at_load
from moesim.reproduction.beyond import study
from moesim.reproduction.claims import Claim, judged
from moesim.reproduction.derived import holding, in_md1
from moesim.reproduction.kept import kept, quality
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import PUBLISHED, Picture, curve
from moesim.reproduction.publication import Constant, Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials, tried
from moesim.scenario import Scenario
from moesim.simulation.run import Result

RATES = (0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07)
"""The paper's rates of each stream [requests/s]."""

STREAM_PER_S = 0.01
"""The rate of each stream that the scenarios are written with [requests/s]."""

SATURATED = 10.0
"""Services that the last tenth of all requests waits for when a device is taken for saturated."""

PROMPT_COPIES = 29
"""Positions that 227 resident ones leave absent, as the derived figure has it."""

FIT = 0.0005
"""How exactly a rate is found [requests/s]."""

WAYS = ("consolidated", "mig", "single", "time_shared")
"""The scenarios that are plotted."""

PANELS = {
    "turnaround_s": ("Mean turnaround", "Turnaround [s]"),
    "ttft_s": ("Mean TTFT from the start of service", "TTFT [s]"),
    "arrival_ttft_s": ("Mean TTFT from arrival", "TTFT [s]"),
    "requests_per_s": ("Throughput", "Requests/s"),
}
"""The plots: titles and what is on the y axis."""

Sweep = Mapping[float, Mapping[str, Runs]]
"""Figures by rate."""


def reproduce_variants(told: Told, trials: Sequence[Trial]) -> Outcome:
    """Run the experiment and judge its claims."""
    publication = load_publication("qos-moe")
    ways = {name: publication.scenario(name) for name in publication.scenarios}
    sweeps: dict[str, Sweep] = {}
    for place, name in enumerate(WAYS):
        told(0.2 * place / len(WAYS))
        sweeps[name] = {rate: over_trials(_at(ways[name], rate), figures, trials) for rate in RATES}
    told(0.2)
    rate = _rate_of(ways["mig"], _published(publication, "mig.turnaround"), trials)
    told(0.3)
    runs = {**_figures(ways, rate, trials), **_derived(publication, ways, sweeps, rate, trials)}
    told(0.4)
    beyond = study(publication, trials, lambda share: told(0.4 + 0.6 * share))
    told(1)
    return Outcome(
        publication=publication,
        claims=_claims(publication, runs),
        pictures=_pictures(publication, sweeps, rate),
        fitted=(_fitted(rate),),
        annexes=(quality(), beyond),
    )


def figures(result: Result) -> dict[str, float]:
    """Return the means that the paper plots."""
    records = result.records
    swaps_s = sum(usage.reconfiguring_s for usage in result.usages) / len(records)
    span_s = records["finish_s"].max() - records["arrival_s"].min()
    service_s = float((records["finish_s"] - records["scheduled_s"]).mean()) + swaps_s
    return {
        "turnaround_s": float((records["finish_s"] - records["arrival_s"]).mean()),
        "ttft_s": float((records["first_token_s"] - records["scheduled_s"]).mean() + swaps_s),
        "arrival_ttft_s": float((records["first_token_s"] - records["arrival_s"]).mean()),
        "requests_per_s": len(records) / float(span_s),
        "service_s": service_s,
    }


def saturation_per_s(scenario: Scenario, trial: Trial) -> float:
    """Return the rate of each stream from which the queue grows as long as requests come.

    By bisection on how long the last tenth waits [requests/s].
    """
    return _bisected(lambda rate: _last_waits(tried(_at(scenario, rate), trial)) > SATURATED)


def _last_waits(result: Result) -> float:
    """Return how many services the last tenth of all requests waits for."""
    last = result.records.tail(max(1, len(result.records) // 10))
    waits_s = (last["scheduled_s"] - last["arrival_s"]).mean()
    return float(waits_s / (last["finish_s"] - last["scheduled_s"]).mean())


def _bisected(beyond: Callable[[float], bool]) -> float:
    """Return the rate from which something holds that holds at all higher ones [requests/s]."""
    low, high = 0.005, 0.1
    while high - low > FIT:
        rate = (low + high) / 2
        low, high = (low, rate) if beyond(rate) else (rate, high)
    return (low + high) / 2


def _rate_of(mig: Scenario, turnaround_s: float, trials: Sequence[Trial]) -> float:
    """Return the rate at which MIG's mean turnaround is the published one [requests/s]."""

    def beyond(rate: float) -> bool:
        found = over_trials(_at(mig, rate), figures, trials)["turnaround_s"]
        return bool(np.median(found) > turnaround_s)

    return _bisected(beyond)


def _at(scenario: Scenario, rate_per_s: float) -> Scenario:
    return at_load(scenario, rate_per_s / STREAM_PER_S)


def _published(publication: Publication, name: str) -> float:
    value = publication.claims[name].published
    assert isinstance(value, float)  # noqa: S101  # the shipped file says so
    return value


def _claims(publication: Publication, runs: Mapping[str, Runs]) -> tuple[Claim, ...]:
    return tuple(judged(publication, name, runs.get(name)) for name in publication.claims)


def _figures(ways: Mapping[str, Scenario], rate: float, trials: Sequence[Trial]) -> dict[str, Runs]:
    """Return what the paper has figures for, by claim, in each trial."""
    ours, theirs, by_layer, all_layers = (
        over_trials(_at(ways[name], rate), figures, trials)
        for name in ("consolidated", "mig", "mig.by_layer", "mig.all_layers")
    )
    saturations = {
        name: np.array([saturation_per_s(ways[name], trial) for trial in trials])
        for name in ("consolidated", "mig", "single")
    }
    return {
        "consolidated.turnaround": ours["turnaround_s"],
        "mig.turnaround": theirs["turnaround_s"],
        "reduction": 100 * (1 - ours["turnaround_s"] / theirs["turnaround_s"]),
        "consolidated.ttft": ours["ttft_s"],
        "mig.ttft": theirs["ttft_s"],
        "mig.ttft.by_layer": by_layer["ttft_s"],
        "mig.ttft.all_layers": all_layers["ttft_s"],
        "consolidated.saturation": saturations["consolidated"],
        "mig.saturation": saturations["mig"],
        "single.saturation": saturations["single"] / saturations["consolidated"],
        "time_shared.swap": np.array([_swap_s(ways["time_shared"], trials[0])]),
        "wait": ours["arrival_ttft_s"] - ours["ttft_s"],
        "service": ours["service_s"],
        "mig.service": theirs["service_s"],
        "md1": in_md1(ours["service_s"], 2 * rate),
        "mig.md1": in_md1(theirs["service_s"], rate),
    }


def _derived(
    publication: Publication,
    ways: Mapping[str, Scenario],
    sweeps: Mapping[str, Sweep],
    rate: float,
    trials: Sequence[Trial],
) -> dict[str, Runs]:
    """Return what follows from its figures or is said in words, by claim, in each trial."""
    ours, theirs = holding(ways["consolidated"]), holding(ways["mig"])
    shared, single = sweeps["consolidated"], sweeps["single"]
    alone = over_trials(_alone(_at(ways["mig"], rate)), figures, trials)
    swap_s = _swap_s(ways["consolidated"], trials[0])
    packed_s = _swap_s(publication.scenario_beyond("swapped"), trials[0])
    ratios = [shared[at]["requests_per_s"] / single[at]["requests_per_s"] for at in RATES]
    certain = {
        "swap": swap_s,
        "swap.packed": swap_s / packed_s,
        "copy": 1e3 * ours.copy_s,
        "found": ours.found,
        "mig.found": theirs.found,
        "token": ours.token,
        "mig.token": theirs.token,
        "prompt.s": PROMPT_COPIES * ours.copy_s,
        "mig.prompt.s": theirs.prompt * theirs.copy_s,
        "prompt": 100 * ours.prompt / ours.absent,
        "mig.prompt": 100 * theirs.prompt / theirs.absent,
        "quality.two": kept("byte-moe", 0, 0.8),
        "quality.four": kept("byte-switch", 2, 4),
    }
    return {
        **{name: np.array([value]) for name, value in certain.items()},
        "single.throughput": np.min(ratios, axis=0),
        "single.ttft": shared[RATES[0]]["ttft_s"] - single[RATES[0]]["ttft_s"],
        "mig.tokens.alone": alone["service_s"] - alone["ttft_s"],
        "mig.contention": sweeps["mig"][RATES[-1]]["service_s"] / alone["service_s"],
    }


def _alone(scenario: Scenario) -> Scenario:
    """Return the scenario with the requests of its first stream alone."""
    name, tenant = next(iter(scenario.tenants.items()))
    return scenario.model_copy(update={"tenants": {name: tenant}})


def _swap_s(scenario: Scenario, trial: Trial) -> float:
    """Return how long one change of the whole model takes [s]."""
    result = tried(scenario, trial)
    changes = sum(usage.reconfigurations for usage in result.usages)
    return sum(usage.reconfiguring_s for usage in result.usages) / max(1, changes)


def _fitted(rate: float) -> Constant:
    return Constant(
        name="rate at which the published means hold",
        value=f"{rate:.4f} requests/s a stream",
        source="not published; within its sweep of 0.01 to 0.07",
        fitted_on="MIG's published mean turnaround, which is therefore no prediction",
    )


def _pictures(
    publication: Publication, sweeps: Mapping[str, Sweep], rate: float
) -> tuple[Picture, ...]:
    names = {name: publication.scenarios[name]["name"] for name in sweeps}
    points = {"turnaround_s": "turnaround", "ttft_s": "ttft"}
    return tuple(
        Picture(
            title=title,
            x_title="Rate of each stream [requests/s]",
            y_title=y_title,
            curves=tuple(
                curve(names[name], RATES, [sweep[at][figure] for at in RATES])
                for name, sweep in sweeps.items()
            ),
            published={
                f"{PUBLISHED}{names[name]}": (
                    rate,
                    _published(publication, f"{name}.{points[figure]}"),
                )
                for name in ("consolidated", "mig")
                if figure in points
            },
            log_y=figure != "requests_per_s",
        )
        for figure, (title, y_title) in PANELS.items()
    )
