"""Replications: what is shared, what is redrawn, and what medians and intervals are of."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pandas as pd
import pytest

import moesim.requests
from moesim.cost.profile import Profile
from moesim.cost.residuals import resampled
from moesim.errors import ScenarioError
from moesim.scenario import Scenario, scenario_from
from moesim.simulation.replications import (
    Metrics,
    Replications,
    default_replications,
    replicate,
    what_varies,
)
from moesim.simulation.run import Result, simulate

Content = Callable[[], dict[str, Any]]
Replay = Callable[..., Scenario]


@pytest.fixture(scope="module")
def noisy(tiny_profile: Profile) -> dict[str, Profile]:
    """Return the tiny profile, which now says that it is off by 10 % half of the time."""
    verdict = tiny_profile.verdict.model_copy(update={"iteration_error_p50": 0.1})
    return {"m": tiny_profile.model_copy(update={"verdict": verdict})}


@pytest.fixture(scope="module")
def exact(tiny_profile: Profile) -> dict[str, Profile]:
    """Return the tiny profile without any error."""
    operations = {
        name: [cell.model_copy(update={"spread": 0.0}) for cell in cells]
        for name, cells in tiny_profile.operations.items()
    }
    return {"m": tiny_profile.model_copy(update={"operations": operations})}


@pytest.fixture(scope="module")
def scenario(tiny_scenario: Content) -> Scenario:
    """Return the tiny scenario with a second tenant, for ten times as long."""
    content = tiny_scenario() | {"duration_s": 100.0}
    content["tenants"]["code"] = content["tenants"]["chat"]
    return scenario_from(content)


@pytest.fixture(scope="module")
def found(scenario: Scenario, noisy: dict[str, Profile]) -> Replications:
    return replicate(scenario, noisy, 3, replications=8)


def leaves(tree: Metrics, path: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Yield the places of a tree and what is there."""
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, (*path, name))
        else:
            yield (*path, name), value


def of_runs(result: Result, *utilisation: float | None) -> Metrics:
    """Return the metrics of replications that differ in one figure."""
    runs = tuple(result.metrics() | {"utilisation": {"m/0": value}} for value in utilisation)
    return Replications(first=result, runs=runs, varied="profile", elapsed_s=1.0).metrics()


def test_the_first_run_is_the_scenario_as_it_is(
    scenario: Scenario, noisy: dict[str, Profile], found: Replications
) -> None:
    """Its seed is the one asked for, its profile the measured one."""
    alone = simulate(scenario, noisy, 3)
    pd.testing.assert_frame_equal(found.first.records, alone.records)
    assert found.metrics()["steady"]["sentence"] == alone.metrics()["steady"]["sentence"]


def test_intervals_have_the_places_of_the_figures(found: Replications) -> None:
    """And hold them; all that is no estimate is the first run's."""
    metrics = found.metrics()
    intervals = dict(leaves(metrics["intervals"]))
    for place, value in leaves({name: metrics[name] for name in metrics["intervals"]}):
        ends = intervals.pop(place)
        assert (ends is None) == (value is None), place  # no targets, no goodput
        assert ends is None or ends[0] <= value <= ends[1]
    assert intervals == {}
    first = found.first.metrics()
    assert {name: metrics[name] for name in ("scenario", "seed", "basis")} == {
        name: first[name] for name in ("scenario", "seed", "basis")
    }
    assert set(metrics["tenants"]) == {"chat", "code"}
    assert (metrics["replications"], len(found.runs)) == (8, 7)


def test_counts_stay_counts(found: Replications) -> None:
    """Half a request was never served, in the median as little as at an end."""
    metrics = found.metrics()
    for count in ("requests", "completed", "refused", "preemptions"):
        assert isinstance(metrics["overall"][count], int)
        assert all(isinstance(end, int) for end in metrics["intervals"]["overall"][count])


def test_a_single_run_speaks_for_itself(scenario: Scenario, noisy: dict[str, Profile]) -> None:
    """Its figures are `simulate`'s, there is no interval, and nobody agrees with it."""
    metrics = replicate(scenario, noisy, 3, replications=1).metrics()
    alone = simulate(scenario, noisy, 3).metrics()
    assert {name: metrics[name] for name in alone if name != "steady"} == {
        name: value for name, value in alone.items() if name != "steady"
    }
    assert metrics["steady"] == alone["steady"] | {"agreed": None}
    assert [metrics[name] for name in ("replications", "intervals", "coverage", "varied")] == [
        1, None, None, None,
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("runs", "low", "high", "coverage"),
    [(5, 1, 5, 4 / 6), (19, 1, 19, 0.9), (39, 2, 38, 0.9), (29, 1.5, 28.5, 0.9)],
)
def test_an_interval_holds_nine_in_ten_as_soon_as_it_can(
    replay: Replay, runs: int, low: float, high: float, coverage: float
) -> None:
    """Of 1, 2, ... n: the ends are at 5 and 95 % of n + 1; fewer than 19 reach from end to end.

    A further number is equally likely in each of the n + 1 gaps that n numbers leave: from first to
    last there are n - 1 of them.
    """
    result = simulate(replay([(0, 4, 2)]))
    metrics = of_runs(result, *(float(n) for n in reversed(range(1, runs + 1))))
    assert metrics["intervals"]["utilisation"]["m/0"] == pytest.approx([low, high])
    assert metrics["utilisation"]["m/0"] == (runs + 1) / 2
    assert metrics["coverage"] == pytest.approx(coverage)


def test_a_figure_is_over_the_runs_that_have_it(replay: Replay) -> None:
    """None where none has."""
    result = simulate(replay([(0, 4, 2)]))
    some = of_runs(result, 1.0, None, 3.0)
    assert some["utilisation"]["m/0"] == 2.0
    assert some["intervals"]["utilisation"]["m/0"] == [1.0, 3.0]
    none = of_runs(result, None, None)
    assert (none["utilisation"]["m/0"], none["intervals"]["utilisation"]["m/0"]) == (None, None)


def test_the_verdict_says_how_many_agree(replay: Replay) -> None:
    """Two of four are as short as the first."""
    result = simulate(replay([(0, 4, 2)]))
    runs = [result.metrics() for _ in range(4)]
    for run in runs[:2]:
        run["steady"]["kind"] = "steady"
    metrics = Replications(first=result, runs=tuple(runs), varied="", elapsed_s=0).metrics()
    assert (metrics["steady"]["kind"], metrics["steady"]["agreed"]) == ("too short", 0.5)


def test_a_replayed_trace_varies_only_with_the_profile(
    replay: Replay, exact: dict[str, Profile], noisy: dict[str, Profile]
) -> None:
    """With an exact profile all runs are one; with another they differ in time, not in tokens."""
    scenario = replay([(0.1 * n, 4, 3) for n in range(8)])
    sure, unsure = (replicate(scenario, p, replications=5).metrics() for p in (exact, noisy))
    assert sure["varied"] == unsure["varied"] == "profile"
    low, high = sure["intervals"]["overall"]["turnaround_s"]["p99"]
    assert low == high == sure["overall"]["turnaround_s"]["p99"]
    low, high = unsure["intervals"]["overall"]["turnaround_s"]["p99"]
    assert low < high
    assert unsure["intervals"]["overall"]["requests"] == [8, 8]


@pytest.mark.parametrize(
    "arrivals",
    [{"kind": "poisson", "rate_per_s": 3.0}, {"kind": "users", "count": 4, "think_s": 0.5}],
)
def test_the_same_requests_in_every_run(
    tiny_scenario: Content,
    exact: dict[str, Profile],
    noisy: dict[str, Profile],
    arrivals: dict[str, Any],
) -> None:
    """Streams and users are the first run's: with an exact profile every run is that run."""
    content = tiny_scenario()
    content["tenants"]["chat"]["arrivals"] = arrivals
    scenario = scenario_from(content)
    sure = replicate(scenario, exact, 3, replications=5, same_requests=True)
    assert [run["overall"] for run in sure.runs] == [sure.first.metrics()["overall"]] * 4
    unsure = replicate(scenario, noisy, 3, replications=5, same_requests=True)
    assert len({run["overall"]["ttft_s"]["mean"] for run in unsure.runs}) == 4
    assert sure.varied == unsure.varied == "profile"
    redrawn = replicate(scenario, exact, 3, replications=5)
    assert len({run["overall"]["ttft_s"]["mean"] for run in redrawn.runs}) == 4


def test_profiles_are_redrawn_alike_whatever_else_is(
    replay: Replay, noisy: dict[str, Profile]
) -> None:
    """Of a replayed trace the requests are the same anyway."""
    scenario = replay([(0.1 * n, 4, 3) for n in range(8)])
    same, other = (
        replicate(scenario, noisy, replications=5, same_requests=same) for same in (True, False)
    )
    assert [run["overall"] for run in same.runs] == [run["overall"] for run in other.runs]


def test_reality_falls_inside_as_often_as_said(
    tiny_scenario: Content, noisy: dict[str, Profile]
) -> None:
    """Where reality is off by the profile's own errors: 200 of them, 10 intervals."""
    scenario = scenario_from(tiny_scenario())
    hits = []
    for seed in range(10):
        found = replicate(scenario, noisy, seed, replications=20, same_requests=True)
        low, high = found.metrics()["intervals"]["overall"]["turnaround_s"]["mean"]
        for other in range(20):
            rng = np.random.default_rng([seed, other])
            real = {"m": resampled(noisy["m"], rng)}
            mean_s = simulate(scenario, real, seed).metrics()["overall"]["turnaround_s"]["mean"]
            hits.append(low <= mean_s <= high)
    # The standard deviation of the share is about 0.03: of an interval's own coverage, 0.065, over
    # the root of 10, and of the 200 trials.
    assert 0.81 < np.mean(hits) < 0.99


@pytest.mark.parametrize(
    ("changes", "varied"),
    [
        ({}, "arrivals, lengths, profile"),
        ({"arrivals": {"kind": "constant", "rate_per_s": 1.0}}, "lengths, profile"),
        (
            {name: {"kind": "fixed", "tokens": 4} for name in ("prompt_tokens", "output_tokens")},
            "arrivals, profile",
        ),
    ],
)
def test_what_is_redrawn_is_named(
    tiny_scenario: Content, changes: dict[str, Any], varied: str
) -> None:
    content = tiny_scenario()
    content["tenants"]["chat"] |= changes
    assert what_varies(scenario_from(content)) == varied


def test_runs_do_not_depend_on_how_many_there_are(
    scenario: Scenario, noisy: dict[str, Profile], found: Replications
) -> None:
    """The first three of eight are the three of four; another seed gives others."""
    assert replicate(scenario, noisy, 3, replications=4).runs == found.runs[:3]
    other = replicate(scenario, noisy, 4, replications=4)
    assert other.runs[0]["overall"]["ttft_s"] != found.runs[0]["overall"]["ttft_s"]


def test_deployments_meet_the_same_chance_run_by_run(
    tiny_scenario: Content, noisy: dict[str, Profile]
) -> None:
    """What a smaller batch costs is known far better from pairs than from runs of their own."""
    runs = []
    for max_num_seqs in (8, 4):
        content = tiny_scenario() | {"duration_s": 60.0}
        content["deployment"]["scheduler"]["max_num_seqs"] = max_num_seqs
        found = replicate(scenario_from(content), noisy, replications=20)
        runs.append([run["overall"] for run in found.runs])
    assert [run["requests"] for run in runs[0]] == [run["requests"] for run in runs[1]]
    larger, smaller = (np.log([run["turnaround_s"]["mean"] for run in part]) for part in runs)
    paired = (smaller - larger).std()
    unpaired = (np.roll(smaller, 1) - larger).std()
    assert 0 < paired < unpaired / 10


def test_a_trace_is_read_once(replay: Replay, monkeypatch: pytest.MonkeyPatch) -> None:
    """However many runs there are."""
    read = moesim.requests.read_trace
    paths = []

    def watched(path: Any, **options: Any) -> Any:
        paths.append(path)
        return read(path, **options)

    monkeypatch.setattr(moesim.requests, "read_trace", watched)
    replicate(replay([(0, 4, 2), (1, 4, 2)]), replications=5)
    assert len(paths) == 1


def test_runs_without_a_request_are_left_out(
    tiny_scenario: Content, noisy: dict[str, Profile]
) -> None:
    """At one request in 20 s, three in five of runs of 10 s have none."""
    content = tiny_scenario()
    content["tenants"]["chat"]["arrivals"]["rate_per_s"] = 0.05
    rare = scenario_from(content)
    with pytest.raises(ScenarioError, match="no request arrives"):
        replicate(rare, noisy, 0)
    seed = next(seed for seed in range(20) if _has_requests(rare, noisy, seed))
    found = replicate(rare, noisy, seed, replications=20)
    assert 2 < len(found.runs) < 14
    assert found.metrics()["replications"] == 1 + len(found.runs)


def _has_requests(scenario: Scenario, profiles: dict[str, Profile], seed: int) -> bool:
    try:
        return len(simulate(scenario, profiles, seed).records) > 0
    except ScenarioError:
        return False


def test_large_scenarios_run_less_often() -> None:
    """Twenty times up to 25 thousand requests, never fewer than six."""
    assert [default_replications(n) for n in (0, 25_000, 50_000, 10**7)] == [20, 20, 10, 6]


def test_why_requests_are_refused_most_often(replay: Replay) -> None:
    """Reasons are alike that differ in their numbers; the first of them is told."""
    rows = [(0, 4, 2), (1, 0, 2), (2, 70, 2), (3, 80, 2)]
    assert replicate(replay(rows), replications=1).metrics()["refusal"] == (
        "prompt 70 + output 2 tokens exceed the model's maximum of 64"
    )
    assert replicate(replay(rows[:2]), replications=1).metrics()["refusal"] == "empty prompt"
    assert replicate(replay(rows[:1]), replications=1).metrics()["refusal"] is None


@pytest.mark.parametrize("count", [0, -1, 2])
def test_counts_that_make_no_sense(scenario: Scenario, count: int) -> None:
    with pytest.raises(ScenarioError, match=f"replications: {count}: give 1"):
        replicate(scenario, replications=count)


def test_progress_is_told_before_every_further_run(
    scenario: Scenario, noisy: dict[str, Profile]
) -> None:
    """How many are done, and how many there will be."""
    told: list[tuple[int, int]] = []
    replicate(scenario, noisy, replications=4, progress=lambda *now: told.append(now))
    assert told == [(1, 4), (2, 4), (3, 4)]


@pytest.mark.parametrize("count", [2, 6])
def test_more_models_are_no_more_known(count: int) -> None:
    """Rooflines of one device are wrong together: their mean errs as any of them does."""

    def ratio(models: int) -> list[float]:
        names = [f"m{number}" for number in range(models)]
        tenant = {
            "arrivals": {"kind": "constant", "rate_per_s": 1.0},
            "prompt_tokens": {"kind": "fixed", "tokens": 64},
            "output_tokens": {"kind": "fixed", "tokens": 16},
        }
        scenario = scenario_from(
            {
                "name": "alike",
                "duration_s": 5,
                "models": {n: {"architecture": "llama-3-8b", "profile": "roofline"} for n in names},
                "tenants": {f"to {n}": {"model": n, **tenant} for n in names},
                "hardware": {"device": "h200-sxm-141gb", "count": models},
                "deployment": {"kind": "dedicated"},
            }
        )
        metrics = replicate(scenario).metrics()
        low, high = metrics["intervals"]["overall"]["tpot_s"]["mean"]
        return [low, high]

    assert ratio(count) == pytest.approx(ratio(1), rel=1e-6)
