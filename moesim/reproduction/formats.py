"""nvidia: Mixtral on two H100 in FP8 and FP16, throughput against response and time per token."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moesim.planning.load import at_load
from moesim.reproduction.claims import judged
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import Picture, curve
from moesim.reproduction.publication import Constant, Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials, tried
from moesim.scenario import Scenario
from moesim.simulation.run import Result

RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 38.4, 45.0, 50.0, 60.0, 80.0, 100.0)
"""Offered rates [requests/s]."""

PUBLISHED_RATE = 38.4
"""The rate of the published point, and of the online scenarios [requests/s]."""

RESPONSE_S = 0.5
"""The published limit of mean response [s]."""

BATCHES = (1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0)
"""Requests that are there at once; the last is what the offline scenarios are written with."""

FORMATS = ("fp8", "fp16")
LARGEST_FACTOR = 4.0
FIT = 1e-3
"""How exactly the factor is found."""

Sweeps = Mapping[str, Mapping[float, Mapping[str, Runs]]]
"""Figures by scenario and rate, or batch."""


def reproduce_formats(told: Told, trials: Sequence[Trial]) -> Outcome:
    """Run the experiment and judge its claims."""
    publication = load_publication("nvidia")
    online, offline = {}, {}
    for place, name in enumerate(FORMATS):
        told(place / 2)
        there = publication.scenario(name)
        online[name] = {
            rate: over_trials(at_load(there, rate / PUBLISHED_RATE), figures, trials)
            for rate in RATES
        }
        told(place / 2 + 0.25)
        there = publication.scenario(f"{name}.offline")
        offline[name] = {n: over_trials(_batch(there, n), figures, trials) for n in BATCHES}
    runs, factor = _runs(publication, online, offline, trials)
    told(1)
    return Outcome(
        publication=publication,
        claims=tuple(judged(publication, name, runs[name]) for name in publication.claims),
        pictures=_pictures(publication, online, offline),
        fitted=(_fitted(factor),),
    )


def figures(result: Result) -> dict[str, float]:
    """Return rates and mean latencies."""
    overall = result.metrics()["overall"]
    return {
        "requests_per_s": overall["throughput_rps"],
        "tokens_per_s": overall["output_tokens_per_s"],
        "response_s": overall["turnaround_s"]["mean"],
        "tpot_ms": 1e3 * overall["tpot_s"]["mean"],
    }


def factor_of(offline: Scenario, tokens_per_s: float) -> float:
    """Return by which factor kernels have to take longer for a published throughput."""
    low, high = 1.0, LARGEST_FACTOR
    while high - low > FIT:
        factor = (low + high) / 2
        found = figures(tried(offline, Trial(0, factor - 1)))["tokens_per_s"]
        low, high = (factor, high) if found > tokens_per_s else (low, factor)
    return (low + high) / 2


def _batch(offline: Scenario, requests: float) -> Scenario:
    """Return the scenario with so many requests at once."""
    duration_s = offline.duration_s * requests / BATCHES[-1]
    return offline.model_copy(update={"duration_s": duration_s})


def _runs(
    publication: Publication, online: Sweeps, offline: Sweeps, trials: Sequence[Trial]
) -> tuple[dict[str, Runs], float]:
    """Return every claim's figure in each trial, and the factor that was fitted."""
    published = publication.claims["offline"].published
    assert isinstance(published, float)  # noqa: S101  # the shipped file says so
    factor = factor_of(publication.scenario("fp8.offline"), published)
    slowed = [replace(trial, error=factor - 1) for trial in trials]
    fitted = over_trials(publication.scenario("fp8"), figures, slowed)
    largest, quarter = (offline["fp8"][n]["tokens_per_s"] for n in (BATCHES[-1], 256.0))
    within = {name: _within_response(online[name]) for name in FORMATS}
    return {
        "online": online["fp8"][PUBLISHED_RATE]["tpot_ms"],
        "online.fitted": fitted["tpot_ms"],
        "offline": largest,
        "offline.batch": largest / quarter,
        "formats": within["fp8"] / within["fp16"],
    }, factor


def _within_response(sweep: Mapping[float, Mapping[str, Runs]]) -> Runs:
    """Return the throughput at the published response, in each trial; NaN where it is never met."""
    responses_s = np.array([sweep[rate]["response_s"] for rate in RATES])
    rates = np.array([sweep[rate]["requests_per_s"] for rate in RATES])
    return np.array(
        [
            np.interp(RESPONSE_S, response_s, rate, left=float("nan"))
            for response_s, rate in zip(responses_s.T, rates.T, strict=True)
        ]
    )


def _fitted(factor: float) -> Constant:
    return Constant(
        name="factor on all kernels",
        value=f"{factor:.2f}",
        source="what rooflines lack of the published engine; in no figure but the one that says so",
        fitted_on="the published offline throughput at batch 1,024",
    )


def _pictures(publication: Publication, online: Sweeps, offline: Sweeps) -> tuple[Picture, ...]:
    names = {name: publication.scenarios[name]["name"] for name in FORMATS}
    tpot_ms, tokens_per_s = (publication.claims[name].published for name in ("online", "offline"))
    assert isinstance(tpot_ms, float)  # noqa: S101  # the shipped file says so
    assert isinstance(tokens_per_s, float)  # noqa: S101
    response = "Mean response [s]"
    per_token = "Mean time per output token [ms]"  # noqa: S105
    return (
        _against("response_s", response, names, online, {}),
        _against(
            "tpot_ms", per_token, names, online, {"published: FP8": (tpot_ms, PUBLISHED_RATE)}
        ),
        Picture(
            title="Offline throughput against batch",
            x_title="Requests at once",
            y_title="Output tokens/s",
            curves=tuple(
                curve(title, BATCHES, [offline[name][n]["tokens_per_s"] for n in BATCHES])
                for name, title in names.items()
            ),
            published={"published: FP8": (BATCHES[-1], tokens_per_s)},
            log_x=True,
        ),
    )


def _against(
    figure: str,
    x_title: str,
    names: Mapping[str, str],
    online: Sweeps,
    published: Mapping[str, tuple[float, float]],
) -> Picture:
    """Return throughput against a latency, a point a rate."""
    return Picture(
        title=f"Throughput against {x_title[0].lower()}{x_title[1:].split(' [')[0]}",
        x_title=x_title,
        y_title="Requests/s",
        curves=tuple(
            curve(
                title,
                [found[figure] for found in online[name].values()],
                [found["requests_per_s"] for found in online[name].values()],
            )
            for name, title in names.items()
        ),
        published=published,
        log_x=True,
    )
