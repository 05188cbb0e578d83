"""A gateway before expert models: a queue of its own, and who gets what."""

import numpy as np
import pandas as pd
import pytest

from moesim.requests import COLUMNS, requests_from
from moesim.scenario import Scenario, load_scenario, scenario_from
from moesim.simulation.gateway import Gateway
from moesim.simulation.run import simulate


def frame(arrival_s: list[float]) -> pd.DataFrame:
    count = len(arrival_s)
    columns = dict(zip(COLUMNS, ["t", "any", arrival_s, [5] * count, [3] * count], strict=True))
    return pd.DataFrame({"request_id": range(count), **columns})


def gateway(classify_s: float, **shares: float) -> Gateway:
    return Gateway(shares or {"a": 1.0}, classify_s=classify_s, rng=np.random.default_rng(3))


def test_prompts_wait_for_those_before_them() -> None:
    """Three prompts at once take 2, 4 and 6 s; one at 20 s only its own 2."""
    sent = gateway(2.0).all_sent(frame([0.0, 0.0, 0.0, 20.0]))
    assert sent["delay_s"].tolist() == [2.0, 4.0, 6.0, 2.0]


def test_all_at_once_is_one_after_the_other() -> None:
    """A frame is sent on as its requests would be in turn: same models, same delays."""
    arrival_s = np.cumsum(np.random.default_rng(0).exponential(0.1, 200)).tolist()
    requests = frame(arrival_s)
    at_once = gateway(0.09, a=3, b=1).all_sent(requests)
    behind = gateway(0.09, a=3, b=1)
    in_turn = [behind.sent(request) for request in requests_from(requests)]
    assert at_once["model"].tolist() == [request.model for request in in_turn]
    delays = [request.delay_s for request in in_turn]
    np.testing.assert_allclose(at_once["delay_s"], delays, rtol=0, atol=1e-9)


def test_shares_are_of_the_whole() -> None:
    """3 to 1, of 4,000: 3,000 within four standard deviations of 27."""
    sent = gateway(0.0, a=3, b=1).all_sent(frame([0.0] * 4000))
    assert (sent["model"] == "a").sum() == pytest.approx(3000, abs=4 * 27.4)


def router(*, users: int, dispatcher: str) -> Scenario:
    """Return the shipped expert router for three seconds, one expert on two cards."""
    content = load_scenario("expert_router").to_content()
    tenant = content["tenants"]["users"]
    content["tenants"] = {
        "open": {**tenant, "arrivals": {"kind": "poisson", "rate_per_s": 8.3}},
        **({"users": tenant} if users else {}),
    }
    tenant["arrivals"] |= {"count": max(1, users), "think_s": 1.7}
    own = content["deployment"]["experts"]["code"]
    content["deployment"]["experts"]["code"] = {**own, "replicas": 2, "dispatcher": dispatcher}
    content["hardware"]["count"], content["duration_s"] = 5, 3
    return scenario_from(content)


@pytest.mark.parametrize("users", [0, 20])
@pytest.mark.parametrize("dispatcher", ["round_robin", "least_loaded"])
def test_jumping_equals_stepping(users: int, dispatcher: str) -> None:
    """Open streams and users through one gateway, to experts of one or two replicas."""
    scenario = router(users=users, dispatcher=dispatcher)
    jumped, stepped = (simulate(scenario, stepwise=way).records for way in (False, True))
    pd.testing.assert_frame_equal(jumped, stepped, rtol=0, atol=1e-9)
    assert set(jumped["model"]) <= set(scenario.models)
    assert jumped["replica"].str.startswith("code/1").any()


def test_the_gateway_is_part_of_the_latency() -> None:
    """A request's TTFT begins when it reaches the gateway, which takes 2 ms for each in turn."""
    records = simulate(router(users=0, dispatcher="round_robin")).records
    waited_s = records["scheduled_s"] - records["arrival_s"]
    assert waited_s.min() >= 0.002
