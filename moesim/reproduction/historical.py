"""friendli: an efficient engine beside two historical baselines on four A100, load N to 10 N.

Only ratios are published: 31.6 between p90 latencies, 7.6 between throughputs under a target on
latency. Sought are the load and the target at which they are that. All engines run the same
measured kernels; the baselines' hosts are fitted on what vLLM took for another workload.

The baselines take a step of their own for every few prompts, and a hundred times as long to
simulate as the efficient engine: what takes longest is run in the middle trial alone.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import inf

import numpy as np

from moesim.cost.expected import Rates, expected_s
from moesim.cost.profile import Profile
from moesim.planning.load import at_load
from moesim.reproduction.claims import judged
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import Picture, curve
from moesim.reproduction.publication import Constant, Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials, read, tried
from moesim.requests import draw_requests
from moesim.scenario import Scenario
from moesim.simulation.run import Result

LOADS = (
    1.0,
    2.0,
    4.0,
    6.0,
    8.0,
    10.0,
    15.0,
    20.0,
    30.0,
    40.0,
    50.0,
    60.0,
    70.0,
    80.0,
    90.0,
    100.0,
)
"""Offered rates, of which the scenarios are written with the first [requests/s]."""

FEWEST = 2000
"""Requests of a run at least."""

EDGE_PER_S = 90.0
"""The last of these that the efficient engine serves in the middle trial."""

LOW_PER_S = 15.0
"""Up to here the baselines run in every trial."""

TARGETS_S = tuple(np.geomspace(0.5, 60, 60).tolist())
"""Targets on p90 latency [s]."""

LATENCY_RATIO, THROUGHPUT_RATIO = 31.6, 7.6
"""The published ratios."""

BASELINES = ("fused", "dense")

ORDERS = ("first", "chunked")
"""Other orders of prompts and decodes, which the early fused baseline is tried with."""

MEASURED_S = {1: 0.762, 4: 1.449, 16: 2.893, 64: 7.537}
"""What vLLM took on two A100, as it published, by requests at once; 1000 tokens in, 50 out [s]."""

LARGE = 512
"""Tokens of an iteration in which both baselines read every expert."""

ANCHORED = 64
"""Requests at once that the anchor's scenario is written with."""

SWEPT = 0.9
"""Share of the time that the sweeps take."""

Sweep = Mapping[float, Runs]
"""p90 latency by load, in each trial [s]."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Swept:
    """p90 latencies of a baseline [s], and its ratios to the efficient engine's.

    `low` up to LOW_PER_S in all trials, `middle` at all loads in the middle one alone. `ratios` are
    one in each trial, at the load where it is likely to be largest.
    """

    low: Sweep
    middle: Sweep
    ratios: Runs


def reproduce_historical(told: Told, trials: Sequence[Trial]) -> Outcome:
    """Run the experiment and judge its claims."""
    publication = load_publication("friendli")
    anchor = publication.scenario("anchor")
    centred = centred_on(read(anchor).profiles["mixtral"], trials)
    host_s = host_of(anchor)
    hosted = [replace(trial, host_s=host_s) for trial in centred]
    engine = publication.scenario("efficient")
    efficient = _sweep(engine, LOADS, centred)
    swept = {}
    for place, name in enumerate(BASELINES):

        def within(share: float, place: int = place) -> None:
            told(SWEPT * (place + share) / len(BASELINES))

        swept[name] = _swept(publication.scenario(name), efficient, hosted, within)
    told(SWEPT)
    operations, traffic = dense_beside_fused(publication)
    runs = {
        f"{name}.{figure}": values
        for name in BASELINES
        for figure, values in _against(efficient, swept[name]).items()
    }
    middle = _middle(hosted)
    for order in ORDERS:
        scenario = publication.scenario(f"fused.{order}")
        latency_s = p90(tried(at(scenario, EDGE_PER_S), middle))["latency_s"]
        runs[f"fused.{order}"] = latency_s / _in_middle(efficient)[EDGE_PER_S]
    runs |= {
        "dolly": tokens_of(at_load(engine, LOADS[-1]), trials),
        "dense.operations": np.array([operations]),
        "dense.traffic": np.array([traffic]),
    }
    return Outcome(
        publication=publication,
        claims=tuple(judged(publication, name, runs[name]) for name in publication.claims),
        pictures=_pictures(publication, efficient, swept),
        fitted=(_fitted(host_s),),
    )


def centred_on(profile: Profile, trials: Sequence[Trial]) -> list[Trial]:
    """Return the trials with their errors around none: kernels alone are right in the middle one.

    What software adds to kernels in the middle is left out: early servers' hosts are fitted in its
    place, and the efficient engine is to have none.
    """
    middle = Trial(0).error_of(profile)
    return [
        replace(trial, error=(1 + trial.error_of(profile)) / (1 + middle) - 1) for trial in trials
    ]


def at(scenario: Scenario, load: float) -> Scenario:
    """Return the scenario at a load, longer where a 90th percentile would be of few requests.

    How long a run is matters where queues grow, which is beyond such loads.
    """
    there = at_load(scenario, load)
    return there.model_copy(update={"duration_s": max(there.duration_s, FEWEST / load)})


def p90(result: Result) -> dict[str, float]:
    """Return the 90th percentile of latency."""
    return {"latency_s": result.metrics()["overall"]["turnaround_s"]["p90"]}


def _sweep(scenario: Scenario, loads: Sequence[float], trials: Sequence[Trial]) -> Sweep:
    return {load: over_trials(at(scenario, load), p90, trials)["latency_s"] for load in loads}


def _swept(
    scenario: Scenario, efficient: Sweep, trials: Sequence[Trial], told: Callable[[float], None]
) -> Swept:
    """Return what a baseline takes, as far as it is run."""
    low = _sweep(scenario, [load for load in LOADS if load <= LOW_PER_S], trials)
    middle = dict(_in_middle(low))
    for load in LOADS:
        told(load / LOADS[-1] / 2)
        if load not in middle:
            middle |= _sweep(scenario, [load], [_middle(trials)])
    ratios = []
    for place, (load, trial) in enumerate(zip(likely(efficient, middle), trials, strict=True)):
        told((1 + place / len(trials)) / 2)
        known = trial is _middle(trials)
        latency_s = middle[load] if known else _sweep(scenario, [load], [trial])[load]
        ratios.append(latency_s / efficient[load][place])
    return Swept(low=low, middle=middle, ratios=np.concatenate(ratios))


def likely(efficient: Sweep, middle: Sweep) -> list[float]:
    """Return the load in each trial at which latencies are likely to differ most.

    The baseline's latency there is taken from its middle trial.
    """
    loads = list(middle)
    ratios = np.array([middle[load] / efficient[load] for load in loads])  # (loads, trials)
    return [loads[place] for place in ratios.argmax(axis=0)]


def _middle(trials: Sequence[Trial]) -> Trial:
    return trials[len(trials) // 2]


def _in_middle(sweep: Sweep) -> Sweep:
    """Return what a sweep over all trials has for the middle one."""
    return {load: runs[[len(runs) // 2]] for load, runs in sweep.items()}


def host_of(anchor: Scenario) -> float:
    """Return what an early server adds to an iteration's kernels, median over four figures [s]."""
    found = []
    for requests, measured_s in MEASURED_S.items():
        duration_s = anchor.duration_s * requests / ANCHORED
        result = tried(anchor.model_copy(update={"duration_s": duration_s}), Trial(0, error=0.0))
        taken_s = result.metrics()["overall"]["span_s"]
        found.append((measured_s - taken_s) / result.usages[0].iterations)
    return float(np.median(found))


def tokens_of(scenario: Scenario, trials: Sequence[Trial]) -> Runs:
    """Return the mean tokens of a scenario's requests, prompt and answer, in each trial."""
    drawn = [draw_requests(scenario, trial.seed) for trial in trials]
    return np.array([(each["prompt_tokens"] + each["output_tokens"]).mean() for each in drawn])


def dense_beside_fused(publication: Publication) -> tuple[float, float]:
    """Return operations and weights read by the dense baseline's experts beside the fused one's.

    By what a device takes that has bandwidth, or arithmetic, in abundance.
    """
    computing = Rates(flop_per_s=1.0, bytes_per_s=inf)
    reading = Rates(flop_per_s=inf, bytes_per_s=1.0)
    fused, dense = (read(publication.scenario(name)).profiles["mixtral"].spec for name in BASELINES)
    missed = (1 - fused.num_experts_per_tok / fused.num_local_experts) ** LARGE
    hit = fused.num_local_experts * (1 - missed)
    operations, traffic = (
        expected_s(dense, rates)["experts"](LARGE, dense.num_local_experts)
        / expected_s(fused, rates)["experts"](LARGE, hit)
        for rates in (computing, reading)
    )
    return operations, traffic


def _against(efficient: Sweep, baseline: Swept) -> dict[str, Runs]:
    """Return the ratios' maxima in each trial, and where they are the published ones."""
    throughputs = throughput_ratios(efficient, baseline.low)
    latencies = latency_ratios(_in_middle(efficient), baseline.middle)
    return {
        "latency": baseline.ratios,
        "load": _first_at(list(baseline.middle), latencies, LATENCY_RATIO),
        "throughput": np.nanmax(throughputs, axis=0),
        "slo": _first_at(TARGETS_S[::-1], throughputs[::-1], THROUGHPUT_RATIO),
    }


def latency_ratios(efficient: Sweep, baseline: Sweep) -> Runs:
    """Return the baseline's p90 latency over the efficient engine's, (loads, trials)."""
    return np.array([baseline[load] / efficient[load] for load in baseline])


def throughput_ratios(efficient: Sweep, baseline: Sweep) -> Runs:
    """Return the efficient engine's throughput over the baseline's, (targets, trials).

    NaN where one of them misses the target even at the lowest load.
    """
    return _within_targets(efficient) / _within_targets(baseline)


def _within_targets(sweep: Sweep) -> Runs:
    """Return the load up to which p90 latency meets each target, (targets, trials).

    NaN where the lowest load misses it, and where loads that were left out might meet it.
    """
    loads = list(sweep)
    latencies_s = np.maximum.accumulate([sweep[load] for load in loads], axis=0)
    beyond = loads[-1] if loads[-1] == LOADS[-1] else float("nan")
    found = [
        np.interp(TARGETS_S, latency_s, loads, left=float("nan"), right=beyond)
        for latency_s in latencies_s.T
    ]
    return np.array(found).T


def _first_at(places: Sequence[float], ratios: Runs, wanted: float) -> Runs:
    """Return the first place where a ratio is at least what is wanted, in each trial; else NaN."""
    reached = ratios >= wanted
    first = np.array(places)[reached.argmax(axis=0)]
    return np.where(reached.any(axis=0), first, float("nan"))


def _fitted(host_s: float) -> Constant:
    return Constant(
        name="host of both baselines, in each iteration",
        value=f"{1e3 * host_s:.1f} ms",
        source="median of what is left of four measured latencies beyond kernels, by iterations",
        fitted_on="vLLM's own figures on two A100, 1,000 tokens in and 50 out, 1 to 64 at once [V]",
    )


def _pictures(
    publication: Publication, efficient: Sweep, swept: Mapping[str, Swept]
) -> tuple[Picture, ...]:
    names = {name: publication.scenarios[name]["name"] for name in ("efficient", *swept)}
    alone = _in_middle(efficient)
    sweeps = {"efficient": efficient, **{name: each.middle for name, each in swept.items()}}
    within = {name: _within_targets(sweep) for name, sweep in sweeps.items()}
    met = {
        name: np.flatnonzero(np.isfinite(loads).all(axis=1))[::2] for name, loads in within.items()
    }
    return (
        Picture(
            title="p90 latency against load",
            x_title="Load [requests/s]",
            y_title="p90 latency [s]",
            curves=tuple(
                curve(names[name], list(sweep), list(sweep.values()))
                for name, sweep in sweeps.items()
            ),
            published={},
            log_y=True,
        ),
        Picture(
            title="p90 latency of the baselines beside the efficient engine's",
            x_title="Load [requests/s]",
            y_title="Ratio",
            curves=tuple(
                curve(names[name], LOADS, list(latency_ratios(alone, each.middle)))
                for name, each in swept.items()
            ),
            published={},
            log_y=True,
        ),
        Picture(
            title="Throughput under a target on p90 latency",
            x_title="Target [s]",
            y_title="Requests/s",
            curves=tuple(
                curve(
                    names[name],
                    [TARGETS_S[place] for place in met[name]],
                    list(loads[met[name]]),
                )
                for name, loads in within.items()
            ),
            published={},
            log_x=True,
        ),
    )
