"""Closed-loop users: each asks, waits for the answer, thinks, and asks again.

A prompt of 4 tokens and an answer of one take 84.5 ms at an idle replica (tests/conftest.py).
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.errors import ScenarioError
from moesim.scenario import Scenario, scenario_from
from moesim.serving.policies import POLICIES
from moesim.serving.records import COMPLETED, REFUSED
from moesim.simulation.run import Result, simulate

Content = Callable[[], dict[str, Any]]
Run = Callable[..., Result]

SERVICE_S = 0.0845


def _users(count: int, think_s: float, cv: float = 0.0) -> dict[str, Any]:
    return {"kind": "users", "count": count, "think_s": think_s, "think_cv": cv}


def _tenant(arrivals: dict[str, Any], prompt: int = 4, output: int = 1) -> dict[str, Any]:
    return {
        "model": "m",
        "arrivals": arrivals,
        "prompt_tokens": {"kind": "fixed", "tokens": prompt},
        "output_tokens": {"kind": "fixed", "tokens": output},
    }


def _scenario(content: dict[str, Any], *, seqs: int = 8, **tenants: dict[str, Any]) -> Scenario:
    content["tenants"] = tenants
    content["deployment"]["scheduler"] = {"max_num_seqs": seqs, "max_batched_tokens": 16}
    return scenario_from(content)


def test_one_user_asks_thinks_and_asks_again(run: Run, tiny_scenario: Content) -> None:
    """Thinking 0.5 s and waiting 84.5 ms, 17 times before 10 s: at 0.5, 1.0845, ... 9.852 s."""
    records = run(_scenario(tiny_scenario(), chat=_tenant(_users(1, 0.5)))).records
    asked = 0.5 + (0.5 + SERVICE_S) * np.arange(17)
    assert records["arrival_s"].to_numpy() == pytest.approx(asked)
    assert records["finish_s"].to_numpy() == pytest.approx(asked + SERVICE_S)


def test_two_users_of_one_seat_take_turns(run: Run, tiny_scenario: Content) -> None:
    """Both ask at 0.5 s; the second waits 84.5 ms longer, and then they do not meet again."""
    scenario = _scenario(tiny_scenario(), seqs=1, chat=_tenant(_users(2, 0.5)))
    records = run(scenario).records
    assert records["arrival_s"].iloc[:4].tolist() == pytest.approx(
        [0.5, 0.5, 1 + SERVICE_S, 1 + 2 * SERVICE_S]
    )
    waits = (records["scheduled_s"] - records["arrival_s"]).to_numpy()
    assert waits[:4] == pytest.approx([0, SERVICE_S, 0, 0], abs=1e-9)


def test_who_asks_during_an_answer_joins_at_the_next_iteration(
    run: Run, tiny_scenario: Content
) -> None:
    """One asks at 0.5 s; its tokens come at 0.5845, then every 40.0, 40.2 and 40.4 ms.

    The other asks at 0.7 s, and its prompt enters with the fifth token, at 0.7051 s.
    """
    long, short = _tenant(_users(1, 0.5), output=20), _tenant(_users(1, 0.7))
    records = run(_scenario(tiny_scenario(), long=long, short=short)).records
    first = records[records["tenant"] == "short"].iloc[0]
    assert first.arrival_s == pytest.approx(0.7)
    assert first.scheduled_s == pytest.approx(0.5845 + 0.0400 + 0.0402 + 0.0404)


def test_who_does_not_think_keeps_a_replica_busy(run: Run, tiny_scenario: Content) -> None:
    """One user without think time: from 0 to 10 s, 119 requests of 84.5 ms without a pause."""
    result = run(_scenario(tiny_scenario(), chat=_tenant(_users(1, 0.0))))
    assert len(result.records) == 119
    assert result.replicas["utilisation"].iloc[0] == pytest.approx(1)


def test_users_take_turns_at_the_replicas(run: Run, tiny_scenario: Content) -> None:
    """Two users and two replicas, round robin: nobody waits."""
    content = tiny_scenario()
    content["hardware"]["count"] = content["deployment"]["replicas"] = 2
    records = run(_scenario(content, seqs=1, chat=_tenant(_users(2, 0.5)))).records
    assert records["replica"].tolist() == ["m/0", "m/1"] * 17
    assert (records["finish_s"] - records["arrival_s"]).to_numpy() == pytest.approx(SERVICE_S)


def test_nobody_asks_after_the_end_and_everybody_is_answered(
    run: Run, tiny_scenario: Content
) -> None:
    """Twenty impatient users of one seat: some 20 are still waiting when the 10 s are over."""
    records = run(_scenario(tiny_scenario(), seqs=1, chat=_tenant(_users(20, 0.1, 1.0)))).records
    assert records["arrival_s"].max() < 10
    assert records["finish_s"].max() > 10 + 15 * SERVICE_S
    assert (records["outcome"] == COMPLETED).all()


def test_where_nobody_gets_to_ask_there_is_no_run(run: Run, tiny_scenario: Content) -> None:
    """A user who thinks for longer than the scenario lasts."""
    with pytest.raises(ScenarioError, match="no request arrives; make duration_s longer"):
        run(_scenario(tiny_scenario(), chat=_tenant(_users(1, 11.0))))


def test_refused_users_wait_a_second_besides_thinking(run: Run, tiny_scenario: Content) -> None:
    """Prompts of 70 tokens, the model takes 64: asked in vain at 0.5, 2, 3.5, 5, 6.5, 8, 9.5 s."""
    records = run(_scenario(tiny_scenario(), chat=_tenant(_users(1, 0.5), prompt=70))).records
    assert records["arrival_s"].tolist() == pytest.approx([0.5, 2, 3.5, 5, 6.5, 8, 9.5])
    assert (records["outcome"] == REFUSED).all()


def test_refused_users_do_not_hold_up_the_others(run: Run, tiny_scenario: Content) -> None:
    """Beside such a user another one asks as if alone, even without time to think."""
    chat, wrong = _tenant(_users(1, 0.0)), _tenant(_users(1, 0.0), prompt=70)
    records = run(_scenario(tiny_scenario(), chat=chat, wrong=wrong)).records
    counts = records.groupby(["tenant", "outcome"]).size()
    assert counts.to_dict() == {("chat", COMPLETED): 119, ("wrong", REFUSED): 10}


def _never_two_at_once(records: pd.DataFrame, think_s: float) -> None:
    """Demand of a single user's requests that each comes `think_s` after the last answer."""
    pauses = records["arrival_s"].to_numpy()[1:] - records["finish_s"].to_numpy()[:-1]
    assert pauses == pytest.approx(think_s, abs=1e-9)


@settings(max_examples=60)
@given(
    think_s=st.floats(0, 1),
    others=st.integers(1, 6),
    policy=st.sampled_from(list(POLICIES)),
    seqs=st.integers(1, 4),
    seed=st.integers(0, 99),
)
def test_a_user_has_at_most_one_request_under_way(
    tiny_scenario: Content, think_s: float, others: int, policy: str, seqs: int, seed: int
) -> None:
    """One user of its own tenant among others, who never have more requests than they are."""
    content = tiny_scenario()
    drawn = content["tenants"]["chat"]
    content["tenants"] = {
        "one": drawn | {"arrivals": _users(1, think_s)},
        "others": drawn | {"arrivals": _users(others, 0.3, 1.0)},
    }
    limits = {"max_num_seqs": seqs, "max_batched_tokens": 32}
    content["deployment"] |= {"kv_blocks": 6, "scheduler": {"policy": policy, **limits}}
    records = simulate(scenario_from(content), seed=seed).records
    _never_two_at_once(records[records["tenant"] == "one"], think_s)
    mine = records[records["tenant"] == "others"]
    there = np.searchsorted(np.sort(mine["finish_s"]), mine["arrival_s"], side="right")
    assert (np.arange(1, len(mine) + 1) - there).max() <= others
    assert records["request_id"].is_unique


@settings(max_examples=40)
@given(
    count=st.integers(1, 40),
    think_s=st.floats(0, 2),
    seqs=st.integers(1, 8),
    output=st.integers(1, 12),
)
def test_throughput_is_bounded(
    tiny_scenario: Content, count: int, think_s: float, seqs: int, output: int
) -> None:
    """Each user's cycles fill its time: X (Z + R) <= N, and X <= N / (Z + R alone)."""
    tenant = _tenant(_users(count, think_s), output=output)
    records = simulate(_scenario(tiny_scenario(), seqs=seqs, chat=tenant)).records
    turnaround_s = records["finish_s"] - records["arrival_s"]
    rate_per_s = len(records) / records["finish_s"].max()
    alone = _scenario(tiny_scenario(), chat=_tenant(_users(1, 5.0), output=output))
    first = simulate(alone).records.iloc[0]
    bound = count / (think_s + float(turnaround_s.mean()))
    assert rate_per_s <= bound * (1 + 1e-9)
    assert bound <= count / (think_s + first.finish_s - first.arrival_s) * (1 + 1e-9)


def test_two_thousand_users(tiny_scenario: Content) -> None:
    """Twelve requests a second of users who think for 200 s: nearly all of them always think.

    N / (Z + R) holds to within the spread of 700 requests, 4 in the root of 700.
    """
    content = tiny_scenario()
    content["duration_s"] = 60.0
    tenant = _tenant(_users(2000, 200.0, 1.0))
    records = simulate(_scenario(content, chat=tenant)).records
    turnaround_s = (records["finish_s"] - records["arrival_s"]).mean()
    assert len(records) == pytest.approx(60 * 2000 / (200 + turnaround_s), abs=4 * 600**0.5)
    assert (records["outcome"] == COMPLETED).all()


def test_open_traffic_is_the_same_beside_users_but_slower(run: Run, tiny_scenario: Content) -> None:
    """Users change neither when open requests come nor how long they are, only their waits."""
    content = tiny_scenario()
    open_ones = content["tenants"]["chat"]
    alone = run(_scenario(tiny_scenario(), chat=open_ones)).records
    both = run(
        _scenario(tiny_scenario(), chat=open_ones, users=_tenant(_users(5, 0.2, 1.0)))
    ).records
    beside = both[both["tenant"] == "chat"].reset_index(drop=True)
    same = ["request_id", "tenant", "arrival_s", "prompt_tokens", "output_tokens"]
    pd.testing.assert_frame_equal(beside[same], alone[same])
    assert (beside["finish_s"] >= alone["finish_s"] - 1e-9).all()
    assert beside["finish_s"].sum() > alone["finish_s"].sum() + 1
    assert both["request_id"].is_unique
    assert both["arrival_s"].is_monotonic_increasing


def test_one_more_user_leaves_the_others_as_they_are(run: Run, tiny_scenario: Content) -> None:
    """Every user draws from a stream of its own: with seats for all, whoever asked asks again."""
    content = tiny_scenario()
    lengths = content["tenants"]["chat"]

    def asked(count: int) -> pd.DataFrame:
        tenant = lengths | {"arrivals": _users(count, 3.0, 1.0)}
        return run(_scenario(tiny_scenario(), chat=tenant), seed=7).records

    few, more = asked(3), asked(4)
    first = few.iloc[0]
    matching = more[np.isclose(more["arrival_s"], first.arrival_s, rtol=0, atol=1e-9)]
    columns = ["prompt_tokens", "output_tokens"]
    assert matching[columns].to_numpy().tolist() == [[first.prompt_tokens, first.output_tokens]]
    assert len(more) > len(few)


def test_the_same_seed_is_the_same_run(run: Run, tiny_scenario: Content) -> None:
    """To the last bit; another seed is another run."""
    scenario = _scenario(tiny_scenario(), chat=_tenant(_users(5, 0.3, 1.0)))
    first, again, other = (run(scenario, seed=seed).records for seed in (1, 1, 2))
    pd.testing.assert_frame_equal(first, again)
    assert first["arrival_s"].iloc[0] != other["arrival_s"].iloc[0]


@pytest.mark.parametrize(("cv", "spread"), [(0.0, 0.0), (0.5, 0.5), (1.0, 1.0)])
def test_think_times_have_their_mean_and_spread(
    tiny_scenario: Content, cv: float, spread: float
) -> None:
    """A user alone: pauses between an answer and the next request, 0.2 s on average."""
    content = tiny_scenario()
    content["duration_s"] = 1000.0
    records = simulate(_scenario(content, chat=_tenant(_users(1, 0.2, cv)))).records
    pauses = records["arrival_s"].to_numpy()[1:] - records["finish_s"].to_numpy()[:-1]
    assert len(pauses) > 3000
    assert pauses.mean() == pytest.approx(0.2, rel=4 * cv / 3000**0.5 + 1e-9)
    assert pauses.std() / 0.2 == pytest.approx(spread, abs=0.08)
