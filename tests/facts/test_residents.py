"""Whole models on one slice: what they add up to, how KV room is divided, and what is too much."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.facts.residents import (
    Resident,
    Residents,
    fewer_blocks,
    first_that_fits,
    plan_residents,
)


def resident(name: str, **sizes: int) -> Resident:
    usual = {"non_expert_bytes": 100, "expert_bytes": 400, "activation_bytes": 30}
    return Resident(name=name, **usual | {"block_bytes": 10, "block_size": 16} | sizes)


def two(**changes: object) -> Residents:
    """Return models of 500 and 700 B, blocks of 10 and 20 B, on 2000 B, 200 of them set aside."""
    models = (resident("a"), resident("b", expert_bytes=600, block_bytes=20, activation_bytes=50))
    usual: dict[str, object] = {"slice_bytes": 2000, "reserved_share": 0.1}
    return Residents(models=models, **usual | changes)  # type: ignore[arg-type]


def test_side_by_side_all_weights_are_there() -> None:
    """1200 B of weights, the larger of the activations; 550 B are left, 275 for each: 27 and 13."""
    demand = two().filled()
    assert demand.kv_blocks == (27, 13)
    plan = plan_residents(demand)
    assert plan.parts == {
        "non-expert sets": 200,
        "shared experts": 0,
        "private experts": 1000,
        "KV cache": 270 + 260,
        "activations": 50,
        "runtime": 200,
    }
    assert (plan.free_bytes, plan.host_expert_bytes, plan.host_non_expert_bytes) == (20, 0, 0)


def test_swapped_only_the_largest_is_counted() -> None:
    """700 B are there and 500 wait; every model keeps its blocks: 525 B each are 52 and 26."""
    demand = two(swapped=True).filled()
    plan = plan_residents(demand)
    assert demand.kv_blocks == (52, 26)
    assert (plan.non_expert_bytes, plan.private_expert_bytes) == (100, 600)
    assert (plan.host_non_expert_bytes, plan.host_expert_bytes) == (100, 400)


def test_models_that_run_at_once_have_all_their_activations() -> None:
    assert plan_residents(two(at_once=True)).activation_bytes == 80


def test_fewer_blocks_by_hand() -> None:
    """30 blocks of each take 900 B where 550 are: 12 fewer of each are 360 B fewer."""
    fewer = fewer_blocks(two().with_blocks((30, 30)))
    assert fewer is not None
    assert fewer.kv_blocks == (18, 18)
    assert fewer_blocks(two(slice_bytes=1400).with_blocks((2, 2))) is None


def test_the_first_that_fits() -> None:
    small, large = two(slice_bytes=1000), two()
    assert first_that_fits({"small": small, "large": large, "also": large}) == "large"
    assert first_that_fits({"small": small}) is None


@given(
    st.lists(
        st.tuples(st.integers(0, 10**9), st.integers(0, 10**9), st.integers(1, 10**6)),
        min_size=1,
        max_size=4,
    ),
    st.integers(1, 10**10),
    st.booleans(),
)
def test_filled_is_full_and_fits_where_the_weights_do(
    sizes: list[tuple[int, int, int]], slice_bytes: int, swapped: bool
) -> None:
    """And nobody's part has room for another block."""
    models = tuple(
        resident(str(n), non_expert_bytes=dense, expert_bytes=experts, block_bytes=block)
        for n, (dense, experts, block) in enumerate(sizes)
    )
    bare = Residents(models=models, slice_bytes=slice_bytes, reserved_share=0.1, swapped=swapped)
    plan = plan_residents(bare.filled())
    weights = [model.weight_bytes for model in models]
    assert plan.weight_bytes == (max(weights) if swapped else sum(weights))
    assert plan.weight_bytes + plan.host_expert_bytes + plan.host_non_expert_bytes == sum(weights)
    if plan_residents(bare).fits:
        assert plan.fits
        assert plan.free_bytes < sum(model.block_bytes + 1 for model in models)
    else:
        assert plan.kv_bytes == 0


@pytest.mark.parametrize("asked", [1, 5, 100])
def test_every_model_gets_what_is_asked(asked: int) -> None:
    """Whether it fits or not."""
    demand = two().with_blocks((asked, asked))
    assert plan_residents(demand).kv_bytes == 30 * asked
