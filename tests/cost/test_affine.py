"""The affine cost model: worked by hand in milliseconds, and served like any other.

5 ms fixed, 2 ms more with prompt tokens in the batch, 1 ms a token, 0.1 ms a cached token that
decodes attend to, 0.01 ms a pair in prefill attention.
"""

from dataclasses import asdict, replace
from math import inf, nan

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.affine import BOUNDS, FITTED, PARAMETERS, AffineCost, AffineParameters, pairs
from moesim.cost.iteration import Cost
from moesim.errors import ProfileError
from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Limits
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.simulation.replica import Replica
from moesim.simulation.station import Station, serve_alone
from moesim.simulation.stepwise import step_through

BY_HAND = AffineParameters(fixed_s=5e-3, mixed_s=2e-3, token_s=1e-3, context_s=1e-4, pair_s=1e-5)
LIMITS = Limits(max_num_seqs=8, max_batched_tokens=32, max_model_len=64)

counts = st.integers(1, 8)


def _cost(parameters: AffineParameters = BY_HAND) -> AffineCost:
    return AffineCost(parameters, max_batched_tokens=32, max_num_seqs=8)


def _chunk(new_tokens: int, context: int, *, more: int = 0) -> Chunk:
    return Chunk(Sequence(0, context + new_tokens + more, 9), new_tokens, context)


def _ms(*chunks: Chunk) -> float:
    cost: Cost = _cost()
    return 1000 * cost.iteration_s(Batch(list(chunks)))


def test_decodes_alone() -> None:
    """Two sequences at contexts 9 and 19: 5 + 2 x 1 + 0.1 x (10 + 20) = 10."""
    assert _ms(_chunk(1, 9), _chunk(1, 19)) == pytest.approx(10)


def test_a_prompt_alone() -> None:
    """Four tokens: 5 + 2 + 4 x 1 + 0.01 x 4 x (0 + 2) = 11.08."""
    assert _ms(_chunk(4, 0)) == pytest.approx(11.08)


def test_a_later_chunk_attends_to_what_is_cached() -> None:
    """Four tokens after six: 5 + 2 + 4 + 0.01 x 4 x (6 + 2) = 11.32."""
    assert _ms(_chunk(4, 6)) == pytest.approx(11.32)


def test_a_mixed_batch_is_one_pass() -> None:
    """A decode at context 9 beside that prompt: 5 + 2 + 5 x 1 + 0.1 x 10 + 0.08 = 13.08."""
    assert _ms(_chunk(1, 9), _chunk(4, 0)) == pytest.approx(13.08)


@given(new=counts, context=counts, decodes=st.integers(0, 3))
def test_more_takes_longer(new: int, context: int, decodes: int) -> None:
    """A token, a cached token or a decode more never shortens an iteration."""
    others = [_chunk(1, 5)] * decodes
    base = _ms(_chunk(new, context), *others)
    assert _ms(_chunk(new + 1, context), *others) > base
    assert _ms(_chunk(new, context + 1), *others) > base
    assert _ms(_chunk(new, context), *others, _chunk(1, 5)) > base


@given(st.sampled_from(PARAMETERS))
def test_every_parameter_counts(name: str) -> None:
    """Twice its value makes a mixed batch longer."""
    twice = replace(BY_HAND, **{name: 2 * asdict(BY_HAND)[name]})
    batch = Batch([_chunk(1, 9), _chunk(4, 0)])
    assert _cost(twice).iteration_s(batch) > _cost().iteration_s(batch)


@given(context=counts, steps=st.lists(counts, min_size=1, max_size=5))
def test_chunks_have_the_pairs_of_the_whole(context: int, steps: list[int]) -> None:
    """However a prompt is cut."""
    parts, done = 0.0, context
    for step in steps:
        parts += pairs(step, done)
        done += step
    assert parts == pytest.approx(pairs(done - context, context))


@pytest.mark.parametrize("value", [-1e-9, nan, inf])
@pytest.mark.parametrize("name", PARAMETERS)
def test_durations_are_numbers(name: str, value: float) -> None:
    """A negative or missing one is refused by name."""
    with pytest.raises(ProfileError, match=name):
        replace(BY_HAND, **{name: value})


def test_an_iteration_takes_time() -> None:
    """Else a simulation would make no headway."""
    with pytest.raises(ProfileError, match="fixed_s"):
        replace(BY_HAND, fixed_s=0.0)


def test_bounds_are_told_for_every_parameter() -> None:
    """In the parameters' order."""
    assert tuple(BOUNDS) == PARAMETERS
    assert all(0 <= least < most for least, most in BOUNDS.values())


def test_it_says_that_it_is_fitted() -> None:
    """Neither measured nor interpolated."""
    assert set(_cost().basis().values()) == {FITTED}


def _replica(blocks: int) -> Replica:
    return Replica(name="r", limits=LIMITS, cache=KvCache(blocks, 4), cost=_cost())


@given(
    st.lists(
        # An irrational step keeps arrivals off the ends of iterations, where rounding would decide.
        st.tuples(st.integers(0, 60).map(lambda n: n * 0.00271828), counts, counts),
        min_size=1,
        max_size=12,
    ),
    st.sampled_from([6, 400]),
)
def test_jumping_equals_stepping(rows: list[tuple[float, int, int]], blocks: int) -> None:
    """With plenty of KV blocks and with too few, the same records to 1e-9 s."""
    rows = sorted(rows)
    requests = pd.DataFrame(rows, columns=["arrival_s", "prompt_tokens", "output_tokens"])
    requests = requests.assign(request_id=range(len(rows)), tenant="", model="")
    jumped, stepped = (
        way(Station(replicas=(_replica(blocks),), models=("",)), [requests])[0]
        for way in (serve_alone, step_through)
    )
    pd.testing.assert_frame_equal(jumped.records, stepped.records, rtol=0, atol=1e-9)
    assert jumped.usage.iterations == stepped.usage.iterations
