"""Who is next: by arrival, by priority, and in proportion to the tenants' weights."""

from collections.abc import Sequence as Row
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving.kv_cache import KvCache
from moesim.serving.policies import POLICIES
from moesim.serving.queues import FairShare, Queue, queue_of
from moesim.serving.scheduling import Limits, Scheduler
from moesim.serving.sequences import Sequence

weights = st.integers(1, 50).map(lambda tenths: tenths / 10)


def _scheduler(
    queue: Queue, *, seqs: int = 1, blocks: int = 64, policy: str = "chunked_prefill"
) -> Scheduler:
    limits = Limits(
        max_num_seqs=seqs, max_batched_tokens=64, max_model_len=1000, policy=POLICIES[policy]
    )
    return Scheduler(limits, KvCache(num_blocks=blocks, block_size=4), queue)


def _submit(scheduler: Scheduler, *rows: tuple[str, int], output: int = 1) -> None:
    """Queue `(tenant, priority)` requests with prompts of one token."""
    for tenant, priority in rows:
        number = scheduler._submitted
        scheduler.submit(Sequence(number, 1, output, tenant=tenant, priority=priority))


def _served(scheduler: Scheduler, most: int = 1000) -> Row[Sequence]:
    """Run until idle, or so many requests are finished; return them in that order."""
    finished: list[Sequence] = []
    while not scheduler.idle and len(finished) < most:
        finished += scheduler.advance(scheduler.schedule())[1]
    return finished


def _tenants(sequences: Row[Sequence]) -> str:
    return "".join(sequence.tenant for sequence in sequences)


@pytest.mark.parametrize(
    ("order", "served"),
    [("fcfs", [0, 1, 2, 3]), ("priority", [1, 3, 2, 0]), ("fair", [0, 2, 1, 3])],
)
def test_one_at_a_time(order: str, served: list[int]) -> None:
    """Tenants a, a, b, a of priorities 5, 1, 2, 1; equal shares take turns."""
    scheduler = _scheduler(queue_of(order))
    _submit(scheduler, ("a", 5), ("a", 1), ("b", 2), ("a", 1))
    assert [sequence.request_id for sequence in _served(scheduler)] == served


@pytest.mark.parametrize("order", ["fcfs", "priority", "fair"])
def test_who_leaves_a_queue_is_gone(order: str) -> None:
    """Of three that wait the second is cancelled."""
    scheduler = _scheduler(queue_of(order))
    _submit(scheduler, ("a", 0), ("b", 0), ("a", 0))
    second = next(sequence for sequence in scheduler.waiting if sequence.request_id == 1)
    scheduler.cancel(second)
    assert len(scheduler.waiting) == 2
    assert [sequence.request_id for sequence in _served(scheduler)] == [0, 2]


@pytest.mark.parametrize("order", ["fcfs", "priority", "fair"])
def test_the_preempted_return_before_those_who_came_later(order: str) -> None:
    """Six blocks of 4, requests of 4 + 9 tokens: the third gives way, then the second."""
    scheduler = _scheduler(queue_of(order), seqs=3, blocks=6)
    for number in range(5):
        scheduler.submit(Sequence(number, 4, 9))
    order_of_end = [sequence.request_id for sequence in _served(scheduler)]
    assert order_of_end == [0, 1, 2, 3, 4]


# Priority.


def test_the_urgent_overtake_those_who_wait_but_not_those_who_run() -> None:
    """An urgent request comes while the first of two others runs; it is second."""
    scheduler = _scheduler(queue_of("priority"))
    _submit(scheduler, ("a", 3), ("a", 3), output=4)
    scheduler.advance(scheduler.schedule())
    _submit(scheduler, ("b", -1))
    assert [sequence.request_id for sequence in _served(scheduler)] == [0, 2, 1]


def _crowded(*priorities: int) -> list[int]:
    """Run requests of 4 + 3 tokens on as many blocks of 4; return who is preempted first.

    They enter in order of priority, and at the second token each needs another block.
    """
    scheduler = _scheduler(queue_of("priority"), seqs=8, blocks=len(priorities))
    for number, priority in enumerate(priorities):
        scheduler.submit(Sequence(number, 4, 3, priority=priority))
    scheduler.advance(scheduler.schedule())
    return [victim.request_id for victim in scheduler.schedule().preempted]


def test_the_youngest_of_the_least_urgent_gives_way() -> None:
    """Priorities 0, 2, 2, 1: the third goes for the first, and the second for the last."""
    assert _crowded(0, 2, 2, 1) == [2, 1]


def test_among_equals_the_youngest_gives_way() -> None:
    """Priorities 1, 1, 1, 1: the fourth goes for the first, and the third for the second."""
    assert _crowded(1, 1, 1, 1) == [3, 2]


def test_the_least_urgent_that_is_left_gives_way_itself() -> None:
    """Priorities 2, 0, 1: the first goes for the second, and the third has nobody below it."""
    assert _crowded(2, 0, 1) == [0, 2]


def test_a_victim_that_has_its_tokens_already_gives_them_back() -> None:
    """Three blocks; 0 is the least urgent, but entered first. Then the budget is two tokens.

    0 takes one of them; 1 needs a block, so that 0 leaves with neither; 1 and 2 have a token each.
    """
    scheduler = _scheduler(queue_of("priority"), seqs=8, blocks=3)
    scheduler.submit(Sequence(0, 1, 9, priority=2))
    scheduler.advance(scheduler.schedule())
    scheduler.submit(Sequence(1, 4, 9))
    scheduler.submit(Sequence(2, 1, 9))
    scheduler.advance(scheduler.schedule())
    scheduler.limits = replace(scheduler.limits, max_batched_tokens=2)
    batch = scheduler.schedule()
    assert [victim.request_id for victim in batch.preempted] == [0]
    assert [(chunk.sequence.request_id, chunk.context) for chunk in batch.chunks] == [
        (1, 4),
        (2, 1),
    ]


def test_the_preempted_wait_in_their_old_place() -> None:
    """By priority, then arrival: 1 and 2 are preempted, 3 of the same priority came later."""
    scheduler = _scheduler(queue_of("priority"), seqs=8, blocks=4)
    for number, priority in enumerate([0, 2, 2, 1, 2]):
        scheduler.submit(Sequence(number, 4, 3, priority=priority))
    scheduler.advance(scheduler.schedule())
    scheduler.advance(scheduler.schedule())
    order = []
    while scheduler.waiting:
        order.append(scheduler.waiting.pop().request_id)
    assert order == [1, 2, 4]


# Fair shares: one token in and one out cost 1 + 2 = 3 over the weight.


def test_weights_one_and_three() -> None:
    """Counters go a 3, b 1, 2, 3, a 6, b 4, 5, 6: one of a's, then three of b's."""
    scheduler = _scheduler(queue_of("fair", {"a": 1.0, "b": 3.0}))
    _submit(scheduler, *[("a", 0)] * 3, *[("b", 0)] * 9)
    assert _tenants(_served(scheduler)) == "abbbabbbabbb"


def test_long_answers_count_for_more() -> None:
    """Those of a cost 1 + 2 x 4 = 9, those of b 1 + 2 = 3: three for one."""
    scheduler = _scheduler(queue_of("fair"))
    _submit(scheduler, *[("a", 0)] * 2, output=4)
    _submit(scheduler, *[("b", 0)] * 6)
    assert _tenants(_served(scheduler)) == "abbbabbb"


def test_who_comes_late_has_no_credit() -> None:
    """Two of a's six are served when b comes with three: b starts at 6 too, and they take turns."""
    scheduler = _scheduler(queue_of("fair"))
    _submit(scheduler, *[("a", 0)] * 6)
    assert _tenants(_served(scheduler, most=2)) == "aa"
    _submit(scheduler, *[("b", 0)] * 3)
    assert _tenants(_served(scheduler)) == "abababa"


def test_coming_back_level_with_who_left_last() -> None:
    """Nobody waits when b comes, but a was served three times: b starts where a is."""
    queue = FairShare()
    scheduler = _scheduler(queue)
    _submit(scheduler, *[("a", 0)] * 3)
    _served(scheduler)
    _submit(scheduler, ("b", 0), ("b", 0), ("a", 0), ("a", 0))
    assert _tenants(_served(scheduler)) == "baba"


def test_a_new_tenant_starts_level_with_the_least_served() -> None:
    """Tenant a is at 9 and b at 3 when c comes: b, which came first, then c, then a."""
    scheduler = _scheduler(queue_of("fair"))
    _submit(scheduler, ("a", 0), ("a", 0), output=4)
    _submit(scheduler, ("b", 0), ("b", 0))
    assert _tenants(_served(scheduler, most=2)) == "ab"
    _submit(scheduler, ("c", 0))
    assert _tenants(_served(scheduler)) == "bca"


def test_leaving_does_not_clear_a_debt() -> None:
    """Tenant a left at 15, b at 3 and last: b has four served before they are level again."""
    scheduler = _scheduler(queue_of("fair"))
    _submit(scheduler, ("a", 0), output=7)
    _submit(scheduler, ("b", 0))
    assert _tenants(_served(scheduler)) == "ab"
    _submit(scheduler, ("b", 0), ("a", 0), *[("b", 0)] * 4)
    assert _tenants(_served(scheduler)) == "bbbbab"


def test_names_do_not_matter() -> None:
    """Level tenants are served in order of arrival, whatever they are called."""
    for first, second in ("ab", "ba"):
        scheduler = _scheduler(queue_of("fair"))
        _submit(scheduler, *[(first, 0), (second, 0)] * 3)
        assert _tenants(_served(scheduler)) == (first + second) * 3


def test_a_prompt_computed_again_is_charged_once() -> None:
    """Four blocks of 4: the second of two requests of 4 + 9 tokens is preempted and returns.

    Each has cost 4 + 2 x 9 = 22 in the end, as if nothing had happened.
    """
    queue = FairShare()
    scheduler = _scheduler(queue, seqs=2, blocks=4)
    scheduler.submit(Sequence(0, 4, 9, tenant="a"))
    scheduler.submit(Sequence(1, 4, 9, tenant="b"))
    assert [sequence.preemptions for sequence in _served(scheduler)] == [0, 1]
    assert queue._tokens == {"a": 22, "b": 22}


requests = st.lists(st.tuples(st.integers(1, 9), st.integers(1, 9)), min_size=8, max_size=30)


@given(
    ours=requests,
    theirs=requests,
    shares=st.tuples(weights, weights),
    seqs=st.integers(1, 4),
    policy=st.sampled_from(list(POLICIES)),
)
def test_while_both_wait_service_is_in_proportion(
    ours: list[tuple[int, int]],
    theirs: list[tuple[int, int]],
    shares: tuple[float, float],
    seqs: int,
    policy: str,
) -> None:
    """Service over weight differs by less than the dearest requests of one batch (Sheng et al.).

    Counted from outside: prompts when they enter and output tokens when they are emitted. With one
    seat that is within one request's tokens.
    """
    by = dict(zip("ab", map(Fraction, shares), strict=True))
    scheduler = _scheduler(
        queue_of("fair", dict(zip("ab", shares, strict=True))), seqs=seqs, policy=policy
    )
    for tenant, rows in (("a", ours), ("b", theirs)):
        for prompt, output in rows:
            scheduler.submit(Sequence(scheduler._submitted, prompt, output, tenant=tenant))
    dearest = max(
        (prompt + 2 * output) / by[tenant]
        for tenant, rows in (("a", ours), ("b", theirs))
        for prompt, output in rows
    )
    service = {"a": Fraction(0), "b": Fraction(0)}
    while {sequence.tenant for sequence in scheduler.waiting} == {"a", "b"}:
        batch = scheduler.schedule()
        for chunk in batch.chunks:
            if not chunk.context:
                service[chunk.sequence.tenant] += chunk.sequence.prompt_tokens
        for sequence in scheduler.advance(batch)[0]:
            service[sequence.tenant] += 2
        assert abs(service["a"] / by["a"] - service["b"] / by["b"]) <= seqs * dearest


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(-2, 2)), max_size=30), st.data())
def test_priority_is_a_sort(rows: list[tuple[str, int]], data: st.DataObject) -> None:
    """Whatever is removed in between, the others come out by priority, then arrival."""
    queue = queue_of("priority")
    sequences = [
        Sequence(number, 1, 1, tenant=tenant, priority=priority, number=number)
        for number, (tenant, priority) in enumerate(rows)
    ]
    for sequence in sequences:
        queue.append(sequence)
    gone = data.draw(st.lists(st.sampled_from(sequences), unique=True)) if sequences else []
    for sequence in gone:
        queue.remove(sequence)
    left = sorted(
        (sequence for sequence in sequences if sequence not in gone),
        key=lambda sequence: (sequence.priority, sequence.number),
    )
    assert [queue.pop() for _ in range(len(queue))] == left
