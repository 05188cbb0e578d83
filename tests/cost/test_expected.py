"""What operations take on groups, in other formats and without experts: counted by hand."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.expected import Rates, expected_s, uniform_popularity
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import group

A100, H100 = load_device("a100-sxm-80gb"), load_device("h100-sxm-80gb")
MIXTRAL = load_model("mixtral-8x7b")
LLAMA = load_model("llama-3-8b", architectures=ARCHITECTURES)
RATES = Rates(flop_per_s=1e12, bytes_per_s=1e9, fp8_flop_per_s=4e12)

PARTLY = ModelSpec.from_config(
    {
        "model_type": "qwen3_moe", "hidden_size": 64, "intermediate_size": 256,
        "moe_intermediate_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4,
        "num_key_value_heads": 2, "num_experts": 8, "num_experts_per_tok": 2, "vocab_size": 128,
        "max_position_embeddings": 64, "mlp_only_layers": [0], "dtype": "bfloat16",
    }
)  # fmt: skip


def test_two_ranks_halve_what_a_layer_reads() -> None:
    """A token of Mixtral on 1 GB/s: attention 83,886,080 B at 0.65, two experts at 0.86."""
    two = expected_s(MIXTRAL, RATES, part=group(H100, tensor_parallel=2))
    assert two["projections"](1) == pytest.approx(83_886_080 / 2 / 0.65e9)
    assert two["experts"](1, 2) == pytest.approx(352_321_536 / 0.86e9)
    assert two["head"](1) == pytest.approx(262_144_000 / 2 / 0.65e9)
    assert two["attention_decode"](1, 1000) == pytest.approx(1000 * 131_072 / 32 / 2 / 0.84e9)


def test_a_long_prompt_is_divided_too() -> None:
    """All arithmetic to the fourth part."""
    one = expected_s(MIXTRAL, RATES)
    four = expected_s(MIXTRAL, RATES, part=group(H100, tensor_parallel=4))
    for name, at in (
        ("projections", (8192,)),
        ("experts", (8192, 8)),
        ("attention_prefill", (8192, 0)),
        ("head", (8192,)),
    ):
        assert four[name](*at) == pytest.approx(one[name](*at) / 4)


def test_experts_dealt_to_ranks_wait_for_the_fullest() -> None:
    """Mixtral's eight on eight ranks: a token's two are on two of them, each reads a whole one.

    Split over eight, each rank reads an eighth of both: four times less.
    """
    dealt = expected_s(MIXTRAL, RATES, part=group(H100, expert_parallel=8))
    split = expected_s(MIXTRAL, RATES, part=group(H100, tensor_parallel=8))
    assert dealt["experts"](1, 2) == pytest.approx(352_321_536 / 0.86e9)
    assert dealt["experts"](1, 2) == pytest.approx(4 * split["experts"](1, 2))
    assert dealt["projections"](1) == split["projections"](1)


def test_uneven_routers_make_ranks_wait_longer() -> None:
    """Where one rank's experts take three quarters of the visits, it has 1.5 times its half."""
    part = group(H100, expert_parallel=2)
    skewed = [[0.375] * 4 + [0.125] * 4]
    even = expected_s(MIXTRAL, RATES, part=part)["experts"](10**6, 8)
    uneven = expected_s(MIXTRAL, RATES, part=part, popularity=skewed)["experts"](10**6, 8)
    assert uneven == pytest.approx(1.5 * even, rel=0.01)


@given(st.integers(1, 8192), st.floats(1, 8), st.sampled_from([(1, 2), (2, 1), (2, 2), (1, 8)]))
def test_a_group_divides_experts_by_its_ranks_at_best(
    tokens: int, distinct: float, cut: tuple[int, int]
) -> None:
    """Each rank has at least its share, and never more than all."""
    part = group(H100, tensor_parallel=cut[0], expert_parallel=cut[1])
    alone = expected_s(MIXTRAL, RATES)["experts"](tokens, distinct)
    rank = expected_s(MIXTRAL, RATES, part=part)["experts"](tokens, distinct)
    assert alone / part.devices * (1 - 1e-9) <= rank <= alone * (1 + 1e-9)


def test_formats_read_fewer_bytes() -> None:
    """A token's two experts: 704.6 MB in 16 bit, half in 8, and in int4 4.15625 bits a weight."""
    weights = 2 * MIXTRAL.expert_parameters
    for name, size in (("bf16", 2.0), ("fp8", 1.0), ("int8", 1.0), ("int4", 4.15625 / 8)):
        durations = expected_s(MIXTRAL, RATES, precision=Precision(experts=name))
        assert durations["experts"](1, 2) == pytest.approx(weights * size / 0.86e9)
        assert durations["projections"](1) == expected_s(MIXTRAL, RATES)["projections"](1)


def test_a_narrow_cache_is_read_faster() -> None:
    """In fp8 half the bytes; the arithmetic of prompts stays."""
    narrow = expected_s(MIXTRAL, RATES, precision=Precision(kv="fp8"))
    plain = expected_s(MIXTRAL, RATES)
    assert narrow["attention_decode"](1, 100) == plain["attention_decode"](1, 100) / 2
    assert narrow["attention_prefill"](4096, 0) == plain["attention_prefill"](4096, 0)


def test_only_fp8_multiplies_faster() -> None:
    """Long prompts: fp8 at 0.63 and 0.54 of four times the rate, int8 and int4 at that of bf16.

    The head is never narrowed.
    """
    plain = expected_s(MIXTRAL, RATES)
    fp8 = expected_s(MIXTRAL, RATES, precision=Precision.uniform("fp8"))
    assert fp8["experts"](10**6, 8) == pytest.approx(plain["experts"](10**6, 8) * 0.5 / 0.63 / 4)
    assert fp8["projections"](10**6) == pytest.approx(plain["projections"](10**6) * 0.77 / 0.54 / 4)
    assert fp8["head"](10**6) == plain["head"](10**6)
    for name in ("int8", "int4"):
        widened = expected_s(MIXTRAL, RATES, precision=Precision.uniform(name))
        assert widened["experts"](10**6, 8) == plain["experts"](10**6, 8)


@pytest.mark.parametrize("precision", [Precision(experts="fp8"), Precision(rest="fp8")])
def test_fp8_needs_a_device_that_has_it(precision: Precision) -> None:
    """The A100 is named; a cache in fp8 is only stored."""
    with pytest.raises(ProfileError, match=r"a100-sxm-80gb: no fp8_flop_per_s.*int8 or int4") as e:
        expected_s(MIXTRAL, Rates.of(A100), precision=precision)
    assert "\n" not in str(e.value)
    expected_s(MIXTRAL, Rates.of(A100), precision=Precision(kv="fp8"))


def test_a_model_without_experts_reads_its_ffn() -> None:
    """Llama 3 8B: 3 x 4096 x 14336 parameters a layer, as a projection; one row each of one."""
    ffn = 3 * 4096 * 14336
    durations = expected_s(LLAMA, RATES)
    assert durations["experts"](1, 1) == pytest.approx(2 * ffn / 0.65e9)
    assert durations["experts"](10**5, 1) == pytest.approx(2 * ffn * 10**5 / 0.77e12)
    four = expected_s(LLAMA, RATES, part=group(H100, tensor_parallel=4))
    assert four["experts"](1, 1) == pytest.approx(2 * ffn / 4 / 0.65e9)
    assert uniform_popularity(LLAMA) == [[1.0]] * 32


def test_plain_layers_among_others_are_spread_over_all() -> None:
    """One layer of four has an FFN of 3 x 64 x 256, the others experts."""
    durations = expected_s(PARTLY, RATES)
    attention = 64 * 16 * (2 * 4 + 2 * 2)
    ffn, expert = 3 * 64 * 256, 3 * 64 * 32
    assert durations["projections"](1) == pytest.approx(2 * (attention + ffn / 4) / 0.65e9)
    assert durations["experts"](1, 2) == pytest.approx(0.75 * 2 * 2 * expert / 0.86e9)
    assert uniform_popularity(PARTLY) == [[0.25] * 8] * 3
