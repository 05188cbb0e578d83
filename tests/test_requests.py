"""A scenario's requests: merged by time, numbered, each tenant from streams of its own."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from moesim.errors import ScenarioError
from moesim.requests import Request, requests_of
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
