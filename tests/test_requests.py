"""A scenario's requests: merged by time, numbered, each tenant from streams of its own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.errors import MoesimWarning, ScenarioError
from moesim.requests import Request, draw_requests, load_traces, requests_of
from moesim.scenario import scenario_from

Content = Callable[[], dict[str, Any]]

TRACE = "arrival_s,prompt_tokens,output_tokens\n0,24,6\n2,0,6\n4,25,0\n8,1,1\n20,9,9\n"


def _of(requests: list[Request], tenant: str) -> list[Request]:
    """Return a tenant's requests without their numbers in the whole."""
    return [replace(request, request_id=0) for request in requests if request.tenant == tenant]


def _replay(content: dict[str, Any], path: Path | str, **arrivals: Any) -> dict[str, Any]:
    content["tenants"]["chat"] |= {
        "arrivals": {"kind": "trace", "path": str(path), **arrivals},
        "prompt_tokens": {"kind": "trace"},
        "output_tokens": {"kind": "trace"},
    }
    return content


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a trace of five requests in 20 s."""
    path = tmp_path / "trace.csv"
    path.write_text(TRACE)
    return path


def test_requests_are_numbered_by_arrival(tiny_scenario: Content) -> None:
    """Two tenants' streams merged, all inside the window."""
    content = tiny_scenario()
    content["tenants"]["code"] = content["tenants"]["chat"]
    requests = requests_of(scenario_from(content), seed=0)
    arrivals = [request.arrival_s for request in requests]
    assert arrivals == sorted(arrivals)
    assert [request.request_id for request in requests] == list(range(len(requests)))
    assert {request.tenant for request in requests} == {"chat", "code"}
    assert arrivals[0] >= 0
    assert arrivals[-1] < 10


def test_the_same_seed_is_the_same_stream(tiny_scenario: Content) -> None:
    """And another seed is another, in times and lengths."""
    scenario = scenario_from(tiny_scenario())
    first = requests_of(scenario, seed=1)
    assert requests_of(scenario, seed=1) == first
    other = requests_of(scenario, seed=2)
    assert [r.arrival_s for r in other][:5] != [r.arrival_s for r in first][:5]
    assert [r.prompt_tokens for r in other][:9] != [r.prompt_tokens for r in first][:9]


def test_a_new_tenant_leaves_the_others_as_they_were(tiny_scenario: Content) -> None:
    """Streams hang on a tenant's name, not on its place."""
    content = tiny_scenario()
    alone = requests_of(scenario_from(content), seed=0)
    content["tenants"] = {"aaa": content["tenants"]["chat"], **content["tenants"]}
    together = requests_of(scenario_from(content), seed=0)
    assert _of(together, "chat") == _of(alone, "chat")
    assert [r.arrival_s for r in _of(together, "aaa")] != [r.arrival_s for r in alone]


def test_changing_answers_leaves_arrivals_and_prompts(tiny_scenario: Content) -> None:
    """Deployments and workloads are compared on common random numbers."""
    content = tiny_scenario()
    before = requests_of(scenario_from(content), seed=0)
    content["tenants"]["chat"]["output_tokens"] = {"kind": "fixed", "tokens": 3}
    after = requests_of(scenario_from(content), seed=0)
    assert after == [replace(request, output_tokens=3) for request in before]


def test_a_replayed_trace_is_the_trace(tiny_scenario: Content, trace: Path) -> None:
    """Its window of 10 s, with zeros kept for the replica to refuse."""
    requests = requests_of(scenario_from(_replay(tiny_scenario(), trace)), seed=0)
    assert [(r.arrival_s, r.prompt_tokens, r.output_tokens) for r in requests] == [
        (0, 24, 6),
        (2, 0, 6),
        (4, 25, 0),
        (8, 1, 1),
    ]


def test_a_faster_replay_covers_more_of_the_trace(tiny_scenario: Content, trace: Path) -> None:
    """At twice the speed, 10 s hold 20 s of trace from 2 s on: 2, 4, 8 and 20 of its seconds."""
    content = _replay(tiny_scenario(), trace, start_s=2, speedup=2)
    requests = requests_of(scenario_from(content), seed=0)
    assert [request.arrival_s for request in requests] == [0, 1, 3, 9]


def test_scaled_lengths_keep_one_token_and_zero(tiny_scenario: Content, trace: Path) -> None:
    """At a tenth, 24 become 2, one stays one, none stays none; more than `max` is clipped."""
    content = _replay(tiny_scenario(), trace)
    content["tenants"]["chat"]["prompt_tokens"] |= {"scale": 0.1}
    content["tenants"]["chat"]["output_tokens"] |= {"max": 5}
    requests = requests_of(scenario_from(content), seed=0)
    assert [request.prompt_tokens for request in requests] == [2, 0, 2, 1]
    assert [request.output_tokens for request in requests] == [5, 5, 0, 1]


def test_a_trace_may_lend_only_its_times(tiny_scenario: Content, trace: Path) -> None:
    """With lengths drawn from a distribution."""
    content = _replay(tiny_scenario(), trace)
    content["tenants"]["chat"]["prompt_tokens"] = {"kind": "fixed", "tokens": 7}
    requests = requests_of(scenario_from(content), seed=0)
    assert [request.prompt_tokens for request in requests] == [7] * 4
    assert [request.output_tokens for request in requests] == [6, 6, 0, 1]


def test_a_trace_is_found_beside_the_scenario(
    tiny_scenario: Content, trace: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A relative path starts from the scenario's folder."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    scenario = scenario_from(_replay(tiny_scenario(), trace.name), folder=trace.parent)
    assert len(requests_of(scenario, seed=0)) == 4


def test_a_window_without_a_request_is_refused(tiny_scenario: Content, trace: Path) -> None:
    """Beyond the end of the trace."""
    scenario = scenario_from(_replay(tiny_scenario(), trace, start_s=30))
    with pytest.raises(ScenarioError, match="no request from 30 s"):
        requests_of(scenario, seed=0)


def test_a_scenario_without_a_request_is_refused(tiny_scenario: Content) -> None:
    """One in a thousand seconds does not come in ten; the remedy is in the message."""
    content = tiny_scenario()
    content["tenants"]["chat"]["arrivals"] = {"kind": "constant", "rate_per_s": 0.001}
    with pytest.raises(ScenarioError, match="no request arrives; make it longer or raise a rate"):
        requests_of(scenario_from(content), seed=0)


def test_one_silent_tenant_among_others_is_no_error(tiny_scenario: Content) -> None:
    """The others' requests are all there are."""
    content = tiny_scenario()
    silent = {"kind": "constant", "rate_per_s": 0.001}
    alone = requests_of(scenario_from(content), seed=0)
    content["tenants"]["rare"] = content["tenants"]["chat"] | {"arrivals": silent}
    assert requests_of(scenario_from(content), seed=0) == alone


MOONCAKE = [
    {"timestamp": 0, "input_length": 1000, "output_length": 5, "hash_ids": [1, 2]},
    {"timestamp": 2000, "input_length": 600, "output_length": 6, "hash_ids": [1, 3]},
]


@pytest.fixture
def hashed(tmp_path: Path) -> Path:
    """Write a trace of two prompts that begin with the same 512 tokens."""
    path = tmp_path / "mooncake.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in MOONCAKE))
    return path


def test_hashes_of_a_trace_come_with_its_prompts(tiny_scenario: Content, hashed: Path) -> None:
    """Other tenants have none; the block's size is the trace's."""
    content = tiny_scenario()
    content["tenants"]["other"] = json.loads(json.dumps(content["tenants"]["chat"]))
    requests = draw_requests(scenario_from(_replay(content, hashed)), seed=0)
    mine = requests["tenant"] == "chat"
    assert requests.attrs["prefix_block"] == 512
    assert requests.loc[mine, "prefix"].tolist() == [(1, 2), (1, 3)]
    assert set(requests.loc[~mine, "prefix"]) == {()}


def test_blocks_are_scaled_with_their_prompts(tiny_scenario: Content, hashed: Path) -> None:
    """At an eighth, a prompt of 1000 tokens has 125, in blocks of 64."""
    content = _replay(tiny_scenario(), hashed)
    content["tenants"]["chat"]["prompt_tokens"] |= {"scale": 0.125}
    requests = draw_requests(scenario_from(content), seed=0)
    assert requests["prompt_tokens"].tolist() == [125, 75]
    assert requests.attrs["prefix_block"] == 64


def test_prompts_that_are_drawn_have_no_hashes(tiny_scenario: Content, hashed: Path) -> None:
    """The trace's hashes are of other prompts; nor does any other trace bring a column."""
    content = _replay(tiny_scenario(), hashed)
    content["tenants"]["chat"]["prompt_tokens"] = {"kind": "fixed", "tokens": 7}
    assert "prefix" not in draw_requests(scenario_from(content), seed=0)
    assert "prefix" not in draw_requests(scenario_from(tiny_scenario()), seed=0)


def test_blocks_of_two_sizes_are_refused(tiny_scenario: Content, hashed: Path) -> None:
    """One run has one size of block."""
    content = tiny_scenario()
    content["tenants"]["other"] = json.loads(json.dumps(content["tenants"]["chat"]))
    content = _replay(content, hashed)
    content["tenants"]["other"] |= json.loads(json.dumps(content["tenants"]["chat"]))
    content["tenants"]["other"]["prompt_tokens"]["scale"] = 0.5
    with pytest.raises(ScenarioError, match=r"different numbers of tokens \(256 and 512\)"):
        draw_requests(scenario_from(content), seed=0)


def test_one_tenant_of_a_trace_and_its_first_requests(
    tiny_scenario: Content, tmp_path: Path
) -> None:
    """Two of the three of `a`, and not those of `b`."""
    path = tmp_path / "trace.csv"
    rows = ["0,1,1,a", "1,2,1,b", "2,3,1,a", "3,4,1,a"]
    path.write_text("arrival_s,prompt_tokens,output_tokens,tenant\n" + "\n".join(rows))
    content = _replay(tiny_scenario(), path, only_tenant="a", max_requests=2)
    requests = requests_of(scenario_from(content), seed=0)
    assert [request.prompt_tokens for request in requests] == [1, 3]
    assert {request.tenant for request in requests} == {"chat"}


def test_bad_rows_are_skipped_only_where_all_tenants_say_so(
    tiny_scenario: Content, trace: Path
) -> None:
    """The trace is read once for all of them."""
    trace.write_text(TRACE + "21,x,1\n")
    content = _replay(tiny_scenario(), trace, skip_bad_rows=True)
    with pytest.warns(MoesimWarning, match="bad rows skipped: 1"):
        assert len(requests_of(scenario_from(content), seed=0)) == 4
    content["tenants"]["other"] = json.loads(json.dumps(content["tenants"]["chat"]))
    content["tenants"]["other"]["arrivals"]["skip_bad_rows"] = False
    with pytest.raises(ScenarioError, match="line 7: prompt_tokens: 'x'"):
        requests_of(scenario_from(content), seed=0)


def test_many_seeds_read_a_trace_once(tiny_scenario: Content, trace: Path) -> None:
    """What is read can be lent; the file may then be gone."""
    content = _replay(tiny_scenario(), trace)
    content["tenants"]["chat"]["output_tokens"] = {"kind": "lognormal", "mean": 9.0, "cv": 1.0}
    scenario = scenario_from(content)
    traces = load_traces(scenario)
    expected = [draw_requests(scenario, seed) for seed in range(3)]
    trace.unlink()
    for seed, frame in enumerate(expected):
        pd.testing.assert_frame_equal(draw_requests(scenario, seed, traces), frame)


@pytest.fixture
def servegen(tmp_path: Path, tiny_scenario: Content) -> dict[str, Any]:
    """Return a scenario of a client that sends 2 and then 5 requests a second, ever longer."""
    header = "client_id,window_start_s,rate_req_s,cv,arrival_family,param1,param2\n"
    windows = "3,0,2,1.2,Gamma,1,1\n3,600,5,1.2,Weibull,1,1\n"
    (tmp_path / "trace.csv").write_text(header + windows)
    lengths = [
        {"client_id": 3, "window_start_s": start, "input_tokens_quantiles": [low, low + 9],
         "output_tokens_quantiles": [5, 5]}
        for start, low in ((0, 10), (600, 100))
    ]  # fmt: skip
    (tmp_path / "lengths.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lengths))
    content = tiny_scenario() | {"duration_s": 100}
    client = {"kind": "servegen", "client": 3}
    content["tenants"]["chat"] |= {
        "arrivals": client | {"path": str(tmp_path / "trace.csv"), "start_s": 550},
        "prompt_tokens": client | {"path": str(tmp_path / "lengths.jsonl")},
        "output_tokens": client | {"path": str(tmp_path / "lengths.jsonl")},
    }
    return content


def test_servegen_arrivals_are_counted_before_they_are_drawn(servegen: dict[str, Any]) -> None:
    """A slip of the pen in the file is found as one in a scenario is."""
    path = Path(servegen["tenants"]["chat"]["arrivals"]["path"])
    path.write_text(path.read_text().replace("3,600,5,", "3,600,100000,"))
    with pytest.raises(ScenarioError, match=r"tenants.chat: about 6e\+07 requests"):
        draw_requests(scenario_from(servegen), 0)


def test_servegen_lengths_are_those_of_the_arrival(servegen: dict[str, Any]) -> None:
    """Begun 50 s before the window ends: short prompts, then, more often, long ones."""
    frame = draw_requests(scenario_from(servegen), seed=0)
    early = frame["arrival_s"] < 50
    assert frame.loc[early, "prompt_tokens"].between(10, 19).all()
    assert frame.loc[~early, "prompt_tokens"].between(100, 109).all()
    assert set(frame["output_tokens"]) == {5}
    assert early.sum() < (~early).sum()


def test_a_speedup_moves_servegen_lengths_too(servegen: dict[str, Any]) -> None:
    """At twice the speed the window ends after 25 s."""
    servegen["tenants"]["chat"]["arrivals"]["speedup"] = 2
    frame = draw_requests(scenario_from(servegen), seed=0)
    assert frame.loc[frame["arrival_s"] >= 25, "prompt_tokens"].min() >= 100


def test_servegen_lengths_go_with_any_arrivals(servegen: dict[str, Any]) -> None:
    """Poisson arrivals begin at the file's zero."""
    servegen["tenants"]["chat"]["arrivals"] = {"kind": "poisson", "rate_per_s": 2.0}
    frame = draw_requests(scenario_from(servegen), seed=0)
    assert frame["prompt_tokens"].between(10, 19).all()


@pytest.mark.parametrize(
    "arrivals",
    [
        {"kind": "weibull", "rate_per_s": 3.0, "cv": 2.0},
        {"kind": "on-off", "on_rate_per_s": 9.0, "on_s": 2.0, "off_s": 2.0},
        {"kind": "diurnal", "rates_per_s": [1.0, 9.0], "period_s": 10.0},
    ],
    ids=lambda arrivals: arrivals["kind"],
)
def test_every_process_can_be_written_in_a_scenario(
    tiny_scenario: Content, arrivals: dict[str, Any]
) -> None:
    """And is the same when read back from what is written."""
    content = tiny_scenario()
    content["tenants"]["chat"]["arrivals"] = arrivals
    scenario = scenario_from(content)
    assert len(requests_of(scenario, seed=0)) > 5
    again = scenario_from(scenario.to_content())
    assert requests_of(again, seed=0) == requests_of(scenario, seed=0)
