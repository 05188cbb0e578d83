"""Queueing theory: what is known exactly about a server must come out of the simulator.

Most servers here are an `Ideal` one: every iteration lasts 10 ms, whatever is in it. A prompt of
one token and an answer of n tokens then take n iterations, so the distribution of answers is that
of service, and `max_num_seqs` is the number of servers. An idle replica begins at once; a busy one
lets newcomers in between iterations, which is the only difference from continuous time: with
several servers a wait is longer by at most one iteration.

A figure is a mean over independent runs. It must lie within four standard errors of the closed
form, and the standard error within a given share of it, or the test says nothing.
"""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, scenario_from
from moesim.serving.iterations import Iterations
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS
from moesim.serving.records import COMPLETED, REFUSED
from moesim.serving.series import time_series
from moesim.simulation.run import Result, simulate

Content = Callable[[], dict[str, Any]]

SEEDS = range(12)
ITERATION_S = 0.01


# What is measured, and what it is held against.


def _agrees(
    found: Sequence[float], theory: float, *, share: float, early: float = 0.0, late: float = 0.0
) -> None:
    """Demand the closed form of independent runs, or up to `early` below and `late` above it."""
    error = np.std(found, ddof=1) / math.sqrt(len(found))
    assert -early - 4 * error <= np.mean(found) - theory <= late + 4 * error
    assert error < share * theory


def _steady(records: pd.DataFrame, share: float = 0.1) -> pd.DataFrame:
    """Leave out the first requests, which find the system emptier than it will be."""
    return records.iloc[int(share * len(records)) :]


def _waits(records: pd.DataFrame) -> "pd.Series[float]":
    return records["scheduled_s"] - records["arrival_s"]


@dataclass(frozen=True)
class Law:
    """A distribution of answers: `chance[n - 1]` is that of n tokens; `spec` is a scenario's."""

    chance: NDArray[np.float64]
    spec: Mapping[str, Any]

    @cached_property
    def service_s(self) -> NDArray[np.float64]:
        """Return how long each number of tokens takes on the ideal server [s]."""
        return np.asarray(ITERATION_S * np.arange(1, len(self.chance) + 1))

    def moment(self, power: int) -> float:
        """Return E[S^power] of the service time S [s^power]."""
        return float(self.chance @ self.service_s**power)

    def transform(self, per_s: float) -> float:
        """Return E[exp(-per_s S)], the chance that nothing of that rate happens during service."""
        return float(self.chance @ np.exp(-per_s * self.service_s))


def geometric(mean: float) -> Law:
    """Return geometric lengths, the whole numbers' exponential.

    A quantile table that rises by one token over each length's chance is rounded to exactly that
    law; its tail of 1e-9 goes to the longest length.
    """
    stop = 1 / mean
    longest = int(math.log(1e-9) / math.log1p(-stop))
    below = 1 - (1 - stop) ** np.arange(longest + 1)
    below[-1] = 1.0
    tokens = np.arange(longest + 1) + 0.5
    spec = {"kind": "quantiles", "levels": below.tolist(), "tokens": tokens.tolist()}
    return Law(np.diff(below), spec)


def lognormal(mean: float, cv: float) -> Law:
    """Return lognormal lengths, rounded to at least one token and at most 50 means."""
    sigma = math.sqrt(math.log1p(cv**2))
    most = int(50 * mean)
    edges = np.log(np.arange(1, most) + 0.5)
    standard = (edges - math.log(mean) + sigma**2 / 2) / sigma
    below = [0.0, *(math.erfc(-x / math.sqrt(2)) / 2 for x in standard), 1.0]
    return Law(np.diff(below), {"kind": "lognormal", "mean": mean, "cv": cv, "max": most})


def fixed(tokens: int) -> Law:
    """Return answers of one length."""
    chance = np.zeros(tokens)
    chance[-1] = 1.0
    return Law(chance, {"kind": "fixed", "tokens": tokens})


@dataclass(frozen=True)
class Ideal:
    """A model whose iterations all last 10 ms, with room for everybody."""

    models: Mapping[str, Any]

    def scenario(
        self,
        tenants: Mapping[str, tuple[Mapping[str, Any], Law]],
        *,
        servers: int = 1,
        duration_s: float,
        order: str = "fcfs",
    ) -> Scenario:
        """Return a scenario of tenants by name, each with its arrivals and its law of answers.

        Their priorities rise and their weights fall in the order in which they are given.
        """
        return scenario_from(
            {
                "name": "ideal",
                "duration_s": duration_s,
                "models": self.models,
                "tenants": {
                    name: {
                        "model": "m",
                        "arrivals": arrivals,
                        "prompt_tokens": {"kind": "fixed", "tokens": 1},
                        "output_tokens": law.spec,
                        "priority": number,
                        "weight": 1 / (number + 1),
                    }
                    for number, (name, (arrivals, law)) in enumerate(tenants.items())
                },
                "hardware": {"device": "cpu-2core"},
                "deployment": {
                    "kind": "dedicated",
                    "scheduler": {
                        "order": order,
                        "max_num_seqs": servers,
                        "max_batched_tokens": servers + 1,
                    },
                },
            }
        )

    def poisson(
        self, law: Law, *, load: float, servers: int = 1, requests: int = 15_000
    ) -> Scenario:
        """Return a scenario of about so many requests of one tenant; `load` is each server's."""
        rate_per_s = load * servers / law.moment(1)
        arrivals = {"kind": "poisson", "rate_per_s": rate_per_s}
        duration_s = requests / rate_per_s
        return self.scenario({"a": (arrivals, law)}, servers=servers, duration_s=duration_s)

    def users(
        self, law: Law, count: int, think_s: float, *, servers: int = 1, duration_s: float = 400
    ) -> Scenario:
        """Return a scenario of users who think for exponential times."""
        arrivals = {"kind": "users", "count": count, "think_s": think_s}
        return self.scenario({"a": (arrivals, law)}, servers=servers, duration_s=duration_s)


@pytest.fixture(scope="module")
def ideal(tiny_content: Content, tmp_path_factory: pytest.TempPathFactory) -> Ideal:
    """Derive the ideal server from the tiny one: nothing takes time but the host, 10 ms always."""
    content = tiny_content()
    content["model"] |= {"max_position_embeddings": 1_000_000}
    content["kv"] = {"block_size": 16, "num_blocks": 1_000_000}
    for operation, cells in content["operations"].items():
        for cell in cells:
            cell["median_s"] = ITERATION_S if operation == "host" else 0.0
    folder: Path = tmp_path_factory.mktemp("ideal")
    (folder / "model.json").write_text(json.dumps(content["model"]))
    (folder / "profile.json").write_text(json.dumps(content))
    names = {"architecture": str(folder / "model.json"), "profile": str(folder / "profile.json")}
    return Ideal({"m": names})


# One server.


@pytest.mark.parametrize("load", [0.5, 0.8])
@pytest.mark.parametrize(
    "law",
    [fixed(20), geometric(100), lognormal(50, 0.5), lognormal(50, 1.5)],
    ids=["constant", "geometric", "lognormal", "heavy"],
)
def test_the_mean_wait_of_an_mg1_queue(ideal: Ideal, law: Law, load: float) -> None:
    """Pollaczek and Khinchine: W = lambda E[S^2] / (2 (1 - rho)), E[S^2] of the drawn lengths."""
    scenario = ideal.poisson(law, load=load)
    rate_per_s = load / law.moment(1)
    theory = rate_per_s * law.moment(2) / (2 * (1 - load))
    waits = [float(_waits(_steady(simulate(scenario, seed=s).records)).mean()) for s in SEEDS]
    _agrees(waits, theory, share=0.05)


def test_turnaround_in_an_mm1_queue_is_exponential(ideal: Ideal) -> None:
    """Its rate is mu - lambda, so the p-quantile is -ln(1 - p) / (mu - lambda).

    Service is geometric of 200 iterations on average, whose second moment is 1/400 below the
    exponential's; half a per cent of the quantile covers that.
    """
    law, load = geometric(200), 0.7
    scenario = ideal.poisson(law, load=load)
    runs = [_steady(simulate(scenario, seed=seed).records) for seed in SEEDS]
    for percent in (25, 50, 90, 99):
        theory = -math.log(1 - percent / 100) * law.moment(1) / (1 - load)
        found = [float(np.percentile(run["finish_s"] - run["arrival_s"], percent)) for run in runs]
        _agrees(found, theory, share=0.05, early=0.005 * theory)


@pytest.mark.parametrize("load", [0.5, 0.8])
def test_the_mean_wait_of_an_md1_queue(tiny_scenario: Content, load: float) -> None:
    """The tiny model itself, one token in and one out, one request at a time.

    Each takes one iteration of S = 10 + 1 + 2 (2 + 1 + 1 + 3 x 2 + 1 + 0.1) + 6 = 39.2 ms, and
    waits rho S / (2 (1 - rho)): 19.6 ms at a load of 0.5, 78.4 at 0.8.
    """
    content, service_s = tiny_scenario(), 0.0392
    content["duration_s"] = 100.0
    content["tenants"]["chat"] |= {
        "arrivals": {"kind": "poisson", "rate_per_s": load / service_s},
        "prompt_tokens": {"kind": "fixed", "tokens": 1},
        "output_tokens": {"kind": "fixed", "tokens": 1},
    }
    content["deployment"]["scheduler"] = {"max_num_seqs": 1, "max_batched_tokens": 16}
    waits = []
    for seed in SEEDS:
        records = _steady(simulate(scenario_from(content), seed=seed).records)
        service = records["finish_s"] - records["scheduled_s"]
        assert service.to_numpy() == pytest.approx(service_s)
        waits.append(float(_waits(records).mean()))
    _agrees(waits, load * service_s / (2 * (1 - load)), share=0.1)


def test_urgent_requests_wait_as_cobham_says(ideal: Ideal) -> None:
    """One server that does not interrupt: W_k = W_0 / ((1 - s_(k-1)) (1 - s_k)).

    W_0 = sum of lambda E[S^2] / 2 is what is left of the service found, s_k the load of classes 1
    to k (Cobham 1954). Loads of 0.2, 0.3 and 0.3.
    """
    laws = {"a": geometric(20), "b": lognormal(30, 1.0), "c": fixed(40)}
    loads = {"a": 0.2, "b": 0.3, "c": 0.3}
    rates = {name: loads[name] / law.moment(1) for name, law in laws.items()}
    tenants = {
        name: ({"kind": "poisson", "rate_per_s": rates[name]}, law) for name, law in laws.items()
    }
    scenario = ideal.scenario(tenants, duration_s=3000, order="priority")
    runs = [_steady(simulate(scenario, seed=seed).records) for seed in SEEDS]
    remaining_s = sum(rates[name] * law.moment(2) / 2 for name, law in laws.items())
    upto = 0.0
    for name, load in loads.items():
        waits = [float(_waits(records[records["tenant"] == name]).mean()) for records in runs]
        _agrees(waits, remaining_s / ((1 - upto) * (1 - upto - load)), share=0.05)
        upto += load


@pytest.mark.parametrize("order", ORDERS)
def test_no_order_of_service_makes_or_saves_work(ideal: Ideal, order: str) -> None:
    """Kleinrock's conservation law: sum of rho_k W_k = rho W_0 / (1 - rho), whoever goes first."""
    laws = {"a": geometric(20), "b": lognormal(40, 1.0)}
    rates = {"a": 0.3 / laws["a"].moment(1), "b": 0.4 / laws["b"].moment(1)}
    tenants = {
        name: ({"kind": "poisson", "rate_per_s": rates[name]}, law) for name, law in laws.items()
    }
    scenario = ideal.scenario(tenants, duration_s=1500, order=order)
    found, apart = [], []
    for seed in SEEDS:
        records = _steady(simulate(scenario, seed=seed).records)
        waits = _waits(records).groupby(records["tenant"]).mean()
        found.append(float(0.3 * waits["a"] + 0.4 * waits["b"]))
        apart.append(float(waits["b"] / waits["a"]))
    remaining_s = sum(rates[name] * law.moment(2) / 2 for name, law in laws.items())
    _agrees(found, 0.7 * remaining_s / 0.3, share=0.08)
    assert (np.mean(apart) > 1.5) == (order != "fcfs")


def test_arrivals_see_time_averages(tiny_scenario: Content) -> None:
    """Poisson arrivals find L = lambda W requests in the system (Wolff 1982).

    Batches of up to four with answers of 5 tokens, lambda as the scenario says, W from the records;
    the difference is nought within four standard errors over the seeds.
    """
    content, rate_per_s = tiny_scenario(), 6.0
    content["duration_s"] = 100.0
    content["tenants"]["chat"] |= {
        "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
        "prompt_tokens": {"kind": "fixed", "tokens": 1},
        "output_tokens": {"kind": "fixed", "tokens": 5},
    }
    content["deployment"]["scheduler"] = {"max_num_seqs": 4, "max_batched_tokens": 16}
    differences, found = [], []
    for seed in SEEDS:
        records = simulate(scenario_from(content), seed=seed).records
        arrivals = records["arrival_s"].to_numpy()
        left = np.searchsorted(np.sort(records["finish_s"]), arrivals, side="right")
        seen = np.arange(len(arrivals)) - left
        turnaround = records["finish_s"] - records["arrival_s"]
        found.append(seen.mean())
        differences.append(seen.mean() - rate_per_s * turnaround.mean())
    error = np.std(differences, ddof=1) / np.sqrt(len(differences))
    assert abs(np.mean(differences)) < 4 * error
    assert error < 0.1 * np.mean(found)


# Several servers.


def erlang_c(servers: int, load: float) -> float:
    """Return the chance that all servers are busy; `load` is each server's (Erlang 1917)."""
    offered = servers * load
    full = offered**servers / math.factorial(servers) / (1 - load)
    return full / (sum(offered**n / math.factorial(n) for n in range(servers)) + full)


@pytest.mark.parametrize(("servers", "load"), [(2, 0.8), (4, 0.8), (8, 0.8)])
def test_the_mean_wait_of_an_mmc_queue(ideal: Ideal, servers: int, load: float) -> None:
    """Erlang: W = C E[S] / (c (1 - rho)); a seat in the batch is a server.

    Who arrives waits for the end of the iteration under way, so up to 10 ms longer; service of 100
    iterations on average is geometric, its second moment 1/200 below the exponential's.
    """
    law = geometric(100)
    scenario = ideal.poisson(law, load=load, servers=servers, requests=20_000)
    theory = erlang_c(servers, load) * law.moment(1) / (servers * (1 - load)) * (1 - 1 / 200)
    waits = [float(_waits(_steady(simulate(scenario, seed=s).records)).mean()) for s in SEEDS]
    _agrees(waits, theory, share=0.05, late=ITERATION_S)


@pytest.mark.parametrize(
    "law", [fixed(100), geometric(100), lognormal(100, 1.0)], ids=["constant", "geometric", "heavy"]
)
def test_with_seats_for_all_a_replica_is_busy_as_an_mginf_queue(ideal: Ideal, law: Law) -> None:
    """Idle for exp(-lambda E[S]) of the time, whatever the law of service (Takacs 1962).

    Stays begin up to 10 ms late, so 1 s of service is up to 1 % longer.
    """
    offered = 1.2
    scenario = ideal.poisson(law, load=offered / 64, servers=64, requests=8_000)
    results = [simulate(scenario, seed=seed) for seed in SEEDS]
    idle = [1 - float(result.replicas["utilisation"].iloc[0]) for result in results]
    longest = offered * (1 + ITERATION_S / law.moment(1))
    _agrees(idle, math.exp(-longest), share=0.02, late=math.exp(-offered) - math.exp(-longest))
    assert all(result.replicas["peak_running"].iloc[0] < 64 for result in results)


# Closed loops.


def busy_share(law: Law, count: int, think_s: float) -> float:
    """Return how busy one repairman keeps with some machines (Takacs 1962, chapter 5).

    A busy period repairs K = sum over n < N of C(N - 1, n) prod over i <= n of (1 - s_i) / s_i
    machines, where s_i is the chance that none of i machines breaks down during a repair; the idle
    time before it is think_s / N.
    """
    calm = [law.transform(i / think_s) for i in range(1, count)]
    odds = np.cumprod([1.0, *((1 - chance) / chance for chance in calm)])
    repaired = sum(math.comb(count - 1, n) * odds[n] for n in range(count))
    return float(repaired * law.moment(1) / (repaired * law.moment(1) + think_s / count))


def test_the_repairman_formula_has_its_textbook_case() -> None:
    """Exponential repair: p_0 = 1 / sum of N! / (N - n)! (S / Z)^n, up to the geometric's 1/200."""
    law, count, think_s = geometric(100), 5, 4.0
    ratio = law.moment(1) / think_s
    idle = 1 / sum(
        math.factorial(count) / math.factorial(count - n) * ratio**n for n in range(count + 1)
    )
    assert busy_share(law, count, think_s) == pytest.approx(1 - idle, rel=1 / 200)


def _asked(records: pd.DataFrame, since_s: float, until_s: float) -> pd.DataFrame:
    return records[records["arrival_s"].between(since_s, until_s)]


@pytest.mark.parametrize("count", [2, 6, 15])
@pytest.mark.parametrize("law", [geometric(20), fixed(20)], ids=["geometric", "constant"])
def test_users_of_one_server_are_machines_and_a_repairman(
    ideal: Ideal, law: Law, count: int
) -> None:
    """X = busy / E[S] and, by the response time law, R = N / X - Z; exact for any service."""
    think_s, until_s = 1.0, 400.0
    scenario = ideal.users(law, count, think_s, duration_s=until_s)
    rates, turnarounds = [], []
    for seed in SEEDS[:8]:
        records = _asked(simulate(scenario, seed=seed).records, 20.0, until_s)
        rates.append(len(records) / (until_s - 20.0))
        turnarounds.append(float((records["finish_s"] - records["arrival_s"]).mean()))
    theory = busy_share(law, count, think_s) / law.moment(1)
    _agrees(rates, theory, share=0.02)
    _agrees(turnarounds, count / theory - think_s, share=0.05)


def test_users_with_seats_for_all_only_think_and_are_served(ideal: Ideal) -> None:
    """A delay station: X = N / (Z + S), S up to one iteration longer than the answer takes."""
    law, think_s, count = lognormal(50, 1.0), 2.0, 30
    scenario = ideal.users(law, count, think_s, servers=count, duration_s=100)
    cycles = []
    for seed in SEEDS[:8]:
        records = _asked(simulate(scenario, seed=seed).records, 20.0, 100.0)
        cycles.append(count * 80 / len(records))
    _agrees(cycles, think_s + law.moment(1), share=0.01, late=ITERATION_S)


# What holds for every run.


def _arrivals() -> st.SearchStrategy[dict[str, Any]]:
    rates = st.floats(0.5, 20)
    return st.one_of(
        st.builds(lambda rate: {"kind": "poisson", "rate_per_s": rate}, rates),
        st.builds(lambda rate: {"kind": "gamma", "rate_per_s": rate, "cv": 3.0}, rates),
        st.builds(
            lambda count, think_s: {"kind": "users", "count": count, "think_s": think_s},
            st.integers(1, 8),
            st.floats(0.05, 1.0),
        ),
    )


def _schedulers() -> st.SearchStrategy[dict[str, Any]]:
    """Any policy, order, limits, and one of the extras that goes with them."""
    swap = {"preemption": "swap", "swap_gb_per_s": 1e-4, "swap_gib": 1.0}
    extras = {
        name: [{}, {"prefix_caching": True}, *([swap] if policy.preempts else [])]
        for name, policy in POLICIES.items()
    }
    policies = st.sampled_from([(name, how) for name, hows in extras.items() for how in hows])
    return st.builds(
        lambda policy, order, seqs, budget: {
            "policy": policy[0],
            "order": order,
            "max_num_seqs": seqs,
            "max_batched_tokens": budget,
            **policy[1],
        },
        policies,
        st.sampled_from(ORDERS),
        st.integers(1, 8),
        st.sampled_from([3, 16, 32]),
    )


@dataclass(frozen=True)
class Ran:
    """A scenario and what became of it."""

    scheduler: Mapping[str, Any]
    result: Result

    @property
    def served(self) -> pd.DataFrame:
        """Return the requests that were not refused; all of these are completed."""
        served = self.result.records[self.result.records["outcome"] != REFUSED]
        assert (served["outcome"] == COMPLETED).all()
        return served


def _seconds_held(log: Iterations) -> float:
    """Sum up, from a log alone, the time that requests spent between first and last token."""
    late = log.late.until_s - log.late.since_s
    return float(log.sequences @ log.duration_s + late.sum())


def _little(ran: Ran) -> None:
    """L = lambda W over the whole run, and for the requests that decode, from the logs alone."""
    records = ran.served
    series = time_series(records, ran.result.logs, points=7)
    span_s = records["finish_s"].max() - records["arrival_s"].min()
    turnaround_s = (records["finish_s"] - records["arrival_s"]).mean()
    in_system = (series["queued"] + series["running"]).mean()
    assert in_system == pytest.approx(len(records) / span_s * turnaround_s)
    decoding = sum(map(_seconds_held, ran.result.logs.values())) / span_s
    decode_s = (records["finish_s"] - records["first_token_s"]).mean()
    assert decoding == pytest.approx(len(records) / span_s * decode_s, abs=1e-9)


def _merged(spans: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Unite intervals that touch to within rounding."""
    merged: list[tuple[float, float]] = []
    for begin, end in sorted(spans):
        if merged and begin <= merged[-1][1] + 1e-9:
            merged[-1] = (merged[-1][0], max(merged[-1][1], end))
        else:
            merged.append((begin, end))
    return merged


def _work_is_conserved(ran: Ran) -> None:
    """Find a replica running exactly while somebody is there: runs cover its requests' stays."""
    for replica, log in ran.result.logs.items():
        mine = ran.served[ran.served["replica"] == replica]
        ends = log.start_s + log.duration_s
        assert (log.start_s[1:] >= ends[:-1] - 1e-9).all()
        busy = _merged(list(zip(log.start_s.tolist(), ends.tolist(), strict=True)))
        there = _merged(list(zip(mine["arrival_s"], mine["finish_s"], strict=True)))
        assert np.array(busy) == pytest.approx(np.array(there), abs=1e-9)


def _tokens_are_conserved(ran: Ran) -> None:
    """Every token but an answer's last passes through the model, and no more without recompute."""
    records, logs = ran.served, ran.result.logs.values()
    known = records["prompt_tokens"] + records["output_tokens"] - 1 - records["cached_tokens"]
    batched = sum(int(log.tokens @ log.iterations) for log in logs)
    again = batched - int(known.sum())
    preempted = bool(records["preemptions"].sum())
    assert again >= 0
    assert not again or preempted
    if ran.scheduler.get("preemption") == "swap":
        assert not again  # host memory has room for all
    elif preempted and not ran.scheduler.get("prefix_caching"):
        assert again
    assert batched == ran.result.replicas["batched_tokens"].sum()
    assert sum(log.gaps for log in logs) == (records["output_tokens"] - 1).sum()


def _time_is_accounted_for(ran: Ran) -> None:
    """Demand that a replica's busy time and iterations are those of its log."""
    usage = ran.result.replicas.set_index("replica")
    for replica, log in ran.result.logs.items():
        assert usage.loc[replica, "busy_s"] == pytest.approx(log.duration_s.sum())
        assert usage.loc[replica, "iterations"] == log.iterations.sum()


@settings(max_examples=250)
@given(
    chat=_arrivals(),
    batch=_arrivals(),
    scheduler=_schedulers(),
    blocks=st.integers(3, 14),
    replicas=st.integers(1, 2),
    seed=st.integers(0, 99),
    stepwise=st.booleans(),
)
def test_on_every_run(
    tiny_scenario: Content,
    chat: dict[str, Any],
    batch: dict[str, Any],
    scheduler: dict[str, Any],
    blocks: int,
    replicas: int,
    seed: int,
    stepwise: bool,
) -> None:
    """Little's law, work conservation, every token and every second, whatever the policy."""
    content = tiny_scenario()
    lengths = {"kind": "lognormal", "mean": 8.0, "cv": 0.7, "max": 16}
    tenant = content["tenants"]["chat"] | {"output_tokens": lengths, "weight": 2.0}
    content["tenants"] = {
        "chat": tenant | {"arrivals": chat, "shared_prefix_tokens": 5},
        "batch": tenant | {"arrivals": batch, "shared_prefix_tokens": 8, "priority": 1},
    }
    content["duration_s"], content["hardware"]["count"] = 3.0, replicas
    content["deployment"] |= {"kv_blocks": blocks, "replicas": replicas, "scheduler": scheduler}
    try:
        result = simulate(scenario_from(content), seed=seed, stepwise=stepwise)
    except ScenarioError as wrong:
        assert "no request arrives" in str(wrong)  # noqa: PT017  # the only reason there may be
        return
    ran = Ran(scheduler, result)
    if ran.served.empty:
        return
    _little(ran)
    _work_is_conserved(ran)
    _tokens_are_conserved(ran)
    _time_is_accounted_for(ran)


@pytest.mark.parametrize("order", ORDERS[1:])
def test_the_order_of_service_does_not_change_when_one_server_is_busy(
    ideal: Ideal, order: str
) -> None:
    """The same requests one at a time: who waits changes, the busy periods do not."""
    arrivals = {"kind": "gamma", "rate_per_s": 1.5, "cv": 2.0}
    tenants = {"a": (arrivals, geometric(20)), "b": (arrivals, lognormal(30, 1.0))}
    runs = []
    for way in ("fcfs", order):
        result = simulate(ideal.scenario(tenants, duration_s=200, order=way))
        log = result.logs["m/0"]
        ends = log.start_s + log.duration_s
        busy = _merged(list(zip(log.start_s.tolist(), ends.tolist(), strict=True)))
        runs.append((np.array(busy), _waits(result.records)))
    (plain, first_come), (other, reordered) = runs
    assert len(plain) > 20
    assert other == pytest.approx(plain, abs=1e-9)
    assert first_come.max() < reordered.max()
