"""A gateway before expert models: a queue of its own, and who gets what."""

import numpy as np
import pandas as pd
import pytest

from moesim.requests import COLUMNS, requests_from
from moesim.simulation.gateway import Gateway


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
