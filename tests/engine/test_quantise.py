"""Weights in fewer bits: no further off than half a step, no larger than the planner reckons."""

from collections.abc import Callable
from itertools import product
from math import sqrt
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.functional import ScalingType, linear, scaled_mm
from torch.testing import assert_close
from typer.testing import CliRunner

from calibration.models import open_model
from engine.cli import app
from engine.model import projection, quantised
from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.model.experts.choosing import use_experts
from engine.model.experts.styles import STYLES
from engine.model.parallel import Rank
from engine.model.projection import (
    TILE,
    TILE_BYTES,
    fp8_product,
    multiplies_fp8,
    project,
    tiled_product,
)
from engine.model.quantise import blank_decoder, bytes_of, held_bytes, precision_of, quantise
from engine.model.quantised import CODINGS, Quantised
from engine.model.step import PagedKvCache
from engine.serve import memory
from engine.serve.generate import generate
from engine.server.hosting import Hosting, service_of
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.serving.scheduling import Limits

BLOCK_SIZE, NUM_BLOCKS = 4, 32
ROUNDING = 1e-4
"""Steps that float32 may add to half a step: codes up to 127 are divided and multiplied back with
relative errors of 2^-24 each, which is 2e-5 steps, and as much again for the scale."""

MIXTRAL = ModelSpec(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, num_local_experts=3, num_experts_per_tok=2, vocab_size=97,
    max_position_embeddings=128,
)  # fmt: skip
LLAMA = ModelSpec(
    hidden_size=256, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4,
    num_key_value_heads=2, head_dim=64, num_local_experts=0, num_experts_per_tok=0, vocab_size=97,
    max_position_embeddings=128, model_type="llama", dense_layers=(0, 1),
    dense_intermediate_size=512, tie_word_embeddings=True,
)  # fmt: skip
PRECISIONS = [
    Precision(experts=experts, rest=rest)
    for experts, rest in product(("bf16", "fp8", "int8", "int4"), repeat=2)
]

every_format = pytest.mark.parametrize("number", CODINGS)
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_sm90 = pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() < (9, 0),
    reason="no device that multiplies fp8 with a scale a row",
)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def furthest(weight: Tensor, number: str) -> Tensor:
    """Return how far each weight (..., out, in) may be off, worked out from the weights alone.

    int8: 255 codes from -m to m, the row's largest, are steps of m / 127. int4: 16 codes from the
    least to the largest of a group and 0; rounding the scale to float16, upwards, widens a step by
    2^-10 or 2^-24 at most. fp8: 3 bits after the leading one are off by a 16th of their half at
    most, and below 2^-6 steps are 2^-9, where 448 is the row's largest.
    """
    half = 0.5 + ROUNDING
    largest = weight.abs().amax(-1, keepdim=True)
    if number == "int8":
        return (half * largest / 127).expand_as(weight)
    if number == "fp8":
        return torch.maximum(weight.abs() / 16, largest / 448 * 2**-10) * (1 + ROUNDING)
    steps = []
    for group in weight.split(128, dim=-1):
        extent = group.amax(-1, keepdim=True).clamp(min=0) - group.amin(-1, keepdim=True).clamp(
            max=0
        )
        steps.append((extent / 15 * (1 + 2**-10) + 2**-24).expand_as(group))
    return half * torch.cat(steps, dim=-1)


@every_format
@pytest.mark.parametrize("shape", [(6, 384), (3, 5, 200), (2, 1), (1, 129)])
def test_half_a_step(number: str, shape: tuple[int, ...]) -> None:
    """No weight is further off than half a step, matrices and stacks of them alike."""
    weight = normal(*shape)
    error = (Quantised.of(weight, number).dequantised() - weight).abs()
    assert (error <= furthest(weight, number)).all()


@given(
    number=st.sampled_from(sorted(CODINGS)),
    rows=st.integers(1, 5),
    width=st.integers(1, 400),
    scale=st.sampled_from([1e-30, 1e-6, 1.0, 3e4]),
    offset=st.sampled_from([-3.0, 0.0, 3.0]),
    seed=st.integers(0, 99),
)
@settings(max_examples=60, deadline=None)
def test_any_rows(
    number: str, rows: int, width: int, scale: float, offset: float, seed: int
) -> None:
    """Widths that no group divides, tiny and large weights, and rows all of one sign."""
    weight = scale * (normal(rows, width, seed=seed) + offset)
    held = Quantised.of(weight, number)
    assert held.shape == weight.shape
    assert ((held.dequantised() - weight).abs() <= furthest(weight, number)).all()
    excess = held.nbytes - FORMATS[number].bytes_of(weight.numel())
    # A scale of 4 B a row; or 2.5 B for a group that a row begins, and half bytes twice.
    assert 0 <= excess <= (3.5 if number == "int4" else 4) * rows


@every_format
def test_a_round_trip_ends(number: str) -> None:
    """Numbers that came from codes have codes that give them back."""
    once = Quantised.of(normal(4, 256), number).dequantised()
    twice = Quantised.of(once, number).dequantised()
    assert_close(twice, once, rtol=1e-3 if number == "int4" else 1e-6, atol=1e-6)


@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounded_once(number: str, dtype: torch.dtype) -> None:
    """In any format of activations the numbers are those of float32, rounded."""
    held = Quantised.of(normal(5, 300).to(dtype), number)
    assert held.dtype == dtype
    assert torch.equal(held.dequantised(), held.dequantised(torch.float32).to(dtype))


@every_format
def test_zeros_stay(number: str) -> None:
    """Rows of zeros, and zeros in other rows, are exactly zero."""
    weight = normal(3, 256)
    weight[1] = 0.0
    weight[:, ::3] = 0.0
    numbers = Quantised.of(weight, number).dequantised()
    assert (numbers[weight == 0] == 0).all()


@every_format
@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_no_number(number: str, bad: float) -> None:
    """A broken checkpoint is said to be one."""
    weight = normal(3, 256)
    weight[2, 7] = bad
    with pytest.raises(EngineError, match=f"infinite, not a number or too large for {number};"):
        Quantised.of(weight, number)


def test_beyond_the_scale() -> None:
    """A step above float16's largest number, 65504, cannot be held."""
    Quantised.of(torch.tensor([[15.0 * 65000]]), "int4")
    with pytest.raises(EngineError, match="too large for int4"):
        Quantised.of(torch.tensor([[15.0 * 66000]]), "int4")


@every_format
def test_one_expert_of_a_stack(number: str) -> None:
    """An expert's weight is a view, and is what it would be alone."""
    stack = normal(3, 4, 200)
    held = Quantised.of(stack, number)
    assert torch.equal(held[1].dequantised(), Quantised.of(stack[1], number).dequantised())
    assert held[1].codes.data_ptr() == held.codes[1].data_ptr()


@every_format
def test_encoded_some_rows_at_a_time(monkeypatch: pytest.MonkeyPatch, number: str) -> None:
    """How many rows become codes together changes nothing."""
    stack = normal(3, 5, 200)
    whole = Quantised.of(stack, number)
    monkeypatch.setattr(quantised, "ENCODED_AT_ONCE", 400)
    assert_close(Quantised.of(stack, number).state_dict(), whole.state_dict(), rtol=0, atol=0)


@every_format
@pytest.mark.parametrize("tile", [1, 700, 1 << 20])
def test_products_are_as_good_as_weights(
    monkeypatch: pytest.MonkeyPatch, number: str, tile: int
) -> None:
    """In tiles of any height, a product is off by at most what its weights may be off together."""
    monkeypatch.setitem(TILE, "cpu", tile)
    x, weight, bias = normal(7, 200, seed=1), normal(30, 200), normal(30, seed=2)
    wanted = linear(x.double(), weight.double(), bias.double())
    error = (project(x, Quantised.of(weight, number), bias).double() - wanted).abs()
    rounding = 200 * 2**-24 * linear(x.abs(), weight.abs())  # of a sum of 200 in float32
    assert (error <= linear(x.abs(), furthest(weight, number)) + rounding + 1e-6).all()


def furthest_fp8_product(x: Tensor, weight: Tensor) -> Tensor:
    """Return how far a product (T, out) may be off where activations are narrowed too.

    Their error meets the narrowed weights, that of the weights the activations as they were; then
    the sum is rounded to bfloat16, 2^-8 of it at most, as is what float32 sums up on the way.
    """
    off_x, off_weight = furthest(x, "fp8"), furthest(weight, "fp8")
    narrowed = linear(off_x, weight.abs() + off_weight) + linear(x.abs(), off_weight)
    return narrowed + 2**-8 * (linear(x, weight).abs() + narrowed) + 1e-6


def test_fp8_by_fp8() -> None:
    """With activations narrowed a token, a product is off by what both may be off together."""
    x, weight = normal(9, 256, seed=1).bfloat16(), normal(32, 256).bfloat16()
    x[3] = 0.0
    product = fp8_product(x, Quantised.of(weight, "fp8")).float()
    assert (product[3] == 0).all()
    x, weight = x.float(), weight.float()
    assert ((product - linear(x, weight)).abs() <= furthest_fp8_product(x, weight)).all()


def test_fp8_by_fp8_without_scales_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a library refuses them, the product is scaled, and as good."""
    refused = []

    def particular(codes: Tensor, other: Tensor, *scaling: Any, **told: Any) -> Tensor:
        if ScalingType.RowWise in scaling:
            refused.append(codes.shape)
            raise RuntimeError("CUBLAS_STATUS_NOT_SUPPORTED")
        return scaled_mm(codes, other, *scaling, **told)

    monkeypatch.setattr(projection, "scaled_mm", particular)
    x, weight = normal(9, 256, seed=1).bfloat16(), normal(32, 256).bfloat16()
    product = fp8_product(x, Quantised.of(weight, "fp8"))
    assert (refused, product.dtype) == ([(9, 256)], torch.bfloat16)
    x, weight = x.float(), weight.float()
    assert ((product - linear(x, weight)).abs() <= furthest_fp8_product(x, weight)).all()


def test_plain_weights_are_torchs_matter() -> None:
    """A weight that is not narrowed gives what it always gave, to the last bit."""
    x, weight, bias = normal(7, 20, seed=1), normal(30, 20), normal(30, seed=2)
    assert torch.equal(project(x, weight, bias), linear(x, weight, bias))


def all_int8(model: Decoder, number: str = "int8") -> Decoder:
    """Narrow everything that can be; what is left stays float32."""
    quantise(model, Precision.uniform(number))
    return model


def logits_of(model: Decoder, batcher: Any) -> Tensor:
    cache = PagedKvCache(model.spec, NUM_BLOCKS, BLOCK_SIZE)
    return model(batcher.step((0, 0, 9), (1, 0, 13)), cache)


def dequantised(model: Decoder) -> Decoder:
    """Put plain weights with the numbers of the narrowed ones in their place."""
    for holder in list(model.modules()):
        for name, part in list(holder.named_children()):
            if isinstance(part, Quantised):
                delattr(holder, name)
                setattr(holder, name, nn.Parameter(part.dequantised(), requires_grad=False))
    return model


@every_format
@pytest.mark.parametrize("style", ["loop", "dense"])
def test_the_model_of_the_numbers(checkpoint: Path, batcher: Any, number: str, style: str) -> None:
    """A narrowed model is the plain model of the numbers that its codes stand for."""
    narrowed = all_int8(load_decoder(checkpoint), number)
    use_experts(narrowed, style)
    plain = dequantised(all_int8(load_decoder(checkpoint), number))
    assert not any(isinstance(part, Quantised) for part in plain.modules())
    assert_close(logits_of(narrowed, batcher), logits_of(plain, batcher), atol=1e-4, rtol=1e-4)


@every_format
def test_logits_stay_close(
    mixtral: Callable[..., Any], tmp_path: Path, batcher: Any, number: str
) -> None:
    """Errors of matrices add up like independent ones: by the root of how many there are.

    Two layers have five each that a token passes (qkv, o, gate, up, down), so that matrices off by
    e make logits off by sqrt(10) e, if nothing makes errors larger; sharp attention does, and three
    times that is allowed. Tokens visit both of two experts, as another choice of experts would be
    no small error.
    """
    mixtral(num_local_experts=2).save_pretrained(tmp_path / "model")
    model = load_decoder(tmp_path / "model")
    wanted = logits_of(model, batcher)
    before = model.layers[0].qkv.data.clone()
    all_int8(model, number)
    off = (model.layers[0].qkv.dequantised() - before).norm() / before.norm()
    error = (logits_of(model, batcher) - wanted).norm() / wanted.norm()
    assert 0 < error < 3 * sqrt(10) * off


@pytest.mark.parametrize("precision", PRECISIONS, ids=lambda p: f"{p.experts}, rest {p.rest}")
@pytest.mark.parametrize("spec", [MIXTRAL, LLAMA], ids=["mixtral", "llama"])
def test_bytes_are_the_planners(spec: ModelSpec, precision: Precision) -> None:
    """Memory really held is what `moesim.facts` reckons with, and 4 B a row of 8 bits.

    Rows here are of whole groups, an even number of them, so that int4 is exact.
    """
    model = random_decoder(spec, seed=0, precision=precision)
    layers, experts = spec.num_hidden_layers, spec.expert_positions
    eight = ("fp8", "int8")
    rows = layers * (8 * 64 + 256) * (precision.rest in eight)  # qkv and o
    rows += experts * (2 * 512 + 256) * (precision.experts in eight)
    rows += len(spec.dense_layers) * (2 * 512 + 256) * (precision.rest in eight)
    assert held_bytes(model) == bytes_of(model.spec, precision) + 4 * rows
    assert model.precision == precision


@pytest.mark.parametrize("layout", [{}, {"save_original_format": False}, {"max_shard_size": "9KB"}])
def test_narrowed_while_read(oracle: Any, tmp_path: Path, layout: dict[str, Any]) -> None:
    """Read layer by layer or narrowed afterwards, a model is the same to the last bit."""
    oracle.save_pretrained(tmp_path / "model", **layout)
    precision = Precision(experts="int4", rest="int8")
    read = load_decoder(tmp_path / "model", precision=precision)
    assert read.dtype == torch.bfloat16
    later = load_decoder(tmp_path / "model", dtype=torch.bfloat16)
    quantise(later, precision)
    assert_close(read.state_dict(), later.state_dict(), rtol=0, atol=0)
    assert torch.equal(read.frequencies, later.frequencies)
    assert read.precision == later.precision == precision


def test_activations_as_told(checkpoint: Path) -> None:
    """What is not narrowed takes the dtype that is asked for."""
    model = load_decoder(checkpoint, dtype=torch.float32, precision=Precision.uniform("int8"))
    assert model.dtype == model.layers[0].qkv.dtype == torch.float32
    assert model.spec.dtype == "float32"


def test_one_whole_layer_at_a_time() -> None:
    """While a layer is filled, those before it are narrowed and those after it nowhere."""
    spec = LLAMA
    model, layers = blank_decoder(spec, "cpu", precision=Precision.uniform("int8"))
    for layer in layers:
        for other in model.decoder_layers:
            before, after = other.index < layer.index, other.index > layer.index
            assert isinstance(other.qkv, Quantised) == before
            assert other.qkv.device.type == ("meta" if after else "cpu")
        for weight in layer.parameters():
            weight.fill_(1.0)
    assert all(isinstance(layer.ffn.down, Quantised) for layer in model.decoder_layers)
    assert model.lm_head is model.embed


def test_random_weights_repeat() -> None:
    """A shipped shape made narrowed is the one made whole and narrowed then."""
    made = random_decoder(MIXTRAL, seed=3, precision=Precision.uniform("fp8"))
    whole = random_decoder(MIXTRAL, seed=3)
    quantise(whole, Precision.uniform("fp8"))
    for name, tensor in whole.state_dict().items():
        assert torch.equal(made.state_dict()[name].float(), tensor.float()), name


def test_a_rank_narrows_its_part(checkpoint: Path) -> None:
    """A rank reads and narrows what it would hold whole."""
    rank, precision = Rank(1, 2), Precision.uniform("int8")
    read = load_decoder(checkpoint, rank=rank, precision=precision)
    later = load_decoder(checkpoint, dtype=torch.bfloat16, rank=rank)
    quantise(later, precision)
    assert_close(read.state_dict(), later.state_dict(), rtol=0, atol=0)


@every_format
def test_greedy_answers_repeat(checkpoint: Path, prompts: list[list[int]], number: str) -> None:
    """The same prompts have the same answers, alone or batched."""
    model = all_int8(load_decoder(checkpoint), number)
    answers = generate(model, prompts, output_tokens=4)
    assert generate(model, prompts, output_tokens=4) == answers
    alone = [generate(model, [prompt], output_tokens=4)[0] for prompt in prompts]
    assert alone == answers


def test_styles_without_a_kernel(checkpoint: Path) -> None:
    """Chosen by itself the style is one that runs; told another, it is refused with those."""
    model = all_int8(load_decoder(checkpoint))
    assert use_experts(model, "auto")(1).name == "loop"
    refused = r"experts: grouped: .* knows no int8 weights; take loop or dense"
    with pytest.raises(EngineError, match=refused):
        use_experts(model, "grouped")
    with pytest.raises(EngineError, match=r"experts: triton: .* know no int8 weights"):
        use_experts(model, "triton")
    layer = model.moe_layers[0]
    x, (weights, ids) = normal(3, 32), layer.route(normal(3, 32))
    with pytest.raises(EngineError, match="loop and dense only"):
        STYLES["grouped"].run(x, weights, ids, layer.gate_up, layer.down)


def test_a_device_without_the_format() -> None:
    """What a device cannot hold is said before any weight is read."""
    refused = "precision: int4: not possible on meta .*; take another format or device"
    with pytest.raises(EngineError, match=refused):
        blank_decoder(MIXTRAL, "meta", precision=Precision(experts="int4"))
    with pytest.raises(EngineError, match=refused):
        quantise(Decoder(MIXTRAL, "meta"), Precision(experts="int4"))


@pytest.mark.parametrize(
    ("precision", "said"),
    [
        (
            Precision(experts="fp16", rest="int8"),
            "precision.experts: fp16 does not go with .* bf16",
        ),
        (
            Precision(experts="fp16", rest="bf16"),
            "precision.experts: fp16 does not go with .* bf16",
        ),
        (
            Precision(experts="int8", kv="fp8"),
            "precision.kv: fp8: the engine keeps keys and values",
        ),
    ],
)
def test_what_does_not_go_together(checkpoint: Path, precision: Precision, said: str) -> None:
    """One format of activations, and keys and values in it."""
    with pytest.raises(EngineError, match=said):
        load_decoder(checkpoint, precision=precision)


def test_not_the_models_format(checkpoint: Path) -> None:
    """A loaded model's plain weights are not converted."""
    with pytest.raises(EngineError, match="rest: bf16 does not go with activations in fp32; take"):
        quantise(load_decoder(checkpoint), Precision(experts="int8"))


def test_narrowed_twice_or_saved(checkpoint: Path, tmp_path: Path) -> None:
    """The weights' own values are gone; nothing pretends that they are there."""
    model = all_int8(load_decoder(checkpoint))
    with pytest.raises(EngineError, match="weights: they are quantised to int8"):
        quantise(model, Precision.uniform("int4"))
    with pytest.raises(EngineError, match="weights: they are quantised to int8"):
        save_decoder(model, tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def on_gpu(model: Decoder) -> Any:
    """Return a model that says it is on a GPU."""
    return SimpleNamespace(
        spec=model.spec,
        device=torch.device("cuda"),
        parameters=model.parameters,
        buffers=model.buffers,
        modules=model.modules,
    )


def test_blocks_beside_narrowed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """What narrowing saves, less the room for dequantised tiles, goes to KV blocks."""
    plain = random_decoder(MIXTRAL, seed=0)
    narrowed = random_decoder(MIXTRAL, seed=0, precision=Precision.uniform("int4"))
    limits = Limits(max_num_seqs=4096, max_batched_tokens=64, max_model_len=128)
    total = 1 << 28

    def blocks(model: Decoder) -> int:
        free = total - held_bytes(model)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free, total))
        return memory.default_blocks(on_gpu(model), limits, block_size=16)

    room = TILE_BYTES * (2 * 512) * 256  # for gate and up of one expert, the largest matrix
    saved = held_bytes(plain) - held_bytes(narrowed) - room
    assert saved > 0
    block_bytes = 16 * MIXTRAL.kv_bytes_per_token
    assert abs(blocks(narrowed) - blocks(plain) - saved / block_bytes) <= 1


def test_no_room_beside_narrowed_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    """The refusal names what the weights take now."""
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (0, 1 << 30))
    narrowed = random_decoder(MIXTRAL, seed=0, precision=Precision.uniform("int4"))
    limits = Limits(max_num_seqs=4, max_batched_tokens=64, max_model_len=128)
    mib = held_bytes(narrowed) / 2**20
    assert mib < 1.5 < held_bytes(random_decoder(MIXTRAL, seed=0)) / 2**20
    with pytest.raises(EngineError, match=rf"beside weights of {mib:.2f} MiB"):
        memory.default_blocks(on_gpu(narrowed), limits, 16)


def test_precision_of_words() -> None:
    """As `moesim memory` reads them: one format of all, another of all but experts."""
    assert precision_of("float32", None, "int8") == Precision(
        experts="fp32", rest="int8", kv="fp32"
    )
    assert precision_of("bfloat16", "fp8", None) == Precision.uniform("fp8")
    assert precision_of("bfloat16", "int4", "bf16") == Precision(experts="int4")


def test_serving_narrowed(checkpoint: Path) -> None:
    """A service holds what `--precision` says."""
    hosting = Hosting(precision="int4", rest_precision="int8", num_blocks=8, max_num_seqs=2)
    service = service_of({"tiny": checkpoint}, hosting)
    model = service.models["tiny"].worker.engine.runner.decoder
    assert model.precision == Precision(experts="int4", rest="int8")
    assert {part.format for part in model.modules() if isinstance(part, Quantised)} == {
        "int4",
        "int8",
    }


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--precision", "int3"], "'int3' is not one of"),
        (["--precision", "fp32", "--rest-precision", "bf16"], "fp32 does not go with"),
    ],
)
def test_the_command_refuses(checkpoint: Path, words: list[str], said: str) -> None:
    """An unknown format and one that does not go with the other, in one line."""
    told = ["serve", "--model", f"tiny={checkpoint}", "--port", "0", *words]
    result = CliRunner().invoke(app, told)
    assert result.exit_code == 2
    assert said in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_calibration_opens_narrowed(checkpoint: Path) -> None:
    """What is calibrated may be narrowed."""
    model = open_model(str(checkpoint), torch.device("cpu"), Precision.uniform("fp8"))
    assert model.precision == Precision.uniform("fp8")


@pytest.mark.gpu
@needs_sm90
@pytest.mark.parametrize("tokens", [1, 5, 300])
def test_cuda_fp8_by_fp8(tokens: int) -> None:
    """Tensor cores multiply fp8 by fp8 within what both formats allow.

    They add up to 128 products in 14 bits before float32 takes over: 2^-13 of the products' sizes.
    """
    x, weight = normal(tokens, 512, seed=1).bfloat16(), normal(96, 512).bfloat16()
    held = Quantised.of(weight.cuda(), "fp8")
    assert multiplies_fp8(x.cuda(), held)
    product = project(x.cuda(), held).float().cpu()
    x, weight = x.float(), weight.float()
    allowed = furthest_fp8_product(x, weight) + 2**-13 * linear(x.abs(), weight.abs())
    assert ((product - linear(x, weight)).abs() <= allowed).all()


@pytest.mark.gpu
@needs_cuda
@every_format
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_cuda_codes_are_the_cpus(number: str, dtype: torch.dtype) -> None:
    """A GPU dequantises what the CPU does, and multiplies with it in tiles."""
    held = Quantised.of(normal(96, 320).to(dtype), number)
    moved = Quantised(number, held.width, dtype, tuple(part.cuda() for part in held.parts))
    assert torch.equal(moved.dequantised().cpu(), held.dequantised())
    x = normal(7, 320, seed=1).to(dtype)
    step = 16 * max(torch.finfo(dtype).eps, 1e-6)
    product = tiled_product(x.cuda(), moved).cpu()
    assert_close(product, tiled_product(x, held), atol=320**0.5 * step, rtol=step)


@pytest.mark.gpu
@needs_cuda
@every_format
def test_cuda_decodes_as_graphs(prompts: list[list[int]], number: str) -> None:
    """On the GPU too, with the styles that are fastest there and graphs, answers repeat."""
    precision = Precision.uniform(number)
    model = random_decoder(MIXTRAL, seed=0, device="cuda", precision=precision)
    answers = generate(model, prompts, output_tokens=8)
    assert generate(model, prompts, output_tokens=8) == answers
    assert {style.name for style in model.moe_layers[0].choice.styles} <= {"loop", "dense"}
