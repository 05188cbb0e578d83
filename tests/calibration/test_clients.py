"""Clients: prompts equal where their names are, users who ask again when they are answered."""

from math import inf

import numpy as np
import pytest

from calibration.clients import Clients, Prompts
from moesim.requests import Request
from moesim.serving.records import COMPLETED, REFUSED, Record
from moesim.simulation.users import User
from moesim.traffic.lengths import Fixed
from moesim.traffic.users import Users


def request(number: int, arrival_s: float = 0.0, prefix: tuple[int, ...] = ()) -> Request:
    return Request(
        request_id=number,
        tenant="t",
        model="m",
        arrival_s=arrival_s,
        prompt_tokens=11,
        output_tokens=3,
        prefix=prefix,
    )


def user(think_s: float) -> User:
    return User(
        tenant="u",
        model="m",
        manners=Users(kind="users", count=1, think_s=think_s, think_cv=0),
        prompt=Fixed(kind="fixed", tokens=9),
        output=Fixed(kind="fixed", tokens=2),
        prefix=(-1, -2, -3),
        block_size=4,
        rng=np.random.default_rng(0),
    )


def prompts(run: int = 0) -> Prompts:
    return Prompts(vocabulary=1000, block_size=4, seed=(0, run))


def test_equal_names_are_equal_tokens() -> None:
    """A system prompt or a trace's hashes: named blocks agree, what follows them does not."""
    made = prompts()
    one, two = (made.of(request(n, prefix=names)) for n, names in enumerate([(5, -7), (5, 7)]))
    assert len(one) == len(two) == 11
    assert one[:4] == two[:4]
    assert one[4:8] != two[4:8]
    assert made.of(request(2, prefix=(5, -7)))[8:] != one[8:]


def test_runs_differ_in_tokens() -> None:
    """Real runs of one workload are not the same text twice."""
    assert prompts(run=0).block(5) != prompts(run=1).block(5)


def taken(clients: Clients) -> tuple[int, float, str]:
    """Take the next request, as `(id, arrival, tenant)`."""
    record = clients.take().record
    return record.request_id, record.arrival_s, record.tenant


def test_recorded_and_asked_requests_arrive_in_order() -> None:
    """Two recorded ones at 1 s and 3 s, a user who asks first at 2 s and then waits for good."""
    open_loop = [request(0, 1.0), request(1, 3.0)]
    clients = Clients(open_loop, [user(2.0)], prompts(), until_s=10)
    seen = []
    while clients.next_s() < inf:
        seen.append(taken(clients))
    assert seen == [(0, 1.0, "t"), (2, 2.0, "u"), (1, 3.0, "t")]


@pytest.mark.parametrize(
    ("outcome", "again_s"), [(COMPLETED, 7.0), (REFUSED, 5.0)], ids=["answered", "refused"]
)
def test_a_user_thinks_before_asking_again(outcome: str, again_s: float) -> None:
    """2 s after the answer of 5 s; or after the refusal at 2 s and a second more."""
    clients = Clients([], [user(2.0)], prompts(), until_s=10)
    record = clients.take().record
    record.outcome, record.finish_s = outcome, 5.0
    clients.done(record)
    assert clients.next_s() == again_s


def test_nobody_asks_after_the_end() -> None:
    """The answer comes at 9 s, the next question would at 11 s of 10."""
    clients = Clients([], [user(2.0)], prompts(), until_s=10)
    record = clients.take().record
    record.outcome, record.finish_s = COMPLETED, 9.0
    clients.done(record)
    assert clients.next_s() == inf


def test_nobody_waits_for_recorded_requests() -> None:
    """They are answered, and that is all."""
    clients = Clients([request(0)], [], prompts(), until_s=10)
    clients.done(clients.take().record)
    clients.done(Record(request_id=99))
    assert clients.next_s() == inf
