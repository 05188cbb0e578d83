"""Shipped scenarios of each kind of deployment: they run, either way, and teach what they say."""

from functools import cache

import numpy as np
import pandas as pd
import pytest

from moesim.scenario import Scenario, load_scenario
from moesim.serving.records import COMPLETED
from moesim.serving.steady import steady_state
from moesim.simulation.deploy import gateway_of
from moesim.simulation.run import Result, simulate

KINDS = (
    "dedicated",
    "tensor_parallel",
    "expert_parallel",
    "mig",
    "mps",
    "time_shared",
    "offloaded",
    "consolidated",
    "expert_router",
)


@cache
def run(name: str, alternative: str = "") -> Result:
    """Simulate a shipped scenario, or one of its alternatives."""
    scenario = load_scenario(name)
    if alternative:
        scenario = _other(scenario, alternative)
    return simulate(scenario)


def _other(scenario: Scenario, alternative: str) -> Scenario:
    return scenario.model_copy(update={"deployment": scenario.alternatives[alternative]})


def mean_s(result: Result, metric: str) -> float:
    """Return the mean of a latency over all tenants [s]."""
    return float(result.metrics()["overall"][metric]["mean"])


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_is_of_its_kind(kind: str) -> None:
    """It serves everybody, and the load is one that it keeps up with."""
    assert load_scenario(kind).deployment.kind == kind
    records = run(kind).records
    assert (records["outcome"] == COMPLETED).all()
    assert steady_state(records).kind == "steady"


@pytest.mark.parametrize("kind", KINDS)
def test_an_example_jumps_as_it_steps(kind: str) -> None:
    """The first tenth of it, iteration by iteration."""
    whole = load_scenario(kind)
    short = whole.model_copy(update={"duration_s": whole.duration_s / 10})
    jumped, stepped = (simulate(short, stepwise=stepwise) for stepwise in (False, True))
    assert len(jumped.records) > 10
    pd.testing.assert_frame_equal(jumped.records, stepped.records, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_every_bandwidth_and_floor_has_a_source(kind: str) -> None:
    """Nothing that is measured or assumed stands there without saying where it comes from."""
    scenario = load_scenario(kind)
    named = {
        f"deployment.{field}"
        for field in _fields(scenario.deployment.model_dump(exclude_unset=True))
        if field.endswith(("gb_per_s", "_latency_s", "overhead_s", "floor_s", "classify_s"))
    }
    assert named <= scenario.sources.keys()


def _fields(content: dict[str, object], before: str = "") -> list[str]:
    """Return the dotted names of all fields that are no parts themselves."""
    found = []
    for name, value in content.items():
        if isinstance(value, dict):
            found += _fields(value, f"{before}{name}.")
        else:
            found.append(f"{before}{name}")
    return found


def test_one_group_of_eight_answers_sooner_than_two_of_four() -> None:
    """A token is read by eight devices at once, all-reduces or not."""
    one = run("tensor_parallel", "one group of eight")
    two = run("tensor_parallel", "two groups of four")
    assert mean_s(one, "turnaround_s") < mean_s(two, "turnaround_s")


def test_dealt_experts_wait_for_the_most_loaded_device() -> None:
    """Cut over all four they are spread evenly."""
    cut = run("expert_parallel", "experts cut over all four")
    assert mean_s(cut, "tpot_s") < mean_s(run("expert_parallel"), "tpot_s")


def test_an_instance_is_slower_than_a_device() -> None:
    """The same streams on half a GPU each and on a whole one each."""
    assert mean_s(run("dedicated"), "tpot_s") < mean_s(run("mig"), "tpot_s")


def test_shares_of_sms_leave_the_bandwidth_whole() -> None:
    """Whoever is alone decodes with all of it; an instance never does."""
    instances = run("mps", "mig 2x 3g.40gb")
    assert mean_s(run("mps"), "tpot_s") < mean_s(instances, "tpot_s")


def test_draining_loads_less_often() -> None:
    """The mean turnaround is shorter, and the longest waits for a first token are longer."""
    fcfs, drained = run("time_shared"), run("time_shared", "drain")
    loads = [int(result.replicas["reconfigurations"].sum()) for result in (fcfs, drained)]
    assert loads[1] < loads[0]
    assert mean_s(drained, "turnaround_s") < mean_s(fcfs, "turnaround_s")
    slowest = [result.metrics()["overall"]["ttft_s"]["p99"] for result in (fcfs, drained)]
    assert slowest[0] < slowest[1]


def test_an_absent_expert_costs_more_than_a_second_card() -> None:
    """A token waits for its misses; two cards that miss nothing take a tenth of it or less."""
    fetched, resident = run("offloaded"), run("offloaded", "two cards, tensor parallel")
    assert mean_s(resident, "tpot_s") < mean_s(fetched, "tpot_s") / 10


def test_sharing_experts_beats_swapping_whole_models() -> None:
    """A swap moves 3.2 GB in place of a model; packed and pinned it all but vanishes."""
    turnaround_s = [
        mean_s(run("consolidated", other), "turnaround_s")
        for other in ("swaps packed and pinned", "", "both sets resident", "time-shared")
    ]
    assert turnaround_s == sorted(turnaround_s)


def test_sorting_prompts_costs_next_to_nothing() -> None:
    """The gateway's queue and service, for the prompts as they came, beside the turnaround."""
    result = run("expert_router")
    gateway = gateway_of(load_scenario("expert_router"), seed=0)
    assert gateway is not None
    delay_s = gateway.all_sent(result.records)["delay_s"].mean()
    assert delay_s < 0.01 * mean_s(result, "turnaround_s")


def test_an_expert_in_int4_answers_sooner() -> None:
    """At fewer prompts each, and a quarter of the bytes for a token."""
    records = run("expert_router").records
    tokens = np.maximum(records["output_tokens"] - 1, 1)
    tpot_s = ((records["finish_s"] - records["first_token_s"]) / tokens).groupby(records["model"])
    means = tpot_s.mean()
    assert means[["maths", "stories"]].max() < means[["code", "chat"]].min()


def test_four_experts_outrun_one_large_model() -> None:
    """The same users and GPUs: an expert of 8 B parameters beside 70 B that all four serve."""
    assert mean_s(run("expert_router"), "turnaround_s") < mean_s(
        run("one-large-model"), "turnaround_s"
    )
    assert len(run("expert_router").records) > len(run("one-large-model").records)
