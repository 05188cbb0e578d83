"""nvidia: Mixtral on two H100 in FP8 and FP16, throughput against response and time per token.

Streaming changes what a client waits for and not what the engine does: with it, time per output
token counts, without it the response as a whole.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moesim.facts.catalog import load_device, load_model
from moesim.planning.load import at_load
from moesim.reproduction.claims import judged
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import Picture, curve
from moesim.reproduction.publication import Constant, Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials, prepared, tried
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
        inputs = prepared(there)
        online[name] = {
            rate: over_trials(at_load(there, rate / PUBLISHED_RATE), figures, trials, inputs)
            for rate in RATES
        }
        told(place / 2 + 0.25)
        there = publication.scenario(f"{name}.offline")
        offline[name] = {n: over_trials(_batch(there, n), figures, trials, inputs) for n in BATCHES}
    factor = factor_of(publication.scenario("fp8.offline"), _published(publication, "later.fp8"))
    runs = _runs(publication, online, offline) | _with_factor(publication, factor, trials)
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
        "in_flight": overall["throughput_rps"] * overall["turnaround_s"]["mean"],
        "step_ms": 1e3 * _step_s(result),
        "tokens_in_per_s": result.usages[0].batched_tokens / overall["span_s"],
    }


def _step_s(result: Result) -> float:
    """Return how long an iteration of decodes alone takes: the largest batch's, mean [s]."""
    log = next(iter(result.logs.values()))
    largest = log.sequences == log.tokens
    largest &= log.sequences == log.sequences[largest].max()
    return float(log.duration_s[largest].sum() / log.iterations[largest].sum())


def factor_of(offline: Scenario, tokens_per_s: float) -> float:
    """Return by which factor kernels have to take longer for a measured throughput."""
    inputs = prepared(offline)
    low, high = 1 / LARGEST_FACTOR, LARGEST_FACTOR
    while high - low > FIT:
        factor = (low + high) / 2
        found = figures(tried(offline, Trial(0, error=factor - 1), inputs))["tokens_per_s"]
        low, high = (factor, high) if found > tokens_per_s else (low, factor)
    return (low + high) / 2


def _with_factor(
    publication: Publication, factor: float, trials: Sequence[Trial]
) -> dict[str, Runs]:
    """Return the two published figures with all kernels slower by a factor, in each trial."""
    slowed = [replace(trial, error=factor - 1) for trial in trials]
    online, offline = (
        over_trials(publication.scenario(name), figures, slowed) for name in ("fp8", "fp8.offline")
    )
    return {
        "online.factor": online["tpot_ms"],
        "in_flight": online["in_flight"],
        "offline.factor": offline["tokens_per_s"],
    }


def _fitted(factor: float) -> Constant:
    return Constant(
        name="factor on all kernels",
        value=f"{factor:.2f}",
        source="what tables of kernels lack of an engine; in no figure but those that say so",
        fitted_on="TensorRT-LLM v0.14's own offline throughput in FP8, in no figure of this one",
    )


def _published(publication: Publication, name: str) -> float:
    value = publication.claims[name].published
    assert isinstance(value, float)  # noqa: S101  # the shipped file says so
    return value


def _batch(offline: Scenario, requests: float) -> Scenario:
    """Return the scenario with so many requests at once."""
    duration_s = offline.duration_s * requests / BATCHES[-1]
    return offline.model_copy(update={"duration_s": duration_s})


def _runs(publication: Publication, online: Sweeps, offline: Sweeps) -> dict[str, Runs]:
    """Return every claim's figure in each trial."""
    there = online["fp8"][PUBLISHED_RATE]
    largest, quarter = (offline["fp8"][n] for n in (BATCHES[-1], 256.0))
    within = {name: _within_response(online[name]) for name in FORMATS}
    return {
        "online": there["tpot_ms"],
        "peak": 100 * there["tokens_in_per_s"] * _share_of_peak(publication.scenario("fp8")),
        "offline": largest["tokens_per_s"],
        "offline.step": largest["step_ms"],
        "offline.batch": largest["tokens_per_s"] / quarter["tokens_per_s"],
        "later.fp8": largest["tokens_per_s"],
        "later.fp16": offline["fp16"][BATCHES[-1]]["tokens_per_s"],
        "formats": within["fp8"] / within["fp16"],
    }


def _share_of_peak(scenario: Scenario) -> float:
    """Return which share of its devices' FP8 peak one token a second is."""
    (model,) = scenario.models.values()
    device = load_device(scenario.hardware.device)
    assert device.fp8_flop_per_s is not None  # noqa: S101  # the shipped file says so
    peak = device.fp8_flop_per_s * scenario.hardware.count
    return load_model(model.architecture).flop_per_token / peak


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


def _pictures(publication: Publication, online: Sweeps, offline: Sweeps) -> tuple[Picture, ...]:
    names = {name: publication.scenarios[name]["name"] for name in FORMATS}
    tpot_ms, tokens_per_s = (_published(publication, name) for name in ("online", "offline"))
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
