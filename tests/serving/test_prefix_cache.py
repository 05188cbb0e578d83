"""Prompts that begin alike share blocks: hits, eviction, copies, and an account of every block.

Blocks have 4 tokens and names 1, 2, ... for their content.
"""

from collections import Counter
from dataclasses import dataclass

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from moesim.serving.kv_cache import PrefixCache
from moesim.serving.scheduling import Limits, Scheduler
from moesim.serving.sequences import Sequence


def _kept(*prompts: tuple[int, ...], blocks: int = 8) -> PrefixCache:
    """Return a cache through which prompts of full blocks have passed, one after the other."""
    cache = PrefixCache(num_blocks=blocks, block_size=4)
    for prompt in prompts:
        shared = cache.match(prompt)
        assert cache.hold(prompt[:shared], len(prompt))
        cache.commit(prompt, shared)
        cache.release(prompt, len(prompt))
    return cache


# The cache by itself.


def test_a_hit_is_a_common_beginning() -> None:
    """Kept are 1 2 3; a prompt that goes its own way after 1 2 hits two, a strange one none."""
    cache = _kept((1, 2, 3))
    prompts = [(1, 2, 3, 4), (1, 2, 9), (8, 9), ()]
    assert [cache.match(prompt) for prompt in prompts] == [3, 2, 0, 0]
    assert (cache.free_blocks, cache.unused((1, 2, 3))) == (8, 3)


def test_sharing_takes_a_kept_block_once() -> None:
    """Two sequences share 1 and 2 and have a block each of their own: four of eight in use."""
    cache = _kept((1, 2))
    assert cache.hold((1, 2), 3)
    assert cache.free_blocks == 5
    assert cache.hold((1, 2), 3)
    assert cache.free_blocks == 4
    cache.release((1, 2), 3)
    assert (cache.free_blocks, cache.unused((1, 2))) == (5, 0)
    cache.release((1, 2), 3)
    assert (cache.free_blocks, cache.unused((1, 2))) == (8, 2)


def test_kept_blocks_count_as_free_but_not_twice() -> None:
    """Of four blocks 1 and 2 are kept: a sequence that shares both may have two more, not three."""
    cache = _kept((1, 2), blocks=4)
    assert not cache.hold((1, 2), 5)
    assert (cache.free_blocks, cache.match((1, 2))) == (4, 2)
    assert cache.hold((1, 2), 4)
    assert cache.free_blocks == 0


def test_the_least_recently_used_go_first_and_of_a_prompt_the_tail() -> None:
    """Kept in order: 1 2 3, then 4 5, then 1 2 again. Three blocks are empty.

    Unused from the oldest: 3, 5, 4, 2, 1. Taking four empties 3, taking seven 5, 4 and 2 too.
    """
    cache = _kept((1, 2, 3), (4, 5), (1, 2))
    assert cache.resize(0, 4)
    assert cache.evicted == [3]
    assert cache.resize(4, 7)
    assert cache.evicted == [3, 5, 4, 2]
    assert [cache.match(prompt) for prompt in [(1, 2, 3), (4, 5)]] == [1, 0]


def test_blocks_without_a_name_are_reused_before_named_ones() -> None:
    """Two of four are kept: two more cost nothing, a third costs the tail."""
    cache = _kept((1, 2), blocks=4)
    assert cache.resize(0, 2)
    assert cache.evicted == []
    assert cache.resize(2, 3)
    assert cache.evicted == [2]


def test_blocks_in_use_are_never_evicted() -> None:
    """Four blocks, 1 and 2 in use: there are two to have, not three."""
    cache = _kept((1, 2), blocks=4)
    cache.hold((1, 2), 2)
    assert not cache.resize(0, 3)
    assert cache.resize(0, 2)
    assert (cache.match((1, 2)), cache.evicted) == (2, [])


def test_of_two_copies_computed_side_by_side_one_is_dropped() -> None:
    """Both sequences computed 1 2 in blocks of their own, four of eight; then they share two."""
    cache = PrefixCache(num_blocks=8, block_size=4)
    for _ in range(2):
        assert cache.hold((), 2)
    assert cache.free_blocks == 4
    assert cache.commit((1, 2), 0) == 2
    assert cache.free_blocks == 4
    assert cache.commit((1, 2), 0) == 2
    assert cache.free_blocks == 6
    cache.release((1, 2), 2)
    cache.release((1, 2), 2)
    assert cache.free_blocks == 8


def test_a_copy_of_a_block_that_nobody_uses_takes_its_place() -> None:
    """A second computed 1 beside the first, which has left by then: one block in use either way."""
    cache = PrefixCache(num_blocks=8, block_size=4)
    for _ in range(2):
        assert cache.hold((), 1)
    cache.commit((1,), 0)
    cache.release((1,), 1)
    assert (cache.free_blocks, cache.unused((1,))) == (7, 1)
    cache.commit((1,), 0)
    assert (cache.free_blocks, cache.unused((1,))) == (7, 0)


# The cache at work.


def _scheduler(blocks: int = 16, budget: int = 64) -> Scheduler:
    limits = Limits(max_num_seqs=8, max_batched_tokens=budget, max_model_len=1000)
    return Scheduler(limits, PrefixCache(num_blocks=blocks, block_size=4))


def _chunks(scheduler: Scheduler) -> list[tuple[int, int, int]]:
    """Run an iteration; return its chunks as (request, new tokens, tokens cached before)."""
    batch = scheduler.schedule()
    scheduler.advance(batch)
    return [(chunk.sequence.request_id, chunk.new_tokens, chunk.context) for chunk in batch.chunks]


def test_the_second_of_equal_prompts_computes_what_is_left() -> None:
    """Prompts of 10 tokens whose two full blocks are alike: 10 are computed, then 2 after 8."""
    scheduler = _scheduler()
    scheduler.submit(Sequence(0, 10, 1, prefix=(1, 2)))
    assert _chunks(scheduler) == [(0, 10, 0)]
    second = Sequence(1, 10, 1, prefix=(1, 2))
    scheduler.submit(second)
    assert _chunks(scheduler) == [(1, 2, 8)]
    assert second.cached_tokens == 8
    assert scheduler.cache.free_blocks == 16


@pytest.mark.parametrize(("prompt", "cached"), [(8, 4), (9, 8)])
def test_a_token_is_always_left_to_compute(prompt: int, cached: int) -> None:
    """Of a prompt of two full blocks, both kept, one is computed again, for its logits."""
    scheduler = _scheduler()
    scheduler.submit(Sequence(0, 8, 1, prefix=(1, 2)))
    _chunks(scheduler)
    scheduler.submit(Sequence(1, prompt, 1, prefix=(1, 2)))
    assert _chunks(scheduler) == [(1, prompt - cached, cached)]
    assert scheduler.cache.free_blocks == 16


def test_prompts_of_one_iteration_do_not_see_each_other() -> None:
    """Two equal prompts come together: both compute all 9, then share two blocks, and use 4 of 6.

    Their third blocks, of a prompt's last token and the answer, are their own.
    """
    scheduler = _scheduler()
    for number in range(2):
        scheduler.submit(Sequence(number, 9, 2, prefix=(1, 2)))
    assert _chunks(scheduler) == [(0, 9, 0), (1, 9, 0)]
    assert scheduler.cache.free_blocks == 12
    assert _chunks(scheduler) == [(0, 1, 9), (1, 1, 9)]
    assert scheduler.cache.free_blocks == 16


def test_a_chunks_full_blocks_are_shared_at_once() -> None:
    """Budget 6: a 12-token prompt has one full block after a chunk; the next prompt hits it.

    The first's second chunk takes the whole budget too, so that the second enters third, when both
    of its full blocks are there.
    """
    scheduler = _scheduler(budget=6)
    scheduler.submit(Sequence(0, 12, 1, prefix=(1, 2, 3)))
    scheduler.submit(Sequence(1, 9, 1, prefix=(1, 2)))
    assert [_chunks(scheduler) for _ in range(3)] == [[(0, 6, 0)], [(0, 6, 6)], [(1, 1, 8)]]


def test_a_preempted_prompt_finds_its_own_blocks() -> None:
    """Five blocks; requests of 5 + 8 tokens, different prompts, hold two blocks each.

    At token 9 the first takes the fifth block and the second finds none, and leaves. Its prompt's
    full block stays, so that it computes 9 - 4 known tokens when it returns, not 9. That is no hit:
    `cached_tokens` counts what others had computed.
    """
    scheduler = _scheduler(blocks=5)
    for number in range(2):
        scheduler.submit(Sequence(number, 5, 8, prefix=(number + 1,)))
    second = list(scheduler.waiting)[1]
    log = []
    while not scheduler.idle:
        log.append(_chunks(scheduler))
    assert log[4] == [(0, 1, 8)]
    assert next(chunk for batch in log[5:] for chunk in batch if chunk[0] == 1) == (1, 5, 4)
    assert (second.preemptions, second.cached_tokens) == (1, 0)
    assert scheduler.cache.free_blocks == 5


# Whatever is done to it.


@dataclass
class _Held:
    """A sequence's blocks as it has been told: `shared` of `blocks` go by the prompt's names."""

    prompt: tuple[int, ...]
    blocks: int
    shared: int


class Accounts(RuleBasedStateMachine):
    """Sequences enter, compute, grow and leave; a second account is kept beside the cache's."""

    def __init__(self) -> None:
        super().__init__()
        self.cache = PrefixCache(num_blocks=9, block_size=4)
        self.held: list[_Held] = []

    @rule(tenant=st.integers(1, 3), length=st.integers(0, 4), more=st.integers(0, 4))
    def enter(self, tenant: int, length: int, more: int) -> None:
        """Prompts of a tenant are beginnings of one another."""
        prompt = tuple(10 * tenant + place for place in range(length))
        shared = self.cache.match(prompt)
        wanted = length + more
        fits = wanted - shared + self.cache.unused(prompt[:shared]) <= self.cache.free_blocks
        assert self.cache.hold(prompt[:shared], wanted) == fits
        if fits:
            self.held.append(_Held(prompt, wanted, shared))

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def compute(self, data: st.DataObject) -> None:
        """Offer some more of a prompt's blocks."""
        held = data.draw(st.sampled_from(self.held))
        upto = data.draw(st.integers(held.shared, len(held.prompt)))
        held.shared = self.cache.commit(held.prompt[:upto], held.shared)
        assert held.shared == upto

    @precondition(lambda self: self.held)
    @rule(data=st.data(), more=st.integers(0, 4))
    def grow(self, data: st.DataObject, more: int) -> None:
        """Take more blocks, if there are as many."""
        held = data.draw(st.sampled_from(self.held))
        fits = more <= self.cache.free_blocks
        assert self.cache.resize(held.blocks, held.blocks + more) == fits
        held.blocks += more if fits else 0

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def leave(self, data: st.DataObject) -> None:
        """Give everything back."""
        held = data.draw(st.sampled_from(self.held))
        self.held.remove(held)
        self.cache.release(held.prompt[: held.shared], held.blocks)

    @invariant()
    def blocks_add_up(self) -> None:
        """Free, private and shared blocks are all blocks."""
        users = Counter(name for held in self.held for name in held.prompt[: held.shared])
        private = sum(held.blocks - held.shared for held in self.held)
        assert self.cache.free_blocks >= 0
        assert self.cache.free_blocks + private + len(users) == self.cache.num_blocks

    @invariant()
    def names_are_used_as_often_as_they_are_held(self) -> None:
        """Kept blocks without users are free; whoever holds a name finds its block."""
        users = Counter(name for held in self.held for name in held.prompt[: held.shared])
        kept = [name for tenant in (10, 20, 30) for name in range(tenant, tenant + 4)]
        there = {name for name in kept if self.cache.match((name,))}
        idle = {name for name in kept if self.cache.unused((name,))}
        assert set(users) == there - idle
        assert len(idle) <= self.cache.free_blocks
        assert all(self.cache._users[name] == users[name] for name in there)

    def teardown(self) -> None:
        """When everybody has left, everything is free."""
        for held in self.held:
            self.cache.release(held.prompt[: held.shared], held.blocks)
        assert self.cache.free_blocks == self.cache.num_blocks


TestAccounts = Accounts.TestCase
TestAccounts.settings = settings(max_examples=200, stateful_step_count=30, deadline=None)
