"""nvidia: Mixtral on two H100 in FP8 and FP16, throughput against response and time per token.

Streaming changes what a client waits for and not what the engine does: with it, time per output
token counts, without it the response as a whole. What the engine adds to its kernels was found on
a later version's own results (`ENGINE`), and none of this publication's figures went into it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from moesim.cost.kernels.uncertainty import EXECUTOR_S
from moesim.facts.catalog import load_device, load_model
from moesim.planning.load import at_load
from moesim.reproduction.claims import judged
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import PUBLISHED, Picture, curve
from moesim.reproduction.publication import Constant, Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials, served_by
from moesim.scenario import Scenario
from moesim.simulation.run import Result

RATES = (1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 38.4, *np.arange(45.0, 105.0, 5.0).tolist())
"""Offered rates [requests/s]."""

PUBLISHED_RATE = 38.4
"""The rate of the published point, and of the online scenarios [requests/s]."""

LIMIT_S = 0.5
"""The published limit of the response; on what is not known."""

BATCHES = (1.0, 4.0, 16.0, 64.0, 256.0, 512.0, 1024.0)
"""Requests that are there at once; the last is what the offline scenarios are written with."""

FORMATS = ("fp8", "fp16")

ENGINE = "TensorRT-LLM 0.14"
"""The first version after the published v0.10 with results of in-flight batching on this device."""

Sweeps = Mapping[str, Mapping[float, Mapping[str, Runs]]]
"""Figures by scenario and rate, or batch."""


def reproduce_formats(told: Told, trials: Sequence[Trial]) -> Outcome:
    """Run the experiment and judge its claims."""
    publication = load_publication("nvidia")
    known = served_by(ENGINE, publication.scenario("fp8").hardware.device, trials)
    served = tuple(replace(trial, visit_s=EXECUTOR_S) for trial in known)
    online, offline = {}, {}
    for place, name in enumerate(FORMATS):
        told(place / 2)
        there = publication.scenario(name)
        online[name] = {
            rate: over_trials(at_load(there, rate / PUBLISHED_RATE), figures, served)
            for rate in RATES
        }
        told(place / 2 + 0.25)
        there = publication.scenario(f"{name}.offline")
        offline[name] = {n: over_trials(_batch(there, n), figures, served) for n in BATCHES}
    told(0.9)
    runs = (
        _runs(publication, online, offline)
        | _of_any_engine(publication, trials)
        | _of_later_version(publication, served)
    )
    told(1)
    return Outcome(
        publication=publication,
        claims=tuple(judged(publication, name, runs[name]) for name in publication.claims),
        pictures=_pictures(publication, online, offline),
        fitted=(_fitted(served), _RUNTIME),
    )


def figures(result: Result) -> dict[str, float]:
    """Return rates and mean latencies."""
    overall = result.metrics()["overall"]
    return {
        "requests_per_s": overall["throughput_rps"],
        "tokens_per_s": overall["output_tokens_per_s"],
        "response_s": overall["turnaround_s"]["mean"],
        "ttft_s": overall["ttft_s"]["mean"],
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


def _of_any_engine(publication: Publication, trials: Sequence[Trial]) -> dict[str, Runs]:
    """Return the two published figures with what engines of all versions and makers add."""
    online, offline = (
        over_trials(publication.scenario(name), figures, trials) for name in ("fp8", "fp8.offline")
    )
    return {"online.any": online["tpot_ms"], "offline.any": offline["tokens_per_s"]}


def _of_later_version(publication: Publication, served: Sequence[Trial]) -> dict[str, Runs]:
    """Return offline throughputs with the batch of the later version's own benchmark."""
    return {
        f"later.{name}": over_trials(publication.scenario(f"{name}.later"), figures, served)[
            "tokens_per_s"
        ]
        for name in FORMATS
    }


def _fitted(served: Sequence[Trial]) -> Constant:
    factors = [1 + (trial.error or 0.0) for trial in served]
    spread = f", {min(factors):.2f} to {max(factors):.2f} over the runs" if len(served) > 1 else ""
    return Constant(
        name="what the engine adds to its kernels, a factor on all of them",
        value=f"{np.median(factors):.2f}{spread}",
        source=f"measured over predicted by kernels alone, {ENGINE} on H100 (docs/accuracy.md)",
        fitted_on=(
            "that version's own performance overview on this device, several models and lengths; "
            "no figure of this publication"
        ),
    )


_RUNTIME = Constant(
    name="what its C++ runtime takes beside, for each sequence in each layer",
    value=f"{EXECUTOR_S * 1e6:.3f} us",
    source=f"{ENGINE}: rows of many sequences beside rows of few (docs/accuracy.md)",
    fitted_on="that version's rows of Llama 8B and 70B; no figure of this publication",
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
    responses = {name: _within(online[name], "response_s") for name in FORMATS}
    firsts = {name: _within(online[name], "ttft_s") for name in FORMATS}
    return {
        "online": there["tpot_ms"],
        "in_flight": there["in_flight"],
        "peak": 100 * there["tokens_in_per_s"] * _share_of_peak(publication.scenario("fp8")),
        "offline": largest["tokens_per_s"],
        "offline.step": largest["step_ms"],
        "offline.batch": largest["tokens_per_s"] / quarter["tokens_per_s"],
        "formats": responses["fp8"] / responses["fp16"],
        "formats.first": firsts["fp8"] / firsts["fp16"],
    }


def _share_of_peak(scenario: Scenario) -> float:
    """Return which share of its devices' FP8 peak one token a second is."""
    (model,) = scenario.models.values()
    device = load_device(scenario.hardware.device)
    assert device.fp8_flop_per_s is not None  # noqa: S101  # the shipped file says so
    peak = device.fp8_flop_per_s * scenario.hardware.count
    return load_model(model.architecture).flop_per_token / peak


def _within(sweep: Mapping[float, Mapping[str, Runs]], latency: str) -> Runs:
    """Return the throughput at which a mean latency is `LIMIT_S`, in each trial; NaN if never."""
    latencies = np.log([sweep[rate][latency] for rate in RATES])
    rates = np.array([sweep[rate]["requests_per_s"] for rate in RATES])
    ends = {"left": float("nan"), "right": float("nan")}
    return np.array(
        [
            np.interp(np.log(LIMIT_S), latency, rate, **ends)
            for latency, rate in zip(latencies.T, rates.T, strict=True)
        ]
    )


def _pictures(publication: Publication, online: Sweeps, offline: Sweeps) -> tuple[Picture, ...]:
    names = {name: publication.scenarios[name]["name"] for name in FORMATS}
    tpot_ms, tokens_per_s = (_published(publication, name) for name in ("online", "offline"))
    point = f"{PUBLISHED}{names['fp8']}"
    response = "Mean response [s]"
    per_token = "Mean time per output token [ms]"  # noqa: S105
    return (
        _against("response_s", response, names, online, {}),
        _against(
            "tpot_ms",
            per_token,
            names,
            online,
            {point: (tpot_ms, PUBLISHED_RATE)},
        ),
        Picture(
            title="Offline throughput against batch",
            x_title="Requests at once",
            y_title="Output tokens/s",
            curves=tuple(
                curve(title, BATCHES, [offline[name][n]["tokens_per_s"] for n in BATCHES])
                for name, title in names.items()
            ),
            published={point: (BATCHES[-1], tokens_per_s)},
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
