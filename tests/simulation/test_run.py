"""Runs worked out by hand on the tiny profile (tests/conftest.py), refusals, and purity."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim import MODEL_REVISION
from moesim.cost.profile import Profile
from moesim.errors import CapacityError, ProfileError
from moesim.scenario import Scenario, scenario_from
from moesim.serving.records import COMPLETED, REFUSED, write_records
from moesim.simulation.run import Result

Content = Callable[[], dict[str, Any]]
Replay = Callable[..., Scenario]
Run = Callable[..., Result]

TIMES = ["arrival_s", "scheduled_s", "first_token_s", "finish_s"]


def _profile(content: dict[str, Any], dotted: str, value: Any) -> Profile:
    """Return a profile with one value changed."""
    *path, last = dotted.split(".")
    node = content
    for key in path:
        node = node[key]
    node[last] = value
    return Profile.model_validate(content)


def test_one_request_alone(run: Run, replay: Replay) -> None:
    """Prompt 4, output 3, at an idle replica: 84.5 ms, then 40 and 40.2 ms (contexts 5 and 6)."""
    row = run(replay([(0, 4, 3)])).records.iloc[0]
    assert row.scheduled_s == 0
    assert row.first_token_s == pytest.approx(0.0845)
    assert row.finish_s == pytest.approx(0.0845 + 0.0400 + 0.0402)
    assert row.outcome == COMPLETED


def test_a_prompt_in_two_chunks(run: Run, replay: Replay) -> None:
    """Six tokens under a budget of 4: four without head and sampling, two after 4 cached.

    84.5 - 6 = 78.5 ms, then 10 + 2 + 2 (4 + 1 + 2 + 3 x 3 + 2 (2 + 2)) + 6 = 66 ms.
    """
    scheduler = {"max_num_seqs": 8, "max_batched_tokens": 4}
    result = run(replay([(0, 6, 1)], scheduler=scheduler))
    assert result.records["finish_s"].iloc[0] == pytest.approx(0.0785 + 0.066)
    assert result.replicas["iterations"].iloc[0] == 2


def test_who_comes_during_an_iteration_joins_the_next(run: Run, replay: Replay) -> None:
    """The second arrives at 10 ms, while the first's prompt runs until 84.5 ms.

    Then a decode (context 5) and a prompt of 3 tokens share a pass:
    10 + 4 + 2 (8 + 1 + 4 + 3 x 3.75 + (1 + 0.5) + 3 x 2) + 12 = 89.5 ms.
    """
    records = run(replay([(0, 4, 2), (0.01, 3, 1)])).records
    assert records["scheduled_s"].tolist() == pytest.approx([0, 0.0845])
    assert records["first_token_s"].tolist() == pytest.approx([0.0845, 0.174])
    assert records["finish_s"].tolist() == pytest.approx([0.174, 0.174])


def test_an_idle_replica_sleeps_until_the_next_arrival(run: Run, replay: Replay) -> None:
    """Requests far apart do not know of each other; the two batches are of 4 tokens each.

    The replica is busy for 2 x 84.5 ms of 5.0845 s.
    """
    result = run(replay([(0, 4, 1), (5, 4, 1)]))
    assert result.records["first_token_s"].tolist() == pytest.approx([0.0845, 5.0845])
    usage = result.replicas.iloc[0]
    assert usage.busy_s == pytest.approx(0.169)
    assert usage.utilisation == pytest.approx(0.169 / 5.0845)
    assert (usage.iterations, usage.batched_tokens, usage.mean_batched_tokens) == (2, 8, 4)


def test_two_replicas_take_turns(run: Run, replay: Replay) -> None:
    """Round robin in order of arrival, each replica on its own: nobody waits for a neighbour."""
    rows = [(0, 4, 1)] * 4
    alone = run(replay(rows, scheduler={"max_num_seqs": 1, "max_batched_tokens": 16}))
    pair = run(
        replay(rows, devices=2, replicas=2, scheduler={"max_num_seqs": 1, "max_batched_tokens": 16})
    )
    assert alone.records["finish_s"].tolist() == pytest.approx([0.0845 * n for n in (1, 2, 3, 4)])
    assert pair.records["replica"].tolist() == ["m/0", "m/1", "m/0", "m/1"]
    assert pair.records["finish_s"].tolist() == pytest.approx([0.0845 * n for n in (1, 1, 2, 2)])


def test_each_model_has_its_own_replicas(run: Run, tiny_scenario: Content) -> None:
    """Two models, two devices, a tenant each."""
    content = tiny_scenario()
    content["models"]["n"] = content["models"]["m"]
    content["hardware"]["count"] = 2
    content["tenants"]["code"] = content["tenants"]["chat"] | {"model": "n"}
    records = run(scenario_from(content)).records
    assert set(zip(records["tenant"], records["model"], records["replica"], strict=True)) == {
        ("chat", "m", "m/0"),
        ("code", "n", "n/0"),
    }


def test_what_cannot_be_served_is_recorded_as_refused(run: Run, replay: Replay) -> None:
    """Empty prompt, no output, too long for the model (64), too long for 8 blocks of 4."""
    rows = [(0, 0, 5), (0, 5, 0), (0, 60, 5), (0, 30, 4), (0, 30, 3), (0, 4, 1)]
    result = run(replay(rows, kv_blocks=8))
    records = result.records
    assert records["outcome"].tolist() == [REFUSED] * 4 + [COMPLETED] * 2
    for text, detail in zip(
        ["empty prompt", "no output", "maximum of 64", "needs 9 KV blocks"],
        records["detail"],
        strict=False,
    ):
        assert text in detail
    assert records.loc[:3, ["scheduled_s", "first_token_s", "finish_s"]].isna().all(axis=None)
    overall = result.metrics()["overall"]
    assert (overall["requests"], overall["completed"], overall["refused"]) == (6, 2, 4)


def test_where_everybody_is_refused_there_are_no_figures(run: Run, replay: Replay) -> None:
    """And still a result."""
    result = run(replay([(0, 0, 5), (1, 5, 0)]))
    metrics = result.metrics()
    assert metrics["overall"]["throughput_rps"] is None
    assert metrics["utilisation"] == {"m/0": 0}
    assert metrics["basis"] == {}


def test_kv_pressure_preempts_and_everybody_finishes(run: Run, replay: Replay) -> None:
    """Eight prompts of 8 tokens fill 16 blocks of 4 at once, and each grows to 16 tokens."""
    rows = [(0, 8, 9)] * 8
    scheduler = {"max_num_seqs": 8, "max_batched_tokens": 64}
    tight = run(replay(rows, kv_blocks=16, scheduler=scheduler))
    wide = run(replay(rows, kv_blocks=32, scheduler=scheduler))
    assert tight.records["preemptions"].sum() > 0
    assert wide.records["preemptions"].sum() == 0
    for result in (tight, wide):
        assert (result.records["outcome"] == COMPLETED).all()
    assert tight.records["finish_s"].max() > wide.records["finish_s"].max()


requests = st.lists(
    st.tuples(st.floats(0, 3), st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=12
)


@settings(max_examples=60)
@given(rows=requests, blocks=st.integers(1, 12), more=st.integers(0, 12))
def test_more_blocks_never_serve_fewer(
    run: Run, replay: Replay, rows: list[tuple[float, int, int]], blocks: int, more: int
) -> None:
    """Whoever is not refused is served to the end, and a larger cache refuses no more."""
    few, many = (
        run(replay(sorted(rows), kv_blocks=n)).records["outcome"] for n in (blocks, blocks + more)
    )
    assert set(few) | set(many) <= {COMPLETED, REFUSED}
    assert set(np.flatnonzero(few == COMPLETED)) <= set(np.flatnonzero(many == COMPLETED))


@settings(max_examples=60)
@given(rows=requests, seqs=st.integers(1, 4), budget=st.integers(1, 16))
def test_time_runs_forward_and_no_token_is_lost(
    run: Run, replay: Replay, rows: list[tuple[float, int, int]], seqs: int, budget: int
) -> None:
    """Arrival, schedule, first token and finish come in this order, whatever the limits.

    Iterations do not overlap, and every token passes through the model once or was preempted.
    """
    scheduler = {"max_num_seqs": seqs, "max_batched_tokens": budget}
    result = run(replay(sorted(rows), kv_blocks=10, scheduler=scheduler))
    done = result.records[result.records["outcome"] == COMPLETED]
    assert (np.diff(done[TIMES].to_numpy(), axis=1) >= 0).all()
    usage = result.replicas.iloc[0]
    span_s = done["finish_s"].max() - result.records["arrival_s"].min() if len(done) else 0
    assert usage.busy_s <= span_s * (1 + 1e-9)
    tokens = (done["prompt_tokens"] + done["output_tokens"] - 1).sum()
    if done["preemptions"].sum():
        assert usage.batched_tokens > tokens
    else:
        assert usage.batched_tokens == tokens


def test_the_same_seed_gives_the_same_bytes(
    run: Run, tiny_scenario: Content, tmp_path: Path
) -> None:
    """Two runs, two files, no difference; another seed is another file."""
    scenario = scenario_from(tiny_scenario())
    written = []
    for number, seed in enumerate((5, 5, 6)):
        path = tmp_path / f"{number}.parquet"
        write_records(run(scenario, seed=seed).records, path)
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0] != written[2]


def test_a_run_leaves_no_trace(
    run: Run,
    tiny_scenario: Content,
    tiny_profile: Profile,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Nothing is written or printed; scenario and profile are as before."""
    monkeypatch.chdir(tmp_path)
    scenario = scenario_from(tiny_scenario())
    before = scenario.model_dump(), copy.deepcopy(tiny_profile.model_dump())
    given = {"m": tiny_profile}
    run(scenario, given)
    assert (scenario.model_dump(), tiny_profile.model_dump()) == before
    assert given == {"m": tiny_profile}
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


def test_a_given_profile_replaces_the_named_one(
    run: Run, replay: Replay, tiny_content: Content
) -> None:
    """With a host of 20 ms an iteration in place of 10, the same prompt takes 94.5 ms."""
    slow = [{"at": [n], "median_s": 0.02, "spread": 0, "repeats": 1} for n in (1, 64)]
    profile = _profile(tiny_content(), "operations.host", slow)
    records = run(replay([(0, 4, 1)]), {"m": profile}).records
    assert records["finish_s"].iloc[0] == pytest.approx(0.0945)


def test_the_cache_is_the_profiled_engines_unless_given(run: Run, replay: Replay) -> None:
    """16 blocks were allocated; the scenario may say otherwise."""
    assert run(replay([(0, 4, 1)])).replicas["kv_blocks"].tolist() == [16]
    assert run(replay([(0, 4, 1)], kv_blocks=9)).replicas["kv_blocks"].tolist() == [9]


def test_a_profile_of_another_shape_is_refused(
    run: Run, replay: Replay, tiny_content: Content
) -> None:
    """The differing field and both values are named."""
    profile = _profile(tiny_content(), "model.intermediate_size", 32)
    with pytest.raises(
        ProfileError, match=r"models\.m\.profile: .*intermediate_size 32, the model has 16"
    ):
        run(replay([(0, 4, 1)]), {"m": profile})


def test_a_profile_of_another_kind_of_device_is_refused(
    run: Run, replay: Replay, tiny_content: Content
) -> None:
    """Measured on CUDA, deployed on CPUs."""
    profile = _profile(tiny_content(), "provenance.device_kind", "cuda")
    with pytest.raises(ProfileError, match=r"\(cuda\), hardware\.device cpu-2core is cpu"):
        run(replay([(0, 4, 1)]), {"m": profile})


def test_a_cache_larger_than_the_device_is_refused(run: Run, replay: Replay) -> None:
    """8 GiB hold some 33 million blocks of 256 B; 40 million are too many."""
    with pytest.raises(CapacityError, match=r"model m does not fit on cpu-2core"):
        run(replay([(0, 4, 1)], kv_blocks=40_000_000))


def test_a_run_within_the_cells_warns_of_nothing(run: Run, replay: Replay) -> None:
    """Interpolated at worst."""
    result = run(replay([(0, 4, 3)]))
    assert "extrapolated" not in result.basis.values()
    assert result.warnings == ()


def test_a_run_beyond_the_cells_says_so(run: Run, replay: Replay, tiny_content: Content) -> None:
    """Experts measured for up to 3 tokens, four asked."""
    content = tiny_content()
    experts = [cell for cell in content["operations"]["experts"] if cell["at"][0] <= 3]
    profile = _profile(content, "operations.experts", experts)
    result = run(replay([(0, 4, 1)]), {"m": profile})
    assert result.basis["experts"] == "extrapolated"
    assert result.warnings == ("beyond what was measured, extrapolated: experts",)


def test_the_weakest_basis_of_all_replicas_counts(
    run: Run, replay: Replay, tiny_content: Content
) -> None:
    """Experts measured up to 4 tokens: one replica stays within, the other gets 5."""
    content = tiny_content()
    experts = [cell for cell in content["operations"]["experts"] if cell["at"][0] <= 4]
    profiles = {"m": _profile(content, "operations.experts", experts)}
    alone = run(replay([(0, 4, 1)]), profiles)
    pair = run(replay([(0, 5, 1), (0, 4, 1)], devices=2, replicas=2), profiles)
    assert alone.basis["experts"] != "extrapolated"
    assert pair.basis["experts"] == "extrapolated"


def test_an_unstable_profile_is_reported(run: Run, replay: Replay, tiny_content: Content) -> None:
    """What the tool thought of its own measurement reaches the reader."""
    profile = _profile(tiny_content(), "verdict.stable", False)
    warnings = run(replay([(0, 4, 1)]), {"m": profile}).warnings
    assert warnings == ("the profile of m judged itself unstable; profile again",)


def test_metrics_say_what_they_are_of(run: Run, tiny_scenario: Content) -> None:
    """Scenario, seed and model revision are beside the figures."""
    metrics = run(scenario_from(tiny_scenario()), seed=3).metrics()
    assert (metrics["scenario"], metrics["seed"]) == ("tiny", 3)
    assert metrics["model_revision"] == MODEL_REVISION
    assert set(metrics["tenants"]) == {"chat"}
