"""Rooflines: floors by hand, groups, order, and what cannot be answered."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile, load_profile
from moesim.cost.roofline import RESIDUALS, blocks_beside, on_slice, passes_s, roofline_profile
from moesim.errors import CapacityError, MoesimError, ProfileError, ScenarioError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.hardware import Device
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice, group, mig_slices, whole
from moesim.scenario import scenario_from
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.simulation.run import simulate

H100 = load_device("h100-sxm-80gb")


def profile_of(
    device: str, model: str = "mixtral-8x7b", precision: Precision | None = None
) -> Profile:
    return roofline_profile(
        load_model(model, architectures=ARCHITECTURES),
        load_device(device),
        max_batched_tokens=4096,
        max_num_seqs=256,
        precision=precision,
    )


def group_of(
    device: str, ranks: int, model: str = "mixtral-8x7b", precision: Precision | None = None
) -> Profile:
    """Return the profile of a tensor-parallel group."""
    profile, gpu = profile_of(device, model, precision), load_device(device)
    return on_slice(profile, gpu, group(gpu, tensor_parallel=ranks), precision=precision)


def decode_s(profile: Profile, sequences: int, context: int = 1) -> float:
    cost = CostModel(profile, max_batched_tokens=4096, max_num_seqs=256)
    batch = [Chunk(Sequence(n, context, 9, generated=1), 1, context) for n in range(sequences)]
    return cost.iteration_s(Batch(batch))


def test_one_token_reads_two_experts_a_layer() -> None:
    """H200, 4.8 TB/s: 64 experts of 352.3 MB at 0.86 of it, 2.95 GB of layers and head at 0.65.

    22.55 GB / 4.128 TB/s + 2.946 GB / 3.12 TB/s = 5.462 + 0.944 = 6.41 ms, and 9 passes of 3 us in
    each of 32 layers 0.86 ms; the context costs nothing to speak of.
    """
    assert 1e3 * decode_s(profile_of("h200-sxm-141gb"), 1) == pytest.approx(7.27, abs=0.01)


def test_many_tokens_read_them_all() -> None:
    """At 64 tokens all of 90.19 GB: 21.85 ms, 0.94 ms and 0.86 ms."""
    assert 1e3 * decode_s(profile_of("h200-sxm-141gb"), 64) == pytest.approx(23.65, abs=0.1)


def test_a_long_prompt_is_arithmetic() -> None:
    """4096 tokens on 989 TFLOP/s: experts 92.4 TFLOP at half of it, linear layers 11 at 0.77.

    Attention adds 4 x 4096 x 4096^2 / 2 x 32 layers = 4.4 TFLOP at 0.56: 187 + 14.4 + 7.9 ms.
    """
    cost = CostModel(profile_of("h200-sxm-141gb"), max_batched_tokens=4096, max_num_seqs=256)
    prompt = Batch([Chunk(Sequence(0, 4096, 9), 4096, 0)])
    assert 1e3 * cost.iteration_s(prompt) == pytest.approx(209.6, rel=0.01)


@given(st.integers(1, 256), st.integers(1, 100_000))
def test_a_faster_memory_is_never_slower(sequences: int, context: int) -> None:
    """The H200 is an H100 with more bandwidth; a model that fits both decodes faster on it."""
    fast = decode_s(profile_of("h200-sxm-141gb", "demo-moe"), sequences, context)
    assert fast <= decode_s(profile_of("h100-sxm-80gb", "demo-moe"), sequences, context)


def test_every_answer_says_so() -> None:
    """The basis of all operations, and the first warning."""
    result = simulate(scenario_from(_scenario("h200-sxm-141gb")))
    assert set(result.basis.values()) == {"roofline"}
    assert "nothing of m was measured" in result.warnings[0]
    assert len(RESIDUALS) == 19
    assert list(RESIDUALS) == sorted(RESIDUALS)


def test_a_model_that_does_not_fit() -> None:
    """87 GiB of weights on 80 GiB."""
    with pytest.raises(CapacityError, match=r"m does not fit on a100.*87 GiB.* > 80 GiB"):
        simulate(scenario_from(_scenario("a100-sxm-80gb")))


FLOORS = [
    ("a100-sxm-80gb", 2, "bf16", 1, 6.25),
    ("a100-sxm-80gb", 4, "bf16", 1, 3.13),
    ("h100-sxm-80gb", 1, "bf16", 1, 7.61),
    ("h100-sxm-80gb", 2, "bf16", 1, 3.81),
    ("a100-sxm-80gb", 2, "bf16", 64, 22.8),
    ("a100-sxm-80gb", 4, "bf16", 64, 11.4),
    ("h100-sxm-80gb", 1, "bf16", 64, 27.8),
    ("h100-sxm-80gb", 2, "bf16", 64, 13.9),
    ("h100-sxm-80gb", 1, "fp8", 1, 3.81),
    ("h100-sxm-80gb", 2, "fp8", 64, 6.95),
]
"""Device, ranks, weights, batch: what reading Mixtral's weights takes at the datasheet's rate [ms],
(3.211 + 22.55 or 90.19 GB in 16 bit, less the embedding's 0.26 GB) over ranks x bandwidth."""


@pytest.mark.parametrize(("device", "ranks", "weights", "batch", "floor_ms"), FLOORS)
def test_decodes_keep_above_the_time_to_read_the_weights(
    device: str, ranks: int, weights: str, batch: int, floor_ms: float
) -> None:
    """By no less than the best share of bandwidth, 0.86, and no more than the least, 0.65.

    Collectives aside; in fp8 the head stays in 16 bit, which 0.6 allows for.
    """
    profile = profile_of(device, precision=Precision.uniform(weights))
    if ranks > 1:
        profile = group_of(device, ranks, precision=Precision.uniform(weights))
        del profile.operations["collectives"]
    taken = 1e3 * decode_s(profile, batch)
    assert floor_ms / 0.88 < taken < floor_ms / (0.65 if weights == "bf16" else 0.6)


def test_a_group_adds_two_all_reduces_a_layer() -> None:
    """Mixtral on two H100, one token: 64 of 8,192 bytes, 3.83 us each, 0.245 ms more."""
    profile = group_of("h100-sxm-80gb", 2)
    cells = {name: row for name, row in profile.operations.items() if name != "collectives"}
    without = profile.model_copy(update={"operations": cells})
    reduce = 64 * H100.all_reduce[2].seconds(8192)
    assert reduce == pytest.approx(0.245e-3, abs=0.002e-3)
    assert decode_s(profile, 1) - decode_s(without, 1) == pytest.approx(reduce)


def test_a_group_is_faster_than_one_and_slower_than_its_parts() -> None:
    """Ever more ranks, ever less than as many times faster; long prompts too."""
    for sequences in (1, 32, 256):
        times = [decode_s(group_of("h100-sxm-80gb", ranks), sequences, 500) for ranks in (2, 4, 8)]
        alone = decode_s(profile_of("h100-sxm-80gb"), sequences, 500)
        for ranks, taken in zip((2, 4, 8), times, strict=True):
            assert alone / ranks < taken < alone
        assert times == sorted(times, reverse=True)


def test_rooflines_are_below_what_was_measured() -> None:
    """gpt-fast's README on 2x A100: 96.67 tokens/s of Mixtral, 16.03 of Llama 3 70B.

    vLLM on 2x H100, batch 8, 32 tokens in and 128 out: 2.327 s, 128 steps. Launches and the host
    are left out, so that a roofline is less; half at least, or the arithmetic would be wrong.
    """
    steps = (
        (decode_s(group_of("a100-sxm-80gb", 2), 1, 100), 1 / 96.67),
        (decode_s(group_of("a100-sxm-80gb", 2, "llama-3-70b"), 1, 100), 1 / 16.03),
        (decode_s(group_of("h100-sxm-80gb", 2), 8, 96), 2.327 / 128),
    )
    for roofline, measured in steps:
        assert 0.5 * measured < roofline < measured


def test_experts_dealt_or_split() -> None:
    """A lone token waits for one whole expert; at 64 tokens every rank reads the same bytes."""
    whole = profile_of("h100-sxm-80gb")
    split = on_slice(whole, H100, group(H100, tensor_parallel=4))
    dealt = on_slice(whole, H100, group(H100, expert_parallel=4))
    assert decode_s(dealt, 1) > 1.5 * decode_s(split, 1)
    assert decode_s(dealt, 64) == pytest.approx(decode_s(split, 64), rel=0.01)
    assert dealt.operations["collectives"] == split.operations["collectives"]


def test_a_measured_profile_on_a_group_is_scaled() -> None:
    """The host and launches stay as they were measured; it says so, and loads again."""
    measured = load_profile("demo-cpu")
    part = group(H100, expert_parallel=2)
    scaled = on_slice(measured, H100, part)
    assert scaled.source == "scaled"
    assert scaled.operations["host"] == measured.operations["host"]
    assert Profile.model_validate_json(scaled.model_dump_json()) == scaled
    cost = CostModel(scaled, max_batched_tokens=64, max_num_seqs=8)
    cost.iteration_s(Batch([Chunk(Sequence(0, 9, 9), 9, 0)]))
    assert cost.basis()["collectives"] in ("scaled", "extrapolated")


@pytest.mark.parametrize("ranks", [2, 8])
@pytest.mark.parametrize("missed", [1.0, 1.6])
def test_launches_are_not_scaled(ranks: int, missed: float) -> None:
    """Kernels that take a constant beside a multiple of their roofline keep it in a group.

    Of the head that is not known: it reads its weights, as long for one sequence as for all.
    """
    ideal, launch_s = profile_of("h100-sxm-80gb"), 9e-6
    part = group(H100, tensor_parallel=ranks)
    alone = _with_launches(ideal, missed, launch_s)
    expected = _with_launches(on_slice(ideal, H100, part), missed, launch_s)
    found = on_slice(alone, H100, part)
    for name in ("projections", "experts", "attention_decode", "attention_prefill"):
        seconds = [cell.median_s for cell in found.operations[name]]
        assert seconds == pytest.approx([cell.median_s for cell in expected.operations[name]])


def _with_launches(profile: Profile, missed: float, launch_s: float) -> Profile:
    operations = {
        name: [
            cell.model_copy(update={"median_s": launch_s + missed * cell.median_s})
            for cell in cells
        ]
        for name, cells in profile.operations.items()
    }
    return profile.model_copy(update={"operations": operations})


def test_a_measured_instance_is_not_scaled_again() -> None:
    """It beats the scaled whole, and stands for no other instance, nor for the whole."""
    drawn = profile_of("a100-sxm-80gb")
    a100 = load_device("a100-sxm-80gb")
    made = drawn.provenance.model_copy(update={"device": "NVIDIA A100-SXM4-80GB MIG 3g.40gb"})
    measured = drawn.model_copy(update={"source": "measured", "provenance": made})
    same, other = mig_slices(a100, ["3g.40gb", "2g.20gb"])
    assert on_slice(measured, a100, same) == measured
    for part in (other, whole(a100)):
        with pytest.raises(ProfileError, match=r"on a100-sxm-80gb/3g\.40gb, here the model"):
            on_slice(measured, a100, part)


def test_a_model_without_experts() -> None:
    """Llama 3 8B on an H200: 15.0 GB of layers and head at 0.65 of 4.8 TB/s are 4.81 ms.

    128 passes are 0.38 ms.
    """
    profile = profile_of("h200-sxm-141gb", "llama-3-8b")
    assert 1e3 * decode_s(profile, 1) == pytest.approx(5.19, abs=0.01)
    assert Profile.model_validate_json(profile.model_dump_json()) == profile
    result = simulate(scenario_from(_scenario("h200-sxm-141gb", "llama-3-8b")))
    assert set(result.basis.values()) == {"roofline"}


def test_precision_narrows_weights_and_makes_room() -> None:
    """On an A100 Mixtral in int8 leaves room: 90 % of 80 GiB less 47.5 GB over 2 MiB a block."""
    spec, a100 = load_model("mixtral-8x7b"), load_device("a100-sxm-80gb")
    int8 = Precision.uniform("int8")
    weights = 45_097_156_608 + 32 * 41_943_040 + 2 * (2 * 131_072_000 + 32 * 32_768 + 65 * 4096)
    room = int((0.9 * 80 * 2**30 - weights) // 2**21)
    assert profile_of("a100-sxm-80gb", precision=int8).kv.num_blocks == room
    assert blocks_beside(spec, a100.memory_bytes, 16) < 0
    with pytest.raises(ProfileError, match="a100-sxm-80gb: no fp8_flop_per_s"):
        profile_of("a100-sxm-80gb", precision=Precision.uniform("fp8"))


def test_groups_have_more_room_than_their_parts() -> None:
    """Two A100 hold half of Mixtral each, and half of each block: (77.3 - 46.7) GB over 1 MiB."""
    spec, a100 = load_model("mixtral-8x7b"), load_device("a100-sxm-80gb")
    blocks = blocks_beside(spec, a100.memory_bytes, 16, part=group(a100, tensor_parallel=2))
    assert blocks == pytest.approx((0.9 * 80 * 2**30 - 46.7e9) / 2**20, rel=1e-3)
    dealt = blocks_beside(spec, a100.memory_bytes, 16, part=group(a100, expert_parallel=2))
    assert dealt == blocks


def test_a_group_that_the_model_cannot_be_cut_over() -> None:
    """Eight heads of keys and values on three devices."""
    part = group(H100, tensor_parallel=3)
    with pytest.raises(ScenarioError, match="does not divide over 3 devices"):
        on_slice(profile_of("h100-sxm-80gb"), H100, part)
    with pytest.raises(ScenarioError, match="does not divide over 3 devices"):
        blocks_beside(load_model("mixtral-8x7b"), 2**37, 16, part=part)


def test_an_encoder_has_none() -> None:
    """Switch Transformers are named."""
    with pytest.raises(ProfileError, match="knows decoders, not switch_transformers"):
        profile_of("h100-sxm-80gb", "switch-base-8")


def test_parts_and_groups_alike() -> None:
    """A group of one that has half of a device is that half; launches are as long on it."""
    profile = profile_of("h100-sxm-80gb")
    half = Slice(name="half", compute_share=0.5, bandwidth_share=0.5, memory_bytes=2**35)
    launches_s = 32 * passes_s(profile.spec)
    twice_s = 2 * (decode_s(profile, 4) - launches_s)
    assert decode_s(on_slice(profile, H100, half), 4) == pytest.approx(twice_s + launches_s)


def test_a_device_without_a_datasheet() -> None:
    """What is missing is named."""
    device = Device(name="mine", kind="cuda", memory_bytes=2**40, source="guess")
    with pytest.raises(ProfileError, match=r"mine: no bf16_flop_per_s"):
        roofline_profile(load_model("mixtral-8x7b"), device, max_batched_tokens=512, max_num_seqs=8)


def test_the_profiled_device_has_no_datasheet(tmp_path: Path) -> None:
    """Without a device there is nothing to draw a roofline of."""
    with pytest.raises(MoesimError, match=r"roofline needs the datasheet"):
        simulate(scenario_from(_scenario("profiled")))


def _scenario(device: str, model: str = "mixtral-8x7b") -> dict[str, object]:
    return {
        "name": "roofline",
        "duration_s": 10,
        "models": {"m": {"architecture": model, "profile": "roofline"}},
        "tenants": {
            "t": {
                "model": "m",
                "arrivals": {"kind": "constant", "rate_per_s": 1},
                "prompt_tokens": {"kind": "fixed", "tokens": 100},
                "output_tokens": {"kind": "fixed", "tokens": 10},
            }
        },
        "hardware": {"device": device},
        "deployment": {"kind": "dedicated"},
    }
