"""expert-router: a gateway before expert models, beside one tensor-parallel model of their GPUs.

Time to first token, time per token and throughput against the number of closed-loop users, the
gateway's share of the turnaround, and what clusters of different sizes cost.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from moesim.planning.load import at_load
from moesim.reproduction.claims import judged
from moesim.reproduction.outcome import Outcome, Told
from moesim.reproduction.picture import Picture, curve
from moesim.reproduction.publication import Publication, load_publication
from moesim.reproduction.trials import Runs, Trial, over_trials
from moesim.scenario import Scenario
from moesim.serving.metrics import with_latencies
from moesim.simulation.deploy import gateway_of
from moesim.simulation.run import Result

USERS = (1, 10, 50, 100, 250, 500, 1000)
"""How many users there are; the paper goes up to 1,000."""

MOST = 1000
"""The number of users that the scenarios are written with."""

WARM_UP = 0.25
"""Share of a run that is left out of its figures."""

PANELS = {
    "tokens_per_s": ("Throughput", "Output tokens/s", False),
    "ttft_s": ("Mean TTFT", "TTFT [s]", True),
    "tpot_s": ("Mean TPOT", "TPOT [s]", False),
    "gateway_percent": ("Gateway's share of the turnaround", "Share [%]", False),
}
"""The plots: titles, what is on the y axis, and whether that is logarithmic."""

Sweeps = Mapping[str, Mapping[int, Mapping[str, Runs]]]
"""Figures by scenario and number of users."""


def reproduce_routed(told: Told, trials: Sequence[Trial]) -> Outcome:
    """Run the experiment and judge its claims."""
    publication = load_publication("expert-router")
    sweeps: dict[str, dict[int, dict[str, Runs]]] = {}
    for place, name in enumerate(publication.scenarios):
        scenario = publication.scenario(name)
        sweeps[name] = {}
        for step, users in enumerate(USERS):
            told((place + step / len(USERS)) / len(publication.scenarios))
            there = at_load(scenario, users / MOST)
            sweeps[name][users] = over_trials(there, figures_of(there), trials)
    runs = _runs(sweeps)
    return Outcome(
        publication=publication,
        claims=tuple(judged(publication, name, runs[name]) for name in publication.claims),
        pictures=_pictures(publication, sweeps),
    )


def figures_of(scenario: Scenario) -> Callable[[Result], dict[str, float]]:
    """Return what reads the means over those who arrive after the warm-up, and their tokens."""
    begun_s = WARM_UP * scenario.duration_s

    def figures(result: Result) -> dict[str, float]:
        records = with_latencies(result.records)
        late = records[records["arrival_s"] >= begun_s]
        finish_s = records["finish_s"]
        given = records[(finish_s >= begun_s) & (finish_s < scenario.duration_s)]
        return {
            "tokens_per_s": given["output_tokens"].sum() / (scenario.duration_s - begun_s),
            "ttft_s": float(late["ttft_s"].mean()),
            "tpot_s": float(late["tpot_s"].mean()),
            "turnaround_s": float(late["turnaround_s"].mean()),
            "gateway_percent": 100 * _gateway_share(scenario, result),
        }

    return figures


def _gateway_share(scenario: Scenario, result: Result) -> float:
    """Return the share of all turnarounds that prompts wait for and spend in the gateway."""
    gateway = gateway_of(scenario, result.seed)
    if gateway is None:
        return 0.0
    sent = gateway.all_sent(result.records)
    begun_s = WARM_UP * scenario.duration_s
    late = sent["arrival_s"] >= begun_s
    turnarounds_s = (result.records["finish_s"] - result.records["arrival_s"])[late]
    return float(sent["delay_s"][late].sum() / turnarounds_s.sum())


def _runs(sweeps: Sweeps) -> dict[str, Runs]:
    """Return every claim's figure in each trial."""
    small, even, large, one = (sweeps[name] for name in ("skewed", "even", "large", "one"))
    most, half, some, few = 1000, 500, 100, 10
    shares = np.array([small[users]["gateway_percent"] for users in USERS])
    return {
        "gateway": shares.max(axis=0),
        "plateau": one[most]["tokens_per_s"] / one[half]["tokens_per_s"],
        "experts.plateau": small[most]["tokens_per_s"] / small[half]["tokens_per_s"],
        "throughput": small[most]["tokens_per_s"] / one[most]["tokens_per_s"],
        "ttft": small[most]["ttft_s"] / one[most]["ttft_s"],
        "tpot": small[most]["tpot_s"] / one[most]["tpot_s"],
        "range": np.min(
            [small[users]["tokens_per_s"] / one[users]["tokens_per_s"] for users in USERS], axis=0
        ),
        "large.ttft": large[some]["ttft_s"] / large[few]["ttft_s"],
        "large": large[some]["tpot_s"] / large[few]["tpot_s"],
        "configuration": large[some]["turnaround_s"] / small[some]["turnaround_s"],
        "skew": even[most]["tokens_per_s"] / small[most]["tokens_per_s"],
        "absolute": small[most]["tokens_per_s"],
    }


def _pictures(publication: Publication, sweeps: Sweeps) -> tuple[Picture, ...]:
    return tuple(
        Picture(
            title=title,
            x_title="Users",
            y_title=y_title,
            curves=tuple(
                curve(
                    publication.scenarios[name]["name"],
                    USERS,
                    [sweep[users][figure] for users in USERS],
                )
                for name, sweep in sweeps.items()
            ),
            published={},
            log_x=True,
            log_y=log_y,
        )
        for figure, (title, y_title, log_y) in PANELS.items()
    )
