"""What a real run is given: requests named as in the simulation, prompts that go with the names."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from calibration.serving import clients_of, drawn_requests, engine_config
from moesim.cost.profile import Profile
from moesim.scenario import Scenario, scenario_from

HASHES = [(1, 2), (1, 3), (4, 5)]
BLOCK = 512


@pytest.fixture
def traced(tiny_scenario: Callable[[], dict[str, Any]], tmp_path: Path) -> Callable[..., Scenario]:
    """Build a scenario that replays three prompts of two hashed blocks, two with the same first."""
    rows = [
        {"timestamp": 1000 * n, "input_length": 2 * BLOCK, "output_length": 1, "hash_ids": hashes}
        for n, hashes in enumerate(HASHES)
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def build(**scheduler: Any) -> Scenario:
        content = tiny_scenario()
        content["tenants"]["chat"] |= {
            "arrivals": {"kind": "trace", "path": str(path)},
            "prompt_tokens": {"kind": "trace"},
            "output_tokens": {"kind": "trace"},
        }
        content["deployment"]["scheduler"] |= scheduler
        return scenario_from(content)

    return build


def test_a_trace_s_hashes_become_equal_beginnings(traced: Callable[..., Scenario]) -> None:
    """Prompts are equal for as long as their hashes are, and no longer."""
    scenario = traced(prefix_caching=True)
    clients = clients_of(scenario, vocabulary=1000, block_size=4, seed=0)
    arrivals = [clients.take() for _ in HASHES]
    one, two, three = (arrival.prompt for arrival in arrivals)
    assert one[:BLOCK] == two[:BLOCK]
    assert one[BLOCK : BLOCK + 4] != two[BLOCK : BLOCK + 4]
    assert one[:4] != three[:4]
    assert [len(arrival.names or ()) for arrival in arrivals] == [2 * BLOCK // 4] * 3


def test_without_caching_nothing_is_named(traced: Callable[..., Scenario]) -> None:
    """Nor are prompts made alike."""
    requests = drawn_requests(traced(), block_size=4, seed=0)
    assert [request.prefix for request in requests] == [()] * 3


@pytest.mark.parametrize(("order", "urgency"), [("priority", {"chat": 3}), ("fair", {})])
def test_urgency_matters_under_its_own_order_only(
    tiny_scenario: Callable[[], dict[str, Any]],
    tiny_profile: Profile,
    order: str,
    urgency: dict[str, int],
) -> None:
    """Elsewhere it must not decide who is preempted either."""
    content = tiny_scenario()
    content["tenants"]["chat"] |= {"priority": 3}
    content["deployment"]["scheduler"] |= {"order": order}
    config = engine_config(scenario_from(content), tiny_profile)
    assert (config.order, config.priorities) == (order, urgency)
