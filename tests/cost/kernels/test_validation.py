"""Cross-validation: what is left out, and that it is not seen."""

from itertools import chain

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.expected import Rates
from moesim.cost.kernels.tables import Decode, Gemm, Moe, Prefill
from moesim.cost.kernels.validation import (
    ALIKE,
    decode_heads,
    folds,
    gemm_shapes,
    gemm_sizes,
    moe_counted,
    moe_cuts,
    moe_sizes,
    prefill_heads,
)
from moesim.facts.catalog import load_device

RATES = Rates.of(load_device("h100-sxm-80gb"))
TOKENS = (1, 2, 4, 8, 16, 32, 64)


@given(st.lists(st.integers(1, 10**6), min_size=1, max_size=40, unique=True).map(sorted))
def test_every_point_inside_is_left_out_once(sizes: list[int]) -> None:
    """With all that are nearly alike; the ends and their like never."""
    parts = list(folds(sizes))
    out = [place for _, left in parts for place in left]
    assert len(out) == len(set(out))
    for stay, left in parts:
        assert sorted(stay + left) == list(range(len(sizes)))
        for place in left:
            alike = [i for i in (place - 1, place + 1) if i in stay]
            assert all(
                max(sizes[i], sizes[place]) > ALIKE * min(sizes[i], sizes[place]) for i in alike
            )
    assert not {0, len(sizes) - 1} & set(out)


def _curves() -> list[Gemm]:
    return [
        Gemm(format="bf16", n=n, k=k, tokens=TOKENS, us=tuple(n * k * 1e-6 for _ in TOKENS))
        for n in (512, 1024, 2048)
        for k in (512, 1024, 2048)
    ]


def test_a_point_that_is_wrong_is_found_wrong() -> None:
    """By as much as it is: it did not help to predict itself."""
    curve = _curves()[0]
    wrong = curve.model_copy(update={"us": (*curve.us[:3], 2 * curve.us[3], *curve.us[4:])})
    pairs = gemm_sizes([wrong], RATES)
    errors = dict(zip(pairs.where, pairs.errors, strict=True))
    assert errors["bf16 512x512 m 8"] == pytest.approx(1.0, abs=0.05)


def test_shapes_are_judged_from_those_around() -> None:
    """The middle one of n and of k; those at the edges have nobody beyond them."""
    pairs = gemm_shapes(_curves(), RATES)
    shapes = {where.split()[1] for where in pairs.where}
    assert shapes == {"512x1024", "1024x512", "1024x1024", "1024x2048", "2048x1024"}
    assert abs(pairs.errors).max() < 0.2


def test_heads_are_judged_from_those_with_others_for_keys() -> None:
    """All with as many; those that share the number do not help to predict each other."""
    points = [(batch, context) for batch in (1, 2, 4, 8, 16) for context in (128, 1024, 8192)]
    table = [
        Decode(
            heads=heads,
            kv_heads=several,
            head_dim=128,
            kv_format="bf16",
            sequences=tuple(batch for batch, _ in points),
            context=tuple(context for _, context in points),
            us=tuple(5.0 + 1e-3 * batch * several * context for batch, context in points),
        )
        for heads, several in ((4, 1), (6, 1), (8, 2), (16, 4))
    ]
    pairs = decode_heads(table, RATES)
    assert len(pairs.where) == 4 * len(points)
    within = [
        error
        for where, error in zip(pairs.where, pairs.errors, strict=True)
        if where.startswith("(8, 2") and "batch 1 " not in where
    ]
    assert max(within, key=abs) == pytest.approx(0.0, abs=1e-9)
    assert not decode_heads(table[:2], RATES).where


def test_prompts_are_judged_from_heads_with_others_for_keys() -> None:
    """What a rank computes goes with its queries: 8 heads take twice as long as 4."""
    sizes = (128, 256, 512, 1024, 2048)
    table = [
        Prefill(
            heads=4 * several,
            kv_heads=several,
            head_dim=128,
            kv_format="bf16",
            sequences=(1,) * len(sizes),
            new_tokens=sizes,
            context=(0,) * len(sizes),
            us=tuple(several * 1e-3 * size * size for size in sizes),
        )
        for several in (1, 2, 4)
    ]
    pairs = prefill_heads(table, RATES)
    assert len(pairs.where) == 3 * len(sizes)
    assert pairs.errors == pytest.approx(0.0, abs=1e-9)


def _moe(**changed: object) -> Moe:
    us = tuple(10.0 + 50.0 * min(8, 2 * tokens) for tokens in TOKENS)
    return Moe.model_validate(
        {"hidden": 8, "inner": 8, "experts": 8, "top_k": 2, "format": "bf16",
         "distribution": "balanced", "tokens": TOKENS, "us": us} | changed
    )  # fmt: skip


def test_experts_that_few_tokens_hit_are_judged_too() -> None:
    """Two tokens hit four experts, between two and eight."""
    pairs = moe_sizes([_moe()])
    errors = dict(zip(pairs.where, pairs.errors, strict=True))
    assert errors["bf16 8x8 tp 1 ep 1 balanced 2"] == pytest.approx(0.0, abs=1e-9)
    assert len(errors) == 5


def test_dealt_experts_are_judged_with_all_tokens_passed_over() -> None:
    """A machine that passes over every token, wherever it visits, and reads one expert in 50 us."""

    def us(parts: int, tokens: int) -> float:
        passed = tokens * 2 * 8192 * 2 / (0.8 * RATES.bytes_per_s) * 1e6
        return 10.0 + 50.0 * min(8, max(parts, 2 * tokens)) / parts + passed

    tokens = (1, 2, 4, 16, 256, 4096, 16384)
    several = [
        _moe(
            hidden=8192,
            expert_parallel=parts,
            tokens=tokens,
            us=tuple(us(parts, count) for count in tokens),
        )
        for parts in (1, 2, 4)
    ]
    pairs = moe_cuts(several, RATES)
    assert len(pairs.where) == 14
    assert pairs.errors == pytest.approx(0.0, abs=1e-3)
    assert us(4, 16384) / us(4, 16) > 1.5


def test_counted_experts_are_judged_by_number() -> None:
    """Each number between the least and the most, from the others: here a line."""
    points = list(chain.from_iterable([(t, d) for d in (1, 2, 4, 8)] for t in (16, 64)))
    counted = _moe(
        tokens=tuple(t for t, _ in points),
        distinct=tuple(d for _, d in points),
        us=tuple(10.0 + 50.0 * d for _, d in points),
    )
    pairs = moe_counted([counted])
    assert len(pairs.where) == 4
    assert pairs.errors == pytest.approx(0.0, abs=1e-9)
    assert moe_sizes([counted]).residual("x") is None
