"""What fits on a device, the arithmetic of a refusal, and the remedies it names."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ScenarioError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.memory import MemoryDemand, activation_bytes, plan_memory, reserved_share
from moesim.facts.mig import find_profile
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, KV_FORMATS, Precision
from moesim.facts.remedies import (
    fill_with_blocks,
    fill_with_experts,
    larger_slice,
    narrower,
    other_slices,
    remedies,
    shortfall,
)

GIB = 2**30
A100 = load_device("a100-sxm-80gb")
MIXTRAL = load_model("mixtral-8x7b")
EXPERT = 352_321_536
SET = 3_211_272_192
TINY = ModelSpec(
    hidden_size=8,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    head_dim=4,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=32,
    max_position_embeddings=64,
)
SHAPES = [TINY, *(load_model(name, architectures=ARCHITECTURES) for name in (
    "mixtral-8x7b", "switch-base-8", "llama-3-8b", "qwen3-30b-a3b"
))]  # fmt: skip


def demand_of(spec: ModelSpec = MIXTRAL, **changes: Any) -> MemoryDemand:
    """Return a demand on a whole A100, all of it usable, unless told otherwise."""
    usual: dict[str, Any] = {
        "slice_bytes": A100.memory_bytes,
        "precision": Precision(),
        "kv_blocks": 64,
        "reserved_share": 0.0,
    }
    return MemoryDemand(spec=spec, **usual | changes)


@st.composite
def demands(draw: st.DrawFn) -> MemoryDemand:
    """Draw anything that can be asked of a slice."""
    variants = draw(st.integers(1, 5))
    return MemoryDemand(
        spec=draw(st.sampled_from(SHAPES)),
        slice_bytes=draw(st.integers(1, 300 * GIB)),
        precision=Precision(
            experts=draw(st.sampled_from(list(FORMATS))),
            rest=draw(st.sampled_from(list(FORMATS))),
            kv=draw(st.sampled_from(KV_FORMATS)),
        ),
        kv_blocks=draw(st.integers(0, 50_000)),
        block_size=draw(st.sampled_from([1, 16, 64])),
        variants=variants,
        ratio=draw(st.floats(0, 1)),
        resident=draw(st.floats(0, 1)),
        non_expert_sets=draw(st.none() | st.integers(1, variants)),
        max_batched_tokens=draw(st.integers(1, 8192)),
        max_num_seqs=draw(st.integers(1, 512)),
        reserved_share=draw(st.sampled_from([0.0, 0.1])),
    )


def test_a_tiny_plan_by_hand() -> None:
    """Two variants of eight 384-parameter experts and 1000 others, in 16 bits, half shared.

    4 shared and 2 x 4 private copies of 768 B; 6 of the 12 resident: the 4 shared, 2 private. One
    of two sets of 2000 B. Three blocks of 16 tokens of 2 layers x (key + value) x 4 x 2 B = 32 B.
    Four tokens: 6 x 4 x 8 + 3 x 4 x 2 x 16 = 576, and 2 x 32 logits, in 2 B and the logits once in
    4 B: 1536 B. A tenth of 20,000 B set aside.
    """
    plan = plan_memory(
        demand_of(
            TINY, slice_bytes=20_000, kv_blocks=3, variants=2, ratio=0.5, resident=0.5,
            non_expert_sets=1, max_batched_tokens=4, max_num_seqs=2, reserved_share=0.1,
        )
    )  # fmt: skip
    assert plan.parts == {
        "non-expert sets": 2000,
        "shared experts": 4 * 768,
        "private experts": 2 * 768,
        "KV cache": 3 * 16 * 32,
        "activations": 2 * (576 + 64) + 4 * 64,
        "runtime": 2000,
    }
    assert (plan.host_expert_bytes, plan.host_non_expert_bytes) == (6 * 768, 2000)
    assert plan.free_bytes == 20_000 - 2000 - 4608 - 1536 - 1536 - 2000


def test_two_mixtrals_in_full() -> None:
    """What the published system shares: 2 x 93.4 GB apart, 96.6 GB with every expert shared."""
    apart = plan_memory(demand_of(variants=2))
    together = plan_memory(demand_of(variants=2, ratio=1.0))
    assert apart.non_expert_bytes + apart.private_expert_bytes == 2 * 93_405_585_408
    assert together.shared_expert_bytes == 256 * EXPERT
    assert together.non_expert_bytes == 2 * SET
    assert not apart.fits
    assert not together.fits


@pytest.mark.parametrize(
    ("slice_name", "low", "high"), [(None, 195, 220), ("3g.40gb", 81, 98)], ids=["whole", "half"]
)
def test_the_published_system_on_an_a100(slice_name: str | None, low: int, high: int) -> None:
    """Experts beside one non-expert set: 195 to 220 of 256 on 80 GB, 81 to 98 on a half.

    Derived from the turnarounds of arXiv 2505.06481, two Mixtral-8x7B variants on an A100.
    """
    size = find_profile(A100, slice_name).memory_bytes if slice_name else A100.memory_bytes
    variants = 1 if slice_name else 2
    asked = demand_of(
        slice_bytes=size, variants=variants, ratio=1.0, non_expert_sets=1, reserved_share=0.1
    )
    assert low <= fill_with_experts(asked).resident_copies <= high


def test_mixtral_fits_no_slice_but_the_whole() -> None:
    """In bf16 not even an H100's; on an H200 the instance of 140 GiB."""
    h200 = load_device("h200-sxm-141gb")
    sizes = {name: find_profile(h200, name).memory_bytes for name in ("4g.71gb", "7g.141gb")}
    fits = {name: plan_memory(demand_of(slice_bytes=size)).fits for name, size in sizes.items()}
    assert fits == {"4g.71gb": False, "7g.141gb": True}
    assert not plan_memory(demand_of(slice_bytes=80 * GIB)).fits


def test_a_dense_model_has_its_ffn_alive() -> None:
    """Llama-3-8B, 100 tokens, 10 sequences: 6 x 100 x 4096 + 3 x 100 x 14336, 10 x 128256."""
    llama = load_model("llama-3-8b", architectures=ARCHITECTURES)
    values, logits = 6 * 100 * 4096 + 3 * 100 * 14336, 10 * 128_256
    held = activation_bytes(llama, max_batched_tokens=100, max_num_seqs=10)
    assert held == 2 * (values + logits) + 4 * logits
    doubled = activation_bytes(llama, max_batched_tokens=100, max_num_seqs=10, value_bytes=4)
    assert doubled == 4 * (values + logits) + 4 * logits


def test_a_lone_variant_shares_with_nobody() -> None:
    """Its ratio changes nothing."""
    assert plan_memory(demand_of(ratio=1.0)) == plan_memory(demand_of(ratio=0.0))


@given(demand=demands())
def test_the_parts_add_up(demand: MemoryDemand) -> None:
    """Nothing is negative; parts and free memory are the slice, or exceed it by the shortfall."""
    plan = plan_memory(demand)
    assert min(plan.parts.values()) >= 0
    assert plan.used_bytes + plan.free_bytes == plan.slice_bytes + plan.short_by_bytes
    assert plan.fits == (plan.short_by_bytes == 0)
    experts = plan.shared_expert_bytes + plan.private_expert_bytes + plan.host_expert_bytes
    assert experts == demand.expert_copies * demand.spec.expert_bytes(demand.precision)
    sets = plan.non_expert_bytes + plan.host_non_expert_bytes
    assert sets == demand.variants * demand.spec.non_expert_bytes(demand.precision)


@given(demand=demands(), other=st.floats(0, 1))
def test_more_sharing_never_needs_more(demand: MemoryDemand, other: float) -> None:
    """On the slice and in host memory alike."""
    less, more = (
        plan_memory(replace(demand, ratio=ratio)) for ratio in sorted((demand.ratio, other))
    )
    assert more.used_bytes <= less.used_bytes
    assert more.used_bytes + more.host_expert_bytes <= less.used_bytes + less.host_expert_bytes


@given(demand=demands(), other=st.floats(0, 1))
def test_more_experts_on_the_slice_are_fewer_elsewhere(demand: MemoryDemand, other: float) -> None:
    """Each is in one of both places."""
    low, high = (
        plan_memory(replace(demand, resident=share)) for share in sorted((demand.resident, other))
    )
    moved = high.used_bytes - low.used_bytes
    assert moved >= 0
    assert moved == low.host_expert_bytes - high.host_expert_bytes


@given(demand=demands(), slices=st.dictionaries(st.text(min_size=1), st.integers(1, 400 * GIB)))
def test_every_remedy_is_enough(demand: MemoryDemand, slices: dict[str, int]) -> None:
    """And changes one thing."""
    found = remedies(demand, slices)
    assert not (found and plan_memory(demand).fits)
    for remedy in found:
        assert plan_memory(remedy.demand).fits
        fields = demand.__dataclass_fields__
        changed = [f for f in fields if getattr(demand, f) != getattr(remedy.demand, f)]
        assert len(changed) == 1


@given(demand=demands())
def test_no_remedy_takes_more_than_it_must(demand: MemoryDemand) -> None:
    """One block more, one expert more, one set more, a thousandth less sharing: too much."""
    for remedy in remedies(demand, {}):
        then = remedy.demand
        if then.kv_blocks != demand.kv_blocks:
            less = replace(then, kv_blocks=then.kv_blocks + 1)
        elif then.sets != demand.sets:
            less = replace(then, non_expert_sets=then.sets + 1)
        elif then.resident != demand.resident:
            less = replace(then, resident=(then.resident_copies + 1) / then.expert_copies)
        elif then.ratio != demand.ratio:
            less = replace(then, ratio=max(demand.ratio, then.ratio - 0.001))
        else:
            continue
        assert not plan_memory(less).fits


@given(demand=demands())
def test_filling_leaves_no_room_for_another_expert(demand: MemoryDemand) -> None:
    """Unless all are there, or not even those of one token are."""
    filled = fill_with_experts(demand)
    if not plan_memory(filled).fits or filled.resident_copies == filled.expert_copies:
        return
    assert filled.resident_copies >= demand.spec.num_experts_per_tok
    free = plan_memory(filled).free_bytes
    assert free < demand.spec.expert_bytes(demand.precision)


def test_a_shortfall_is_one_line_with_every_way_out() -> None:
    """Two Mixtrals with 358 experts (117.5 GiB), 6 GiB of other weights and 24 GiB of cache."""
    asked = demand_of(slice_bytes=140 * GIB, variants=2, ratio=0.6, kv_blocks=12_288)
    text = shortfall(asked, {"7g.80gb": 79 * GIB, "one": 200 * GIB, "two": 282 * GIB})
    for words in (
        "needs 148 GiB, has 140 GiB",
        "consolidation ratio to ",
        "of 256 expert positions shared",
        "experts to host memory",
        "store the experts in fp8",
        "take one (200 GiB)",
    ):
        assert words in text
    assert "\n" not in text


def test_what_nothing_helps_says_so() -> None:
    """A megabyte for a Mixtral."""
    text = shortfall(demand_of(slice_bytes=2**20), {})
    assert text.endswith("no single change is enough; make several")


def test_what_fits_needs_no_remedy() -> None:
    """And a device without CUDA sets nothing aside."""
    assert remedies(demand_of(TINY), {}) == []
    assert (reserved_share("cuda"), reserved_share("cpu")) == (0.1, 0.0)


def test_where_nothing_fits_the_fewest_experts_stay() -> None:
    """80 GiB of KV cache on 80 GiB: Mixtral's two experts of a token, so that the rest is short.

    In blocks: two experts and the other weights are 3,915,915,264 B, 1868 blocks of 2 MiB. More
    sharing would not help: there is one model.
    """
    asked = demand_of(kv_blocks=40_960, max_batched_tokens=1, max_num_seqs=1)
    filled = fill_with_experts(asked)
    assert filled.resident_copies == 2
    (remedy,) = remedies(filled, {})
    held = 2 * EXPERT + SET + plan_memory(asked).activation_bytes
    assert remedy.demand.kv_blocks == (80 * GIB - held) // 2**21


def test_sharing_is_no_way_out_where_hardly_an_expert_is_left() -> None:
    """Two of 512 copies stay; with every position shared it would be one of 256."""
    asked = demand_of(variants=2, kv_blocks=39_700, max_batched_tokens=1, max_num_seqs=1)
    filled = fill_with_experts(asked)
    assert filled.resident_copies == 2
    assert not any("ratio" in remedy.change for remedy in remedies(filled, {}))


def test_other_slices_are_the_devices_own_and_whole_gpus() -> None:
    """By name, with what programs can use of each."""
    found = other_slices(A100)
    assert found["3g.40gb"] == find_profile(A100, "3g.40gb").memory_bytes
    assert found["a whole h200-sxm-141gb"] == load_device("h200-sxm-141gb").memory_bytes
    assert not any("cpu" in name for name in found)
    assert all(name.startswith("a whole ") for name in other_slices(load_device("cpu-2core")))


def test_weights_in_fp8_are_not_sent_where_nothing_computes_with_them() -> None:
    """Nor is anything else but the device's own slices without the proviso."""
    h100 = load_device("h100-sxm-80gb")
    assert "a whole a100-sxm-80gb" in other_slices(h100)
    found = other_slices(h100, fp8=True, proviso=" and pay")
    assert "a whole h200-sxm-141gb and pay" in found
    assert "a whole h100-sxm-80gb" in found
    assert not any("a100" in name for name in found)


def test_narrower_formats_are_the_devices() -> None:
    """An A100 has no arithmetic in fp8; int8 takes as much."""
    assert narrower(A100) == ("int8", "int4")
    assert narrower(load_device("h100-sxm-80gb")) == ("fp8", "int4")
    short = demand_of(kv_blocks=64)
    changes = [each.change for each in remedies(short, {}, narrower(A100))]
    assert "store the experts in int8" in changes


@given(demands(), st.one_of(st.none(), st.integers(0, 10**6)))
def test_what_is_free_fills_with_blocks(demand: MemoryDemand, most: int | None) -> None:
    """No variant loses any, all have the same more, and what fitted fits."""
    filled = fill_with_blocks(demand, most)
    assert filled.kv_blocks >= demand.kv_blocks
    assert plan_memory(filled).fits == plan_memory(demand).fits
    if filled != demand:
        assert filled.kv_blocks % filled.variants == 0
        assert most is None or filled.kv_blocks <= most * filled.variants
    if most is None and plan_memory(demand).fits:
        left = plan_memory(filled).free_bytes
        assert left < filled.variants * filled.block_bytes + demand.block_bytes


def test_what_is_there_comes_before_another_gpu() -> None:
    """An L40S has less than all of an A100, but the A100 is there; an H200 is for more than it."""
    found = other_slices(A100)
    assert larger_slice(found, lambda size: size >= 44 * GIB) == ("take 7g.80gb (79 GiB)", 79 * GIB)
    assert list(found).index("a whole a100-sxm-80gb") < list(found).index("a whole l40s-48gb")
    larger = larger_slice(found, lambda size: size > 80 * GIB)
    assert larger is not None
    assert larger[0].startswith("take a whole ")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ratio": 1.5}, "ratio: 1.5 must be between 0 and 1"),
        ({"resident": float("nan")}, "resident: nan"),
        ({"variants": 0}, "variants: 0 must be above zero"),
        ({"kv_blocks": -1}, "kv_blocks: -1"),
        ({"non_expert_sets": 3, "variants": 2}, "non_expert_sets: 3 must be between 1 and the 2"),
        ({"slice_bytes": 0}, "slice_bytes: 0"),
    ],
)
def test_a_demand_that_means_nothing_is_refused(changes: dict[str, Any], words: str) -> None:
    """With the field and its value."""
    with pytest.raises(ScenarioError, match=words):
        demand_of(**changes)
