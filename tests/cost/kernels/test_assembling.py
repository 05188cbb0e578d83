"""Profiles from kernels: every operation, for every group, and what they rest on."""

import numpy as np
import pytest

from moesim import simulate
from moesim.cost.curves import Fan
from moesim.cost.expected import PASS_S, Rates, expected_s, uniform_popularity
from moesim.cost.imbalance import largest_share
from moesim.cost.iteration import CostModel
from moesim.cost.kernels.assembling import assembled_profile
from moesim.cost.kernels.elementwise import PASS_SHARE
from moesim.cost.kernels.experts import drawn
from moesim.cost.kernels.gemm import Gemms
from moesim.cost.kernels.tables import Kernels, load_kernels
from moesim.cost.kernels.uncertainty import SOFTWARE, added
from moesim.cost.kernels.waves import form_named
from moesim.cost.profile import COORDINATES, Profile
from moesim.cost.residuals import resampled
from moesim.cost.roofline import launch_s, on_slice
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice, group, mig_slices
from moesim.scenario import scenario_from

H100 = load_device("h100-sxm-80gb")
MIXTRAL = load_model("mixtral-8x7b")
LIMITS = {"max_batched_tokens": 4096, "max_num_seqs": 64}
FP8 = Precision.uniform("fp8")


@pytest.fixture(scope="module")
def kernels() -> Kernels:
    return load_kernels("h100-sxm-80gb")


@pytest.fixture(scope="module")
def whole(kernels: Kernels) -> Profile:
    return assembled_profile(kernels, MIXTRAL, H100, **LIMITS)


def _of(profile: Profile, name: str, *at: float) -> float:
    return next(cell.median_s for cell in profile.operations[name] if cell.at == at)


def _us(kernels: Kernels, n: int, k: int, tokens: int, name: str = "bf16") -> float:
    curve = next(c for c in kernels.gemm if (c.format, c.n, c.k) == (name, n, k))
    return dict(zip(curve.tokens, curve.us, strict=True))[tokens] * 1e-6


def _pass_s(moved: float, tokens: float) -> float:
    return PASS_S + 2 * moved * tokens / (3.35e12 * PASS_SHARE)


def test_every_operation_is_there(whole: Profile) -> None:
    """With what it rests on; what no table has is said."""
    assert set(whole.operations) == set(COORDINATES)
    assert whole.source == "kernels"
    assert whole.rests_on("experts") == "interpolated"
    assert whole.rests_on("host") == whole.rests_on("sampling") == "roofline"
    assert any("host's own time is in no table" in words for words in whole.verdict.warnings)
    assert any("TensorRT-LLM 1.3.0rc20" in words for words in whole.verdict.warnings)


@pytest.mark.parametrize("ranks", [1, 2, 4, 8])
def test_each_rank_is_looked_up_by_its_own_shapes(kernels: Kernels, ranks: int) -> None:
    """QKV and O of a rank, from the file's own points; experts likewise."""
    part = group(H100, tensor_parallel=ranks)
    profile = assembled_profile(kernels, MIXTRAL, H100, part=part, **LIMITS)
    wide, queries = 6144 // ranks, 4096 // ranks
    products = _us(kernels, wide, 4096, 1024) + _us(kernels, 4096, queries, 1024)
    wanted = products + _pass_s(4 * 4096, 1024)
    assert _of(profile, "projections", 1024) == pytest.approx(wanted)
    moe = next(
        c for c in kernels.moe
        if (c.hidden, c.tensor_parallel, c.expert_parallel, c.format, c.distribution)
        == (4096, ranks, 1, "bf16", "balanced")
    )  # fmt: skip
    points = dict(zip(moe.tokens, moe.us, strict=True))
    assert _of(profile, "experts", 4096, 8) == pytest.approx(points[4096] * 1e-6, rel=1e-6)
    assert _of(profile, "experts", 1, 2) == pytest.approx(points[1] * 1e-6, rel=1e-6)
    assert ("collectives" in profile.operations) == (ranks > 1)
    if ranks > 1:
        curve = next(c for c in kernels.collectives if c.ranks == ranks)
        sizes = dict(zip(curve.bytes, curve.us, strict=True))
        assert _of(profile, "collectives", 1024) == pytest.approx(2 * sizes[2**23] * 1e-6)


def test_decoding_attention_is_the_tables(kernels: Kernels, whole: Profile) -> None:
    """Within a hundredth of the layer's time at every measured batch and context that is served."""
    curve = next(c for c in kernels.decode if (c.heads, c.kv_heads, c.kv_format) == (32, 8, "bf16"))
    fan = Fan.through(whole.operations["attention_decode"])
    for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True):
        if batch <= 64 and 128 <= context <= MIXTRAL.max_position_embeddings:
            rest = _of(whole, "projections", batch) + _of(whole, "experts", batch, 8)
            seconds = us * 1e-6
            off = fan(batch, batch * context) - seconds
            assert abs(off) < 0.04 * (rest + seconds)


def test_a_dense_model_has_its_ffn_for_an_expert(kernels: Kernels) -> None:
    """Two products, of which this table has neither, and the activation between."""
    profile = assembled_profile(kernels, load_model("llama-3-8b"), H100, **LIMITS)
    best = 2 * 3 * 4096 * 14336 * 4096 / 9.89e14
    assert best < _of(profile, "experts", 4096, 1) < 2 * best
    assert profile.rests_on("experts") == "interpolated"


def test_narrow_weights_are_read_from_narrow_tables(kernels: Kernels) -> None:
    """Half the bytes: faster where few tokens are multiplied, head and cache as they were."""
    narrow = assembled_profile(kernels, MIXTRAL, H100, precision=FP8, **LIMITS)
    wide = assembled_profile(kernels, MIXTRAL, H100, **LIMITS)
    products = _us(kernels, 6144, 4096, 1024, "fp8") + _us(kernels, 4096, 4096, 1024, "fp8")
    wanted = products + _pass_s(4 * 4096, 1024)
    assert _of(narrow, "projections", 1024) == pytest.approx(wanted)
    assert _of(narrow, "experts", 8, 8) < 0.65 * _of(wide, "experts", 8, 8)
    for name in ("head", "attention_prefill"):
        assert narrow.operations[name] == wide.operations[name]


def test_half_precision_is_as_fast_as_the_other_sixteen_bits(kernels: Kernels) -> None:
    """Tensor cores have one rate for both."""
    half = assembled_profile(kernels, MIXTRAL, H100, precision=Precision.uniform("fp16"), **LIMITS)
    assert half.operations == assembled_profile(kernels, MIXTRAL, H100, **LIMITS).operations


def test_nothing_falls_with_tokens(kernels: Kernels) -> None:
    """Nor with sequences, context or experts hit; and nothing is negative."""
    for part in (None, group(H100, expert_parallel=4)):
        profile = assembled_profile(kernels, MIXTRAL, H100, part=part, **LIMITS)
        model = CostModel(profile, **LIMITS)
        tokens = np.array(model.tables.tokens[1:])
        assert np.all(tokens > 0)
        assert np.all(np.diff(tokens) >= -1e-12)
        rows = {cell.at: cell.median_s for cell in profile.operations["experts"]}
        assert all(
            rows[t, d] <= rows[t, d + 1] for t, d in rows if (t, d + 1) in rows
        )  # fmt: skip


def test_the_most_loaded_rank_of_dealt_experts_counts(kernels: Kernels) -> None:
    """It takes longer than a balanced one, and less than one device with all of them."""
    part = group(H100, expert_parallel=4)
    even = assembled_profile(kernels, MIXTRAL, H100, part=part, **LIMITS)
    shares = [[0.6, 0.6, 0.2, 0.2, 0.1, 0.1, 0.1, 0.1]] * 32
    uneven = assembled_profile(kernels, MIXTRAL, H100, part=part, popularity=shares, **LIMITS)
    whole = assembled_profile(kernels, MIXTRAL, H100, **LIMITS)
    wanted = [_of(profile, "experts", 4096, 8) for profile in (even, uneven, whole)]
    assert wanted == sorted(wanted)


def test_a_group_of_a_profile_is_looked_up_and_redrawn_alike(whole: Profile) -> None:
    """`on_slice` goes to the tables; a profile redrawn within its errors stays so on a group."""
    part = group(H100, tensor_parallel=2)
    found = on_slice(whole, H100, part)
    drawn = resampled(whole, np.random.default_rng(3))
    on_group = on_slice(drawn, H100, part)
    factors = {
        round(cell.median_s / before.median_s, 9)
        for name, cells in on_group.operations.items()
        for cell, before in zip(cells, found.operations[name], strict=True)
        if before.median_s
    }
    assert len(factors) == 1
    factor = _of(drawn, "projections", 1024) / _of(whole, "projections", 1024)
    assert factors.pop() == pytest.approx(factor)
    assert factor != 1.0


def test_a_part_of_a_device_is_scaled(whole: Profile, kernels: Kernels) -> None:
    """Half the bandwidth doubles what reads, beyond its launches; it is called scaled."""
    half = Slice(name="h", compute_share=0.5, bandwidth_share=0.5, memory_bytes=1)
    found = assembled_profile(kernels, MIXTRAL, H100, part=half, **LIMITS)
    assert found.source == "scaled"
    experts = expected_s(MIXTRAL, Rates.of(H100))["experts"]
    fixed_s = launch_s(whole.operations["experts"], experts)
    before_s = _of(whole, "experts", 8, 8)
    assert 0 < fixed_s < 0.2 * before_s
    assert _of(found, "experts", 8, 8) == pytest.approx(2 * before_s - fixed_s)
    (instance,) = mig_slices(H100, ["3g.40gb"])
    assert on_slice(whole, H100, instance).source == "scaled"


def test_errors_of_whole_iterations_are_those_of_kernels_and_software(whole: Profile) -> None:
    """Software's are the larger; they feed the intervals."""
    verdict = whole.verdict
    assert len(verdict.iteration_residuals) == 19
    assert verdict.iteration_residuals == sorted(verdict.iteration_residuals)
    ends = np.quantile(added(), (0.05, 0.95)) - 1
    assert verdict.iteration_residuals[0] == pytest.approx(ends[0], abs=0.06)
    assert verdict.iteration_residuals[-1] == pytest.approx(ends[1], abs=0.15)


def test_an_engine_does_not_speak_for_itself() -> None:
    """Left out by name, on all its devices; of a name nobody knows nothing is."""
    names = {each.name for each in SOFTWARE}
    assert {len(added(name)) for name in names} < set(range(len(added())))
    assert len(added("TensorRT-LLM 0.14")) == len(added()) - 30
    assert np.array_equal(added("none of these"), added())


def test_every_engine_counts_alike() -> None:
    """Ten quantiles each, rising."""
    assert {len(each.slower) for each in SOFTWARE} == {10}
    assert all(list(each.slower) == sorted(each.slower) for each in SOFTWARE)


@pytest.mark.parametrize(
    ("device", "name", "words"),
    [
        ("h200-sxm-141gb", None, "measured on h100-sxm-80gb, hardware.device is h200-sxm-141gb"),
        ("h100-sxm-80gb", "int4", "no products in int4 in these kernels, which have bf16, fp8"),
        ("h100-sxm-80gb", "fp32", "no products in fp32"),
    ],
)
def test_what_the_tables_have_not_is_refused(
    kernels: Kernels, device: str, name: str | None, words: str
) -> None:
    """One line, with what there is."""
    precision = Precision.uniform(name) if name else None
    with pytest.raises(ProfileError, match=words):
        assembled_profile(kernels, MIXTRAL, load_device(device), precision=precision, **LIMITS)


def _scenario(**changed: object) -> dict[str, object]:
    return {
        "name": "t",
        "duration_s": 10,
        "models": {"m": {"architecture": "mixtral-8x7b", "profile": "h100-sxm-80gb"}},
        "tenants": {
            "a": {
                "model": "m",
                "arrivals": {"kind": "poisson", "rate_per_s": 4},
                "prompt_tokens": {"kind": "fixed", "tokens": 700},
                "output_tokens": {"kind": "fixed", "tokens": 60},
            }
        },
        "hardware": {"device": "h100-sxm-80gb", "count": 2},
        "deployment": {"kind": "tensor_parallel", "tensor_parallel": 2},
    } | changed


def test_a_scenario_names_a_device_s_kernels() -> None:
    """And is answered from them, jumping or stepping."""
    scenario = scenario_from(_scenario())
    result = simulate(scenario)
    assert result.basis["experts"] == "interpolated"
    assert result.basis["collectives"] == "interpolated"
    assert result.basis["sampling"] == "roofline"
    assert "host" not in result.basis  # it takes no time, which rests on nothing
    stepped = simulate(scenario, stepwise=True)
    for name in ("first_token_s", "finish_s"):
        assert result.records[name].to_numpy() == pytest.approx(
            stepped.records[name].to_numpy(), abs=1e-9
        )


def test_a_scenario_of_another_device_or_format_is_refused() -> None:
    """The line names the model."""
    other = {"device": "h200-sxm-141gb", "count": 2}
    with pytest.raises(ProfileError, match=r"models\.m\.profile: kernels measured on h100"):
        simulate(scenario_from(_scenario(hardware=other)))
    models = {
        "m": {"architecture": "mixtral-8x7b", "profile": "h100-sxm-80gb", "precision": "int8"}
    }
    with pytest.raises(ProfileError, match=r"models\.m\.precision: no products in int8"):
        simulate(scenario_from(_scenario(models=models)))


def test_tokens_that_visit_other_ranks_are_passed_over(kernels: Kernels) -> None:
    """On a rank drawn from one with all experts: 4,096 tokens less its own visits, in and out."""
    undealt = tuple(curve for curve in kernels.moe if curve.expert_parallel == 1)
    part = group(H100, expert_parallel=4)
    less = kernels.model_copy(update={"moe": undealt})
    profile = assembled_profile(less, MIXTRAL, H100, part=part, **LIMITS)
    balanced = next(
        c for c in undealt
        if (c.hidden, c.tensor_parallel, c.format, c.distribution) == (4096, 1, "bf16", "balanced")
    )  # fmt: skip
    visits, hit = largest_share(uniform_popularity(MIXTRAL), 4096, 4)
    own_s = drawn([balanced]).seconds(2 * 4096 * visits, 8 * hit)
    beside_s = 4096 * (1 - visits) * 2 * 4096 * 2 / (3.35e12 * PASS_SHARE)
    assert _of(profile, "experts", 4096, 8) == pytest.approx(own_s + beside_s)


def test_products_follow_the_form_that_the_file_names() -> None:
    """A width that A100's table lacks: Llama 3's head and FFN, where waves step for themselves."""
    kernels, device = load_kernels("a100-sxm-80gb"), load_device("a100-sxm-80gb")
    spec = load_model("llama-3-8b")
    waves = assembled_profile(kernels, spec, device, **LIMITS)
    plain = assembled_profile(kernels.model_copy(update={"products": {}}), spec, device, **LIMITS)
    forms = {"bf16": form_named("waves", device)}
    gemms = Gemms([c for c in kernels.gemm if c.format == "bf16"], Rates.of(device), forms)
    tokens = np.array([512.0])
    wide = gemms.seconds("bf16", 28672, 4096, tokens)[0] + gemms.seconds(
        "bf16", 4096, 14336, tokens
    )[0]  # fmt: skip
    passed_s = PASS_S + 2 * 3 * 14336 * 512 / (2.039e12 * PASS_SHARE)
    assert _of(waves, "experts", 512, 1) == pytest.approx(float(wide[0]) + passed_s)
    assert _of(waves, "experts", 512, 1) != pytest.approx(_of(plain, "experts", 512, 1), rel=0.005)


def test_no_kernel_beats_the_datasheet(kernels: Kernels, whole: Profile) -> None:
    """Weights of a layer cannot be read faster than the memory allows."""
    rates = Rates.of(H100)
    expert_bytes = 2 * MIXTRAL.expert_parameters
    for cell in whole.operations["experts"]:
        assert cell.median_s > 0.99 * min(8, cell.at[1]) * expert_bytes / rates.bytes_per_s
