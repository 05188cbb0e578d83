"""The scheduler: worked iterations, preemption, refusals, and what holds for any workload."""

from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Batch, Sequence


def _scheduler(
    *requests: tuple[int, int],
    seqs: int = 8,
    budget: int = 64,
    blocks: int = 64,
    block_size: int = 4,
) -> Scheduler:
    """Build a scheduler with `(prompt, output)` requests waiting, numbered from 0."""
    limits = Limits(max_num_seqs=seqs, max_batched_tokens=budget, max_model_len=1000)
    scheduler = Scheduler(limits, KvCache(num_blocks=blocks, block_size=block_size))
    for number, (prompt, output) in enumerate(requests):
        scheduler.submit(Sequence(number, prompt, output))
    return scheduler


def _chunks(batch: Batch) -> list[tuple[int, int, int]]:
    """Show a batch as (request, new tokens, context)."""
    return [(chunk.sequence.request_id, chunk.new_tokens, chunk.context) for chunk in batch.chunks]


def _ids(sequences: Iterable[Sequence]) -> list[int]:
    return [sequence.request_id for sequence in sequences]


def _run(scheduler: Scheduler, most: int = 100) -> list[list[tuple[int, int, int]]]:
    """Run until idle; return the chunks of every iteration."""
    log = []
    while not scheduler.idle:
        batch = scheduler.schedule()
        log.append(_chunks(batch))
        scheduler.advance(batch)
        assert len(log) <= most
    return log


def test_a_prompt_then_token_by_token() -> None:
    """Prompt 3, output 3: the prefill emits the first token, two decodes the others."""
    assert _run(_scheduler((3, 3))) == [[(0, 3, 0)], [(0, 1, 3)], [(0, 1, 4)]]


def test_a_long_prompt_is_prefilled_in_chunks() -> None:
    """Ten tokens under a budget of 4 are 4 + 4 + 2; only the last chunk emits a token."""
    scheduler = _scheduler((10, 1), budget=4)
    emitted = []
    for expected in [[(0, 4, 0)], [(0, 4, 4)], [(0, 2, 8)]]:
        batch = scheduler.schedule()
        assert _chunks(batch) == expected
        emitted.append(_ids(scheduler.advance(batch)[0]))
    assert emitted == [[], [], [0]]
    assert scheduler.idle


def test_two_prompts_share_a_budget() -> None:
    """Budget 8: five tokens of the first leave three for the second, which ends beside a decode."""
    assert _run(_scheduler((5, 2), (6, 1), budget=8)) == [
        [(0, 5, 0), (1, 3, 0)],
        [(0, 1, 5), (1, 3, 3)],
    ]


def test_decodes_go_before_new_prompts() -> None:
    """Two decodes take two of four tokens; a waiting prompt gets the other two."""
    scheduler = _scheduler((1, 9), (1, 9), budget=4)
    scheduler.advance(scheduler.schedule())
    scheduler.submit(Sequence(2, 7, 1))
    assert _chunks(scheduler.schedule()) == [(0, 1, 1), (1, 1, 1), (2, 2, 0)]


def test_no_more_run_than_max_num_seqs() -> None:
    """One at a time: the second waits until the first has its two tokens."""
    assert _run(_scheduler((3, 2), (3, 1), seqs=1)) == [[(0, 3, 0)], [(0, 1, 3)], [(1, 3, 0)]]


def test_nobody_overtakes_the_head_of_the_queue() -> None:
    """Four blocks: the first holds 2, the second needs 3 and waits, so the third waits behind it.

    When the first has emitted its second token, its blocks are free and both enter.
    """
    scheduler = _scheduler((8, 1), (12, 1), (4, 1), blocks=4)
    assert _run(scheduler) == [[(0, 8, 0)], [(1, 12, 0), (2, 4, 0)]]


def test_blocks_are_held_from_the_first_chunk_to_the_last_token() -> None:
    """Blocks of 4: five prompt tokens take 2; the last output token is never cached."""
    scheduler = _scheduler((5, 4))
    used = []
    while not scheduler.idle:
        batch = scheduler.schedule()
        used.append(64 - scheduler.cache.free_blocks)
        scheduler.advance(batch)
    assert used == [2, 2, 2, 2]  # 5, 6, 7 and 8 tokens
    assert scheduler.cache.free_blocks == 64


def test_the_youngest_is_preempted_and_computed_again() -> None:
    """Four blocks of 2; two requests of prompt 3, output 3, each 2 blocks for tokens 1 to 4.

    At token 5 the first needs a third block. The second, youngest, gives up its blocks and its two
    computed generations; when the first has finished it is prefilled again, 3 + 2 known tokens in
    one chunk, and emits its third token.
    """
    scheduler = _scheduler((3, 3), (3, 3), blocks=4, block_size=2)
    for _ in range(2):
        scheduler.advance(scheduler.schedule())
    batch = scheduler.schedule()
    assert _chunks(batch) == [(0, 1, 4)]
    assert _ids(batch.preempted) == [1]
    victim = batch.preempted[0]
    assert (victim.computed, victim.generated, victim.blocks) == (0, 2, 0)
    assert victim.preemptions == 1
    assert scheduler.cache.free_blocks == 1
    assert _ids(scheduler.advance(batch)[1]) == [0]
    assert _run(scheduler) == [[(1, 5, 0)]]
    assert victim.generated == 3


def test_the_youngest_gives_way_to_its_elders_itself() -> None:
    """Four blocks of 2: at its fifth token the second finds none free, and it is the youngest.

    It leaves, and nobody is admitted in the same iteration; the first takes the block it needs
    next, and the second has room again only when the first is done.
    """
    scheduler = _scheduler((3, 4), (4, 4), blocks=4, block_size=2)
    scheduler.advance(scheduler.schedule())
    batch = scheduler.schedule()
    assert _chunks(batch) == [(0, 1, 3)]
    assert _ids(batch.preempted) == [1]
    scheduler.advance(batch)
    assert _run(scheduler) == [
        [(0, 1, 4)],
        [(0, 1, 5)],
        [(1, 5, 0)],
        [(1, 1, 5)],
        [(1, 1, 6)],
    ]


def test_nobody_enters_in_the_iteration_that_preempts() -> None:
    """Budget 3, four blocks of 2: the second, midway through its prompt, finds no block and leaves.

    Two tokens of budget and the block it has freed would let it start anew at once; it waits.
    """
    scheduler = _scheduler((3, 4), (4, 4), budget=3, blocks=4, block_size=2)
    for expected in [[(0, 3, 0)], [(0, 1, 3), (1, 2, 0)], [(0, 1, 4)]]:
        batch = scheduler.schedule()
        assert _chunks(batch) == expected
        scheduler.advance(batch)
    assert _ids(batch.preempted) == [1]
    assert _chunks(scheduler.schedule()) == [(0, 1, 5), (1, 2, 0)]


def test_the_preempted_return_before_those_who_came_later() -> None:
    """Blocks of 1, six of them: three run, the youngest goes first and both return in order."""
    scheduler = _scheduler((2, 5), (2, 3), (2, 3), (2, 1), blocks=6, block_size=1)
    scheduler.advance(scheduler.schedule())
    batch = scheduler.schedule()
    assert _ids(batch.preempted) == [2]
    assert _ids(scheduler.waiting) == [2, 3]
    scheduler.advance(batch)
    batch = scheduler.schedule()
    assert _ids(batch.preempted) == [1]
    assert _ids(scheduler.waiting) == [1, 2, 3]


def test_cancelling_frees_blocks_of_the_running_and_places_of_the_waiting() -> None:
    """One runs on two blocks, one waits; both are cancelled."""
    scheduler = _scheduler((8, 5), (8, 5), seqs=1)
    scheduler.advance(scheduler.schedule())
    running, waiting = scheduler.running[0], scheduler.waiting.head()
    scheduler.cancel(waiting)
    scheduler.cancel(running)
    assert scheduler.idle
    assert scheduler.cache.free_blocks == 64


@pytest.mark.parametrize(
    ("prompt", "output", "reason"),
    [
        (0, 5, "empty prompt"),
        (5, 0, "no output tokens asked for"),
        (30, 3, "prompt 30 + output 3 tokens exceed the model's maximum of 32"),
        (20, 6, "needs 7 KV blocks, the whole cache has 6"),
        (30, 2, "needs 8 KV blocks, the whole cache has 6"),
        (20, 5, None),
        (1, 1, None),
    ],
)
def test_what_can_never_be_served_is_refused_with_its_reason(
    prompt: int, output: int, reason: str | None
) -> None:
    """At most 32 tokens, six blocks of 4; the last output token takes no room in the cache."""
    limits = Limits(max_num_seqs=1, max_batched_tokens=8, max_model_len=32)
    assert refusal(prompt, output, limits, KvCache(num_blocks=6, block_size=4)) == reason


class _Witness:
    """Watches a scheduler from outside and keeps its own account of every token."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.all: list[Sequence] = []
        self.cached: dict[int, int] = {}
        self.emitted: dict[int, int] = {}
        self.batched = self.lost = 0
        self.started: list[int] = []

    def submit(self, sequence: Sequence) -> None:
        self.all.append(sequence)
        self.cached[sequence.request_id] = self.emitted[sequence.request_id] = 0
        self.scheduler.submit(sequence)

    def iterate(self) -> None:
        batch = self.scheduler.schedule()
        self.check_blocks()
        assert batch.chunks, "an iteration without work never ends"
        assert len(set(_ids(chunk.sequence for chunk in batch.chunks))) == len(batch.chunks)
        assert batch.tokens <= self.scheduler.limits.max_batched_tokens
        assert len(self.scheduler.running) <= self.scheduler.limits.max_num_seqs
        for victim in batch.preempted:
            self.lost += self.cached[victim.request_id]
            self.cached[victim.request_id] = 0
        for request, new_tokens, context in _chunks(batch):
            assert new_tokens > 0
            assert context == self.cached[request], "a token is skipped or counted twice"
            self.cached[request] += new_tokens
            self.batched += new_tokens
            if request not in self.started:
                self.started.append(request)
        emitted, _ = self.scheduler.advance(batch)
        for request in _ids(emitted):
            self.emitted[request] += 1
        self.check_blocks()

    def check_blocks(self) -> None:
        cache = self.scheduler.cache
        assert 0 <= cache.free_blocks <= cache.num_blocks
        assert cache.free_blocks + sum(sequence.blocks for sequence in self.all) == cache.num_blocks
        for sequence in self.all:
            assert sequence.blocks >= cache.blocks_for(sequence.computed) or sequence.finished


@settings(max_examples=400)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 12), st.integers(1, 12), st.integers(0, 6)),
        min_size=1,
        max_size=12,
    ),
    seqs=st.integers(1, 5),
    budget=st.integers(1, 12),
    blocks=st.integers(1, 10),
    block_size=st.integers(1, 4),
)
def test_any_workload_is_served_whole(
    requests: list[tuple[int, int, int]], seqs: int, budget: int, blocks: int, block_size: int
) -> None:
    """(prompt, output, iterations until it comes) on a small cache, whatever the limits.

    Blocks never leak, go negative or fall short of what is cached; no iteration exceeds the budget
    or is empty; every known token passes through the model once, and once more for each preemption
    that lost it; everybody who is not refused gets every token, and starts in order of arrival.
    """
    scheduler = _scheduler(seqs=seqs, budget=budget, blocks=blocks, block_size=block_size)
    witness = _Witness(scheduler)
    for number, (prompt, output, iterations) in enumerate(requests):
        for _ in range(iterations):
            if not scheduler.idle:
                witness.iterate()
        if refusal(prompt, output, scheduler.limits, scheduler.cache) is None:
            witness.submit(Sequence(number, prompt, output))
    for _ in range(10_000):
        if scheduler.idle:
            break
        witness.iterate()
    assert scheduler.idle
    assert scheduler.cache.free_blocks == blocks
    assert witness.emitted == {s.request_id: s.output_tokens for s in witness.all}
    known = sum(s.prompt_tokens + s.output_tokens - 1 for s in witness.all)
    assert witness.batched == known + witness.lost
    assert witness.started == _ids(witness.all)
