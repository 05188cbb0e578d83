"""Block accounting: a pool that never lends what it does not have."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import EngineError
from moesim.serving.kv_cache import KvCache


@pytest.mark.parametrize(("tokens", "blocks"), [(0, 0), (1, 1), (16, 1), (17, 2), (32, 2)])
def test_a_started_block_is_a_whole_block(tokens: int, blocks: int) -> None:
    """Of 16 tokens each."""
    assert KvCache(num_blocks=4, block_size=16).blocks_for(tokens) == blocks


@pytest.mark.parametrize(("num_blocks", "block_size"), [(0, 16), (4, 0), (-1, 16)])
def test_an_empty_cache_is_refused(num_blocks: int, block_size: int) -> None:
    """There is nothing a server could do with it."""
    with pytest.raises(EngineError, match="above zero"):
        KvCache(num_blocks=num_blocks, block_size=block_size)


@given(
    num_blocks=st.integers(1, 20),
    wishes=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 20)), max_size=40),
)
def test_free_and_held_blocks_are_all_blocks(
    num_blocks: int, wishes: list[tuple[int, int]]
) -> None:
    """Four sequences grow and shrink at will; a refused wish changes nothing."""
    cache = KvCache(num_blocks=num_blocks, block_size=4)
    held = [0, 0, 0, 0]
    for who, wanted in wishes:
        fits = sum(held) - held[who] + wanted <= num_blocks
        assert cache.resize(held[who], wanted) == fits
        if fits:
            held[who] = wanted
        assert cache.free_blocks == num_blocks - sum(held)
