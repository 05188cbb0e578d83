"""Rooflines: floors by hand, order, and what cannot be answered."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile
from moesim.cost.roofline import RESIDUALS, roofline_profile
from moesim.errors import CapacityError, MoesimError, ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.hardware import Device
from moesim.scenario import scenario_from
from moesim.serving.sequences import Batch, Chunk, Sequence
from moesim.simulation.run import simulate


def profile_of(device: str, model: str = "mixtral-8x7b") -> Profile:
    return roofline_profile(
        load_model(model), load_device(device), max_batched_tokens=4096, max_num_seqs=256
    )


def decode_s(profile: Profile, sequences: int, context: int = 1) -> float:
    cost = CostModel(profile, max_batched_tokens=4096, max_num_seqs=256)
    batch = [Chunk(Sequence(n, context, 9, generated=1), 1, context) for n in range(sequences)]
    return cost.iteration_s(Batch(batch))


def test_one_token_reads_two_experts_a_layer() -> None:
    """H200, 4.8 TB/s: 64 experts of 352.3 MB at 0.86 of it, 2.95 GB of layers and head at 0.65.

    22.55 GB / 4.128 TB/s + 2.946 GB / 3.12 TB/s = 5.462 + 0.944 = 6.41 ms; the context costs
    nothing to speak of.
    """
    assert 1e3 * decode_s(profile_of("h200-sxm-141gb"), 1) == pytest.approx(6.41, abs=0.01)


def test_many_tokens_read_them_all() -> None:
    """At 64 tokens all of 90.19 GB: 21.85 ms and 0.94 ms."""
    assert 1e3 * decode_s(profile_of("h200-sxm-141gb"), 64) == pytest.approx(22.8, abs=0.1)


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


def test_a_device_without_a_datasheet() -> None:
    """What is missing is named."""
    device = Device(name="mine", kind="cuda", memory_bytes=2**40, source="guess")
    with pytest.raises(ProfileError, match=r"mine: no bf16_flop_per_s"):
        roofline_profile(load_model("mixtral-8x7b"), device, max_batched_tokens=512, max_num_seqs=8)


def test_the_profiled_device_has_no_datasheet(tmp_path: Path) -> None:
    """Without a device there is nothing to draw a roofline of."""
    with pytest.raises(MoesimError, match=r"roofline needs the datasheet"):
        simulate(scenario_from(_scenario("profiled")))


def _scenario(device: str) -> dict[str, object]:
    return {
        "name": "roofline",
        "duration_s": 10,
        "models": {"m": {"architecture": "mixtral-8x7b", "profile": "roofline"}},
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
