"""Where a sequence lies: in as many blocks as are counted, and what is read there was written."""

from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from engine.serve.blocks import Blocks
from engine.serve.naming import block_names
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.policies import POLICIES
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Batch, Sequence

BLOCK_SIZE = 2
Prompt = tuple[int, ...]
Slots = dict[tuple[int, int], Prompt]


class Replica:
    """A scheduler and its blocks; a slot holds all tokens up to its own in place of their keys."""

    def __init__(self, policy: str, num_blocks: int, budget: int, *, named: bool) -> None:
        limits = Limits(
            max_num_seqs=4,
            max_batched_tokens=budget,
            max_model_len=99,
            policy=POLICIES[policy],
        )
        kind = PrefixCache if named else KvCache
        self.cache = kind(num_blocks, BLOCK_SIZE)
        self.scheduler = Scheduler(limits, self.cache)
        self.blocks = Blocks(num_blocks, BLOCK_SIZE)
        self.tokens: dict[int, Prompt] = {}
        self.slots: Slots = {}

    def submit(self, number: int, prompt: Prompt, output: int) -> None:
        scheduler = self.scheduler
        if refusal(len(prompt), output, scheduler.limits, self.cache):
            return
        # An answer is the number of its request over and over: no two are alike.
        self.tokens[number] = prompt + (100 + number,) * output
        names = block_names(prompt, BLOCK_SIZE) if isinstance(self.cache, PrefixCache) else ()
        scheduler.submit(Sequence(number, len(prompt), output, prefix=names))

    def step(self) -> None:
        batch = self.scheduler.schedule()
        for sequence in batch.preempted:
            self.blocks.take_back(sequence.request_id)
        self.blocks.forget(batch.evicted)
        self._forget_free()
        self._write(batch)
        _, finished = self.scheduler.advance(batch)
        for chunk in batch.chunks:
            self.blocks.share(chunk.sequence)
        for sequence in finished:
            self.blocks.take_back(sequence.request_id)

    def _forget_free(self) -> None:
        free = set(self.blocks.free)
        self.slots = {slot: held for slot, held in self.slots.items() if slot[0] not in free}

    def _write(self, batch: Batch) -> None:
        """Write each chunk's tokens, and demand that its context is there."""
        for chunk in batch.chunks:
            lies = self.blocks.give(chunk.sequence)
            tokens = self.tokens[chunk.sequence.request_id]
            for place, slot in enumerate(self._slots(lies, chunk.context + chunk.new_tokens)):
                if place >= chunk.context:
                    self.slots[slot] = tokens[: place + 1]
                assert self.slots[slot] == tokens[: place + 1]

    def _slots(self, lies: list[int], count: int) -> Iterator[tuple[int, int]]:
        return ((lies[place // BLOCK_SIZE], place % BLOCK_SIZE) for place in range(count))

    def idle_named(self) -> int:
        """Count the kept blocks that no sequence lies in."""
        used = {block for number in self.tokens for block in self.blocks.of(number)}
        return len(set(self.blocks.named.values()) - used)


prompts = st.lists(st.integers(0, 1), min_size=1, max_size=12).map(tuple)


@given(
    policy=st.sampled_from(sorted(POLICIES)),
    requests=st.lists(st.tuples(prompts, st.integers(1, 6)), min_size=1, max_size=12),
    num_blocks=st.integers(4, 12),
    budget=st.sampled_from([1, 3, 8, 32]),
    named=st.booleans(),
)
def test_any_workload_reads_what_it_wrote(
    policy: str,
    requests: list[tuple[Prompt, int]],
    num_blocks: int,
    budget: int,
    named: bool,
) -> None:
    """Shared, preempted or evicted: every context is where it is looked for, and counts agree."""
    replica = Replica(policy, num_blocks, budget, named=named)
    for number, (prompt, output) in enumerate(requests):
        replica.submit(number, prompt, output)
    while not replica.scheduler.idle:
        replica.step()
        free = len(replica.blocks.free) + replica.idle_named()
        assert free == replica.cache.free_blocks
    assert replica.cache.free_blocks == num_blocks


def test_two_copies_become_one() -> None:
    """Two prompts of three blocks, computed side by side: the second's two full blocks go free."""
    replica = Replica("chunked_prefill", 8, 32, named=True)
    for number in (0, 1):
        replica.submit(number, (1, 1, 0, 0, 1), 2)
    replica.step()
    first, second = (replica.blocks.of(number) for number in (0, 1))
    assert first[:2] == second[:2]
    assert first[2] != second[2]
    assert len(replica.blocks.free) == replica.cache.free_blocks == 4


@pytest.mark.parametrize(("tokens", "full"), [(0, 0), (3, 0), (4, 1), (7, 1), (8, 2)])
def test_only_full_blocks_have_names(tokens: int, full: int) -> None:
    """A block that will still be written to cannot be shared."""
    assert len(block_names(range(tokens), block_size=4)) == full


def test_a_name_tells_all_that_came_before() -> None:
    """Equal blocks after different ones have different names; equal beginnings equal ones."""
    names = block_names([1, 2, 1, 2, 1, 2], block_size=2)
    assert len(set(names)) == 3
    assert block_names([1, 2, 1, 2, 9, 9], block_size=2)[:2] == names[:2]
