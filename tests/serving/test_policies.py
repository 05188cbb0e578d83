"""Each policy's batches on a small trace, preemption by swapping, and what holds for all of them.

A batch is shown as (request, new tokens, tokens cached before). Blocks have 4 tokens, requests are
(prompt, output), numbered in order of arrival.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.policies import POLICIES
from moesim.serving.queues import ORDERS, queue_of
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Batch, Sequence

Chunks = list[tuple[int, int, int]]

WHOLE = [name for name, policy in POLICIES.items() if not policy.chunked]
PREEMPTING = [name for name, policy in POLICIES.items() if policy.preempts]
PROMISING = [name for name, policy in POLICIES.items() if not policy.preempts]


def _scheduler(
    policy: str,
    *requests: tuple[int, int],
    seqs: int = 8,
    budget: int = 16,
    blocks: int = 64,
    swap_blocks: int = 0,
) -> Scheduler:
    limits = Limits(
        max_num_seqs=seqs,
        max_batched_tokens=budget,
        max_model_len=1000,
        policy=POLICIES[policy],
        swap_blocks=swap_blocks,
    )
    scheduler = Scheduler(limits, KvCache(num_blocks=blocks, block_size=4))
    _submit(scheduler, *requests)
    return scheduler


def _submit(scheduler: Scheduler, *requests: tuple[int, int]) -> None:
    for prompt, output in requests:
        scheduler.submit(Sequence(scheduler._submitted, prompt, output))


def _chunks(batch: Batch) -> Chunks:
    return [(chunk.sequence.request_id, chunk.new_tokens, chunk.context) for chunk in batch.chunks]


def _ids(sequences: Iterable[Sequence]) -> list[int]:
    return [sequence.request_id for sequence in sequences]


def _step(scheduler: Scheduler) -> Batch:
    batch = scheduler.schedule()
    scheduler.advance(batch)
    return batch


def _run(scheduler: Scheduler, most: int = 100) -> list[Chunks]:
    """Run until idle; return the chunks of every iteration."""
    log = []
    while not scheduler.idle:
        log.append(_chunks(_step(scheduler)))
        assert len(log) <= most
    return log


# What a decode sees when a prompt arrives.


def _joined(policy: str) -> list[Chunks]:
    """Serve a request of 4 + 3 tokens; one of 6 + 2 comes after the first iteration."""
    scheduler = _scheduler(policy, (4, 3))
    log = [_chunks(_step(scheduler))]
    _submit(scheduler, (6, 2))
    return log + _run(scheduler)


MIXING = ["chunked_prefill", "no_evict", "no_evict_chunked", "max_utilisation"]


@pytest.mark.parametrize("policy", MIXING)
def test_prompts_share_iterations_with_decodes(policy: str) -> None:
    """The second's prompt runs beside the first's second token."""
    assert _joined(policy) == [[(0, 4, 0)], [(0, 1, 4), (1, 6, 0)], [(0, 1, 5), (1, 1, 6)]]


def test_prefill_priority_stalls_decodes() -> None:
    """The second's prompt runs alone, and the first waits an iteration for its second token."""
    assert _joined("prefill_priority") == [
        [(0, 4, 0)],
        [(1, 6, 0)],
        [(0, 1, 4), (1, 1, 6)],
        [(0, 1, 5)],
    ]


def test_static_lets_nobody_in_until_the_batch_is_done() -> None:
    """The second waits for the first's three tokens."""
    assert _joined("static") == [[(0, 4, 0)], [(0, 1, 4)], [(0, 1, 5)], [(1, 6, 0)], [(1, 1, 6)]]


def test_static_runs_until_the_longest_answer_is_done() -> None:
    """Answers of 1 and 3 begin together; the first leaves, its seat and blocks stay empty."""
    scheduler = _scheduler("static", (4, 1), (4, 3), (4, 1), seqs=2)
    assert _run(scheduler) == [[(0, 4, 0), (1, 4, 0)], [(1, 1, 4)], [(1, 1, 5)], [(2, 4, 0)]]


def test_a_static_batch_begins_in_one_iteration() -> None:
    """Three prompts of 6 under a budget of 16: the third belongs to the next batch."""
    scheduler = _scheduler("static", (6, 2), (6, 2), (6, 1))
    assert _run(scheduler) == [[(0, 6, 0), (1, 6, 0)], [(0, 1, 6), (1, 1, 6)], [(2, 6, 0)]]


def test_only_chunked_policies_split_a_prompt() -> None:
    """Budget 8, a decode and a prompt of 8: seven tokens of it go along, or none.

    Whole, it waits for the first to finish, and a prompt of 2 behind it waits too.
    """
    logs = {}
    for policy in MIXING:
        scheduler = _scheduler(policy, (4, 3), budget=8)
        _step(scheduler)
        _submit(scheduler, (8, 1), (2, 1))
        logs[policy] = _run(scheduler)
    for policy in ("chunked_prefill", "no_evict_chunked"):
        assert logs[policy] == [[(0, 1, 4), (1, 7, 0)], [(0, 1, 5), (1, 1, 7), (2, 2, 0)]]
    for policy in ("no_evict", "max_utilisation"):
        assert logs[policy] == [[(0, 1, 4)], [(0, 1, 5)], [(1, 8, 0)], [(2, 2, 0)]]


def test_prefill_priority_computes_prompts_up_to_the_budget() -> None:
    """Prompts of 6, 6 and 6 under a budget of 16: two, then one, then the decodes of all."""
    scheduler = _scheduler("prefill_priority", (6, 2), (6, 2), (6, 2))
    assert _run(scheduler) == [
        [(0, 6, 0), (1, 6, 0)],
        [(2, 6, 0)],
        [(0, 1, 6), (1, 1, 6), (2, 1, 6)],
    ]


# Padding, as vLLM had it from October 2023 to March 2024.


def _padded(*prompts: int, budget: int, padding: int) -> list[tuple[list[int], int]]:
    """Serve prompts that all wait; return who entered together, and padded to what."""
    limits = Limits(
        max_num_seqs=100,
        max_batched_tokens=budget,
        max_model_len=1000,
        policy=replace(POLICIES["padded_prefill"], padding=padding),
    )
    scheduler = Scheduler(limits, KvCache(num_blocks=1000, block_size=4))
    _submit(scheduler, *((prompt, 1) for prompt in prompts))
    log = []
    while not scheduler.idle:
        batch = _step(scheduler)
        log.append(([chunk.new_tokens for chunk in batch.chunks], batch.padded_to))
    return log


def test_a_prompt_waits_that_would_bring_too_much_padding() -> None:
    """7 and 9 take 2 tokens of padding; 4 would take 5 more, and 12 beside 4 takes 8 of 6."""
    assert _padded(7, 9, 4, 12, budget=99, padding=6) == [([7, 9], 9), ([4], 4), ([12], 12)]
    assert _padded(7, 9, 4, 12, budget=99, padding=8) == [([7, 9, 4], 9), ([12], 12)]


def test_the_budget_holds_prompts_with_their_padding() -> None:
    """3 x 9 tokens are more than 26, though the prompts have 20."""
    assert _padded(7, 9, 4, budget=26, padding=99) == [([7, 9], 9), ([4], 4)]
    assert _padded(7, 9, 4, budget=27, padding=99) == [([7, 9, 4], 9)]


def test_decodes_are_not_padded() -> None:
    """Answers of two tokens: after both prompts a step of one token each."""
    scheduler = _scheduler("padded_prefill", (4, 2), (6, 2))
    batches = [_step(scheduler) for _ in range(2)]
    assert [batch.padded_to for batch in batches] == [6, 0]
    assert _chunks(batches[1]) == [(0, 1, 4), (1, 1, 6)]


@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=25),
    budget=st.integers(40, 200),
    padding=st.integers(0, 60),
)
def test_whoever_enters_together_is_the_longest_run_of_the_queue_that_may(
    prompts: list[int], budget: int, padding: int
) -> None:
    """By brute force: of every run from the head that keeps both limits at each of its lengths."""

    def may(several: list[int]) -> bool:
        rectangle = max(several) * len(several)
        return rectangle <= budget and rectangle - sum(several) <= padding

    expected, left = [], list(prompts)
    while left:
        runs = [n for n in range(1, len(left) + 1) if all(may(left[:m]) for m in range(1, n + 1))]
        together, left = left[: max(runs)], left[max(runs) :]
        expected.append((together, max(together)))
    assert _padded(*prompts, budget=budget, padding=padding) == expected


def test_others_do_not_pad() -> None:
    for name, policy in POLICIES.items():
        assert (policy.padding is None) == (name != "padded_prefill")
        scheduler = _scheduler(name, (4, 2), (6, 2))
        assert bool(_step(scheduler).padded_to) == (name == "padded_prefill")


@pytest.mark.parametrize(
    ("prompt", "output", "refusing"),
    [
        (8, 1, []),
        (5, 4, []),
        # Preempted at its last token, 5 + 4 known tokens would have to enter.
        (5, 5, ["max_utilisation", "padded_prefill", "prefill_priority"]),
        (9, 1, WHOLE),
    ],
)
def test_what_must_enter_at_once_and_cannot_is_refused(
    prompt: int, output: int, refusing: list[str]
) -> None:
    """Budget 8: a whole prompt has at most 8 tokens, and so has what a preempted one computes."""
    cache = KvCache(num_blocks=64, block_size=4)
    found = []
    for name, policy in POLICIES.items():
        limits = Limits(max_num_seqs=4, max_batched_tokens=8, max_model_len=99, policy=policy)
        reason = refusal(prompt, output, limits, cache)
        if reason:
            assert "tokens to compute at once exceed the iteration's maximum of 8" in reason
            found.append(name)
    assert sorted(found) == sorted(refusing)


# What is promised about memory.


@pytest.mark.parametrize("policy", PROMISING)
def test_blocks_of_the_whole_answer_are_set_aside(policy: str) -> None:
    """Four blocks; 4 + 9 tokens cache 12, three blocks, so that the second waits for the first."""
    scheduler = _scheduler(policy, (4, 9), (4, 9), blocks=4)
    _step(scheduler)
    assert (scheduler.cache.free_blocks, len(scheduler.running)) == (1, 1)
    log = _run(scheduler)
    assert len(log) == 8 + 9
    assert log[8] == [(1, 4, 0)]


def test_a_chunk_enters_with_room_for_all_or_not_at_all() -> None:
    """Four blocks, budget 6, 10 + 3 tokens cache 12: three blocks from the first chunk on.

    A second of 3 + 2 takes the fourth and goes beside the last chunk; a third like it waits for
    either to finish. Under `chunked_prefill` it would be let in as soon as its prompt fits.
    """
    scheduler = _scheduler("no_evict_chunked", (10, 3), (3, 2), (3, 2), budget=6, blocks=4)
    _step(scheduler)
    assert (scheduler.cache.free_blocks, len(scheduler.running)) == (1, 1)
    assert _run(scheduler) == [
        [(0, 4, 6), (1, 2, 0)],
        [(0, 1, 10), (1, 1, 2)],
        [(0, 1, 11), (1, 1, 3)],
        [(2, 3, 0)],
        [(2, 1, 3)],
    ]


def test_max_utilisation_preempts_the_youngest() -> None:
    """The same trace: both enter with a block each, and at token 9 there is no third block.

    The second gives up its two; after the first's nine tokens it computes its 4 + 5 again.
    """
    scheduler = _scheduler("max_utilisation", (4, 9), (4, 9), blocks=4)
    assert [_chunks(_step(scheduler)) for _ in range(2)] == [
        [(0, 4, 0), (1, 4, 0)],
        [(0, 1, 4), (1, 1, 4)],
    ]
    for _ in range(3):
        _step(scheduler)
    batch = _step(scheduler)
    assert (_chunks(batch), _ids(batch.preempted)) == ([(0, 1, 8)], [1])
    assert _run(scheduler) == [
        *([(0, 1, context)] for context in (9, 10, 11)),
        [(1, 9, 0)],
        *([(1, 1, context)] for context in (9, 10, 11)),
    ]


@pytest.mark.parametrize("policy", PREEMPTING)
def test_the_others_let_in_whom_no_evict_holds_back(policy: str) -> None:
    """The same trace takes 13 iterations instead of 18, since five have two tokens."""
    scheduler = _scheduler(policy, (4, 9), (4, 9), blocks=4)
    assert len(_run(scheduler)) == 13


# Swapping.


@pytest.mark.parametrize("policy", PREEMPTING)
def test_swapped_blocks_come_back(policy: str) -> None:
    """The same trace with host memory: the second's two blocks go out at token 9 and come back.

    When the first is done, the second goes on with token 9 as if nothing had happened.
    """
    scheduler = _scheduler(policy, (4, 9), (4, 9), blocks=4, swap_blocks=8)
    for _ in range(5):
        _step(scheduler)
    out = _step(scheduler)
    assert (_chunks(out), _ids(out.swapped_out), out.swapped_blocks) == ([(0, 1, 8)], [1], 2)
    assert (scheduler.free_swap_blocks, scheduler.cache.free_blocks) == (6, 1)
    for _ in range(3):
        assert _step(scheduler).swapped_blocks == 0
    back = _step(scheduler)
    assert (_chunks(back), _ids(back.swapped_in), back.swapped_blocks) == ([(1, 1, 8)], [1], 2)
    assert scheduler.free_swap_blocks == 8
    assert _run(scheduler) == [[(1, 1, context)] for context in (9, 10, 11)]


@pytest.mark.parametrize("policy", PREEMPTING)
def test_where_host_memory_is_full_blocks_are_computed_again(policy: str) -> None:
    """Room for one block in host memory, and the second has two."""
    scheduler = _scheduler(policy, (4, 9), (4, 9), blocks=4, swap_blocks=1)
    batches = [_step(scheduler) for _ in range(10)]
    assert [_ids(batch.preempted) for batch in batches].count([1]) == 1
    assert not any(batch.swapped_out or batch.swapped_blocks for batch in batches)
    assert _chunks(batches[-1]) == [(1, 9, 0)]
    assert scheduler.free_swap_blocks == 1


def test_under_prefill_priority_the_swapped_return_before_new_prompts() -> None:
    """A third comes while the second is in host memory: there is room for its prompt, not for both.

    One block is free from token 9 on; the second needs three and the third one, and the third waits
    until the second is back.
    """
    scheduler = _scheduler("prefill_priority", (4, 9), (4, 9), blocks=4, swap_blocks=8)
    for _ in range(6):
        _step(scheduler)
    _submit(scheduler, (4, 1))
    log = [_chunks(_step(scheduler)) for _ in range(5)]
    assert log == [[(0, 1, 9)], [(0, 1, 10)], [(0, 1, 11)], [(1, 1, 8)], [(2, 4, 0)]]


def test_an_urgent_prompt_and_a_swapped_request_do_not_share_an_iteration() -> None:
    """The second is in host memory when the first is done and a third, more urgent, has come.

    The third's prompt runs alone, though there is room for both; then the second is brought back.
    """
    limits = Limits(
        max_num_seqs=8,
        max_batched_tokens=16,
        max_model_len=99,
        policy=POLICIES["prefill_priority"],
        swap_blocks=8,
    )
    scheduler = Scheduler(limits, KvCache(num_blocks=4, block_size=4), queue_of("priority"))
    _submit(scheduler, (4, 9), (4, 9))
    for _ in range(9):
        _step(scheduler)
    assert _ids(scheduler.waiting) == [1]
    scheduler.submit(Sequence(2, 4, 1, priority=-1))
    assert [_chunks(_step(scheduler)) for _ in range(2)] == [[(2, 4, 0)], [(1, 1, 8)]]


def test_a_cancelled_sequence_leaves_host_memory() -> None:
    """The second is dropped while its two blocks are there."""
    scheduler = _scheduler("chunked_prefill", (4, 9), (4, 9), blocks=4, swap_blocks=8)
    for _ in range(6):
        _step(scheduler)
    assert scheduler.free_swap_blocks == 6
    scheduler.cancel(scheduler.waiting.head())
    assert scheduler.free_swap_blocks == 8
    _run(scheduler)
    assert scheduler.cache.free_blocks == 4


# Any workload under any rules.


@dataclass
class _Witness:
    """Watches a scheduler from outside and keeps its own account of every token and block."""

    scheduler: Scheduler
    order: str
    all: list[Sequence] = field(default_factory=list)
    cached: dict[int, int] = field(default_factory=dict)
    emitted: dict[int, int] = field(default_factory=dict)
    started: list[Sequence] = field(default_factory=list)

    def submit(self, sequence: Sequence) -> None:
        self.all.append(sequence)
        self.cached[sequence.request_id] = self.emitted[sequence.request_id] = 0
        self.scheduler.submit(sequence)

    def iterate(self) -> None:
        scheduler, limits = self.scheduler, self.scheduler.limits
        before, begun = list(scheduler.running), len(self.started)
        batch = scheduler.schedule()
        self.check_blocks()
        assert batch.chunks, "an iteration without work never ends"
        assert len({chunk.sequence.request_id for chunk in batch.chunks}) == len(batch.chunks)
        assert batch.tokens <= limits.max_batched_tokens
        assert len(scheduler.running) <= limits.max_num_seqs
        assert not (batch.preempted and not limits.policy.preempts)
        self.check_kinds(batch, before)
        for victim in batch.preempted:
            assert victim.swapped == (victim in batch.swapped_out)
            if not victim.swapped:
                self.cached[victim.request_id] = 0
        for chunk in batch.chunks:
            self.check_chunk(chunk.sequence, chunk.new_tokens, chunk.context)
        self.check_order(self.started[begun:])
        emitted, _ = scheduler.advance(batch)
        for request in _ids(emitted):
            self.emitted[request] += 1
        self.check_blocks()

    def check_chunk(self, sequence: Sequence, new_tokens: int, context: int) -> None:
        request, policy = sequence.request_id, self.scheduler.limits.policy
        assert new_tokens > 0
        if self.cached[request]:
            assert context == self.cached[request], "a token is skipped or counted twice"
        else:
            assert context <= len(sequence.prefix) * self.scheduler.cache.block_size
            assert context < sequence.known
            assert policy.chunked or context + new_tokens == sequence.known
        self.cached[request] = context + new_tokens
        if sequence not in self.started:
            self.started.append(sequence)

    def check_kinds(self, batch: Batch, before: list[Sequence]) -> None:
        """Prompts and decodes stay apart unless the policy mixes them."""
        goes_on = [*before, *batch.swapped_in]
        kinds = {chunk.sequence in goes_on for chunk in batch.chunks}
        assert self.scheduler.limits.policy.mixed or len(kinds) == 1

    def check_order(self, begun: list[Sequence]) -> None:
        """Nobody waits who comes before somebody that begins."""
        if self.order == "fcfs":
            assert _ids(self.started) == _ids(self.all)[: len(self.started)]
        if self.order == "priority":
            waiting = [(s.priority, s.number) for s in self.scheduler.waiting]
            assert all((s.priority, s.number) < min(waiting, default=(9, 0)) for s in begun)

    def check_blocks(self) -> None:
        scheduler = self.scheduler
        cache, holding = scheduler.cache, [s for s in self.all if not s.swapped]
        shared = {name for s in holding for name in s.prefix[: s.shared]}
        own = sum(s.blocks - s.shared for s in holding)
        assert 0 <= cache.free_blocks == cache.num_blocks - own - len(shared)
        swapped = sum(s.blocks for s in self.all if s.swapped)
        assert 0 <= scheduler.free_swap_blocks == scheduler.limits.swap_blocks - swapped
        for sequence in self.all:
            assert sequence.blocks >= cache.blocks_for(sequence.computed) or sequence.finished


def _extras() -> st.SearchStrategy[tuple[str, Mapping[str, Any]]]:
    """Any policy with recompute, with little or much host memory, or with a prefix cache."""
    pairs: list[tuple[str, Mapping[str, Any]]] = []
    for name, policy in POLICIES.items():
        pairs += [(name, {}), (name, {"prefixes": True})]
        if policy.preempts:
            pairs += [(name, {"swap_blocks": 2}), (name, {"swap_blocks": 100})]
    return st.sampled_from(pairs)


@settings(max_examples=600)
@given(
    requests=st.lists(
        st.tuples(
            st.integers(1, 12),
            st.integers(1, 12),
            st.integers(0, 6),
            st.sampled_from("abc"),
            st.integers(0, 3),
        ),
        min_size=1,
        max_size=14,
    ),
    chosen=_extras(),
    order=st.sampled_from(ORDERS),
    seqs=st.integers(1, 5),
    budget=st.integers(1, 24),
    blocks=st.integers(1, 12),
    block_size=st.integers(1, 4),
)
def test_any_workload_is_served_whole(
    requests: list[tuple[int, int, int, str, int]],
    chosen: tuple[str, Mapping[str, Any]],
    order: str,
    seqs: int,
    budget: int,
    blocks: int,
    block_size: int,
) -> None:
    """(prompt, output, iterations until it comes, tenant, shared blocks), whatever the rules.

    Blocks never leak, here or in host memory; no iteration is empty or exceeds seats or budget; no
    token is skipped or counted twice; everybody who is not refused gets every token.
    """
    policy, extra = chosen
    limits = Limits(
        max_num_seqs=seqs,
        max_batched_tokens=budget,
        max_model_len=1000,
        policy=POLICIES[policy],
        swap_blocks=extra.get("swap_blocks", 0),
    )
    cache = (PrefixCache if extra.get("prefixes") else KvCache)(blocks, block_size)
    queue = queue_of(order, {"a": 1.0, "b": 3.0, "c": 0.5})
    witness = _Witness(Scheduler(limits, cache, queue), order)
    for number, (prompt, output, iterations, tenant, shared) in enumerate(requests):
        for _ in range(iterations):
            if not witness.scheduler.idle:
                witness.iterate()
        if refusal(prompt, output, limits, cache) is None:
            sequence = Sequence(number, prompt, output, tenant, priority="bca".index(tenant))
            if extra.get("prefixes"):
                # Prompts of a tenant are alike for some blocks, then their own.
                names = [(ord(tenant), block) for block in range(shared)]
                names += [(number, block) for block in range(shared, 12)]
                whole = prompt // block_size
                sequence.prefix = tuple(map(hash, names[:whole]))
            witness.submit(sequence)
    for _ in range(10_000):
        if witness.scheduler.idle:
            break
        witness.iterate()
    assert witness.scheduler.idle
    assert cache.free_blocks == blocks
    assert witness.scheduler.free_swap_blocks == limits.swap_blocks
    assert witness.emitted == {s.request_id: s.output_tokens for s in witness.all}
