"""The styles of running experts: each gives what the definition says, and the right one is used.

Run as a script under TRITON_INTERPRET=1, this file prints how far the Triton style is off.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import silu
from torch.testing import assert_close
from typer.testing import CliRunner

from engine.cli import app
from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.model.experts.choice import Choice
from engine.model.experts.choosing import SIZES, choose, fastest, sample, use_experts
from engine.model.experts.fused import most_tiles, tile_rows
from engine.model.experts.styles import STYLES, Style
from engine.model.moe import MoeLayer
from engine.model.quantised import Quantised
from engine.serve.engine import Engine, EngineConfig
from moesim.errors import EngineError
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits

HIDDEN, INNER = 16, 24

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="Triton is not installed")

Case = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]


def case(ids: Tensor, experts: int, hidden: int = HIDDEN, inner: int = INNER) -> Case:
    """Return random tokens and weights for given expert ids (T, k)."""
    generator = torch.Generator().manual_seed(ids.numel())
    x = torch.randn(len(ids), hidden, generator=generator)
    weights = torch.rand(ids.shape, generator=generator)
    gate_up = torch.randn(experts, 2 * inner, hidden, generator=generator) / hidden**0.5
    down = torch.randn(experts, hidden, inner, generator=generator) / inner**0.5
    return x, weights, ids, gate_up, down


def natural(tokens: int, experts: int, top_k: int, seed: int = 0) -> Tensor:
    """Return distinct experts for each token, (T, k)."""
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(tokens, experts, generator=generator).topk(top_k).indices


ROUTINGS = {
    "one_token": (natural(1, 4, 2), 4),
    "one_expert_a_token": (natural(9, 4, 1), 4),
    "natural": (natural(37, 8, 2), 8),
    "full_and_partial_tiles": (natural(150, 3, 2), 3),
    "odd_experts": (natural(11, 5, 3), 5),
    "many_experts": (natural(40, 33, 4), 33),
    "all_to_two": (torch.tensor([[5, 1]]).expand(70, 2).contiguous(), 8),
    "skewed": (torch.tensor([[0, 7]] * 50 + [[6, 0]]), 8),
    "last_alone": (torch.tensor([[7]] * 3), 8),
}


def defined(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    """Return the layer's output by its definition, token by token, in float64."""
    x, weights, gate_up, down = (part.double() for part in (x, weights, gate_up, down))
    out = torch.zeros_like(x)
    for token, chosen in enumerate(ids.tolist()):
        for place, expert in enumerate(chosen):
            gate, up = (gate_up[expert] @ x[token]).chunk(2)
            out[token] += weights[token, place] * (down[expert] @ (silu(gate) * up))
    return out.float()


@pytest.mark.parametrize("style", ["loop", "dense", "grouped"])
@pytest.mark.parametrize("name", ROUTINGS)
def test_styles_are_the_definition(style: str, name: str) -> None:
    """Whatever the routing, empty experts and lone tokens included."""
    ids, experts = ROUTINGS[name]
    given_case = case(ids, experts)
    assert_close(STYLES[style].run(*given_case), defined(*given_case), atol=1e-5, rtol=1e-5)


@given(
    tokens=st.integers(1, 20), experts=st.integers(1, 9), seed=st.integers(0, 99), data=st.data()
)
@settings(max_examples=25, deadline=None)
def test_styles_agree(tokens: int, experts: int, seed: int, data: st.DataObject) -> None:
    """On any routing all styles give what the loop gives."""
    top_k = data.draw(st.integers(1, experts))
    given_case = case(natural(tokens, experts, top_k, seed), experts)
    wanted = STYLES["loop"].run(*given_case)
    for style in ("dense", "grouped"):
        assert_close(STYLES[style].run(*given_case), wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("style", ["loop", "dense", "grouped"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(style: str, dtype: torch.dtype) -> None:
    """Rounding to half precision leaves a result within a few of its steps."""
    x, weights, ids, gate_up, down = case(*ROUTINGS["natural"])
    halves = x.to(dtype), weights, ids, gate_up.to(dtype), down.to(dtype)
    out = STYLES[style].run(*halves)
    assert out.dtype == dtype
    error = (out.float() - defined(x, weights, ids, gate_up, down)).abs().max()
    assert error < 8 * torch.finfo(dtype).eps


def test_dense_keeps_overflow_out() -> None:
    """A token that would overflow at an expert that it does not visit is not harmed by it."""
    x, weights, ids, gate_up, down = case(torch.tensor([[0], [1]]), experts=2)
    x[0] *= 1e15
    gate_up[1] *= 1e15
    x[1] *= 1e-15
    out = STYLES["dense"].run(x, weights, ids, gate_up, down)
    assert out.isfinite().all()


def test_most_tiles() -> None:
    """No routing needs more tiles than are launched, and some routing needs them all."""
    for visits in range(1, 30):
        for experts in (1, 2, 3):
            rows = 4
            worst = max(
                sum(-(-count // rows) for count in counts) for counts in splits(visits, experts)
            )
            assert most_tiles(visits, experts, rows) == worst


def splits(total: int, parts: int) -> list[tuple[int, ...]]:
    """Return all ways to share `total` among `parts`."""
    if parts == 1:
        return [(total,)]
    return [
        (first, *rest) for first in range(total + 1) for rest in splits(total - first, parts - 1)
    ]


def interpreted_errors() -> dict[str, float]:
    """Return the largest error of the Triton style in each case, in Triton's interpreter."""
    run = STYLES["triton"].run
    cases = {name: case(ids, experts) for name, (ids, experts) in ROUTINGS.items()}
    # Shapes that no block divides, and more than one step and column of blocks.
    cases["ragged_shape"] = case(natural(5, 4, 2), 4, hidden=41, inner=35)
    cases["several_blocks"] = case(natural(5, 4, 2), 4, hidden=96, inner=72)
    errors = {name: run(*each) - defined(*each) for name, each in cases.items()}
    x, weights, ids, gate_up, down = cases["natural"]
    half = run(x.half(), weights, ids, gate_up.half(), down.half())
    errors["float16"] = (half.float() - defined(*cases["natural"])) / torch.finfo(half.dtype).eps
    return {name: error.abs().max().item() for name, error in errors.items()}


@needs_triton
def test_triton_is_the_definition() -> None:
    """Triton's interpreter runs the kernels on the CPU; float16 is off by a few of its steps."""
    ran = subprocess.run(
        [sys.executable, __file__],
        env=os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(Path(__file__).parents[2])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    errors = json.loads(ran.stdout)
    assert errors.keys() == {*ROUTINGS, "ragged_shape", "several_blocks", "float16"}
    assert errors.pop("float16") < 8
    assert max(errors.values()) < 1e-5, errors


def test_tile_rows_hold_an_even_share() -> None:
    """Tiles grow with the batch, from Triton's least to what registers hold."""
    rows = [tile_rows(visits, experts=8) for visits in (1, 128, 129, 512, 10**6)]
    assert rows == [16, 16, 32, 64, 128]


@pytest.fixture
def decoder(checkpoint: Path) -> Decoder:
    return load_decoder(checkpoint)


@pytest.fixture
def layer(decoder: Decoder) -> MoeLayer:
    return decoder.moe_layers[0]


def engine_of(decoder: Decoder, experts: str) -> Engine:
    limits = Limits(max_num_seqs=4, max_batched_tokens=32, max_model_len=128)
    return Engine(decoder, EngineConfig(limits=limits, num_blocks=40, experts=experts))


@pytest.mark.parametrize("told", ["auto", "loop", "dense", "grouped"])
def test_engine_runs_the_style(
    decoder: Decoder, oracle: Callable[..., Any], prompts: list[list[int]], told: str
) -> None:
    """Told a style, the engine answers with it as transformers does."""
    engine = engine_of(decoder, told)
    used = {layer.choice(8).name for layer in decoder.moe_layers}
    assert used == {"grouped" if told == "auto" else told}
    for number, prompt in enumerate(prompts):
        record = Record(request_id=number, prompt_tokens=len(prompt), output_tokens=5)
        engine.submit(record, prompt)
    while engine.step():
        pass
    for number, prompt in enumerate(prompts):
        known = torch.tensor([prompt + engine.outputs[number]])
        with torch.inference_mode():
            wanted = oracle(known).logits[0].argmax(dim=-1).tolist()
        assert engine.outputs[number] == wanted[len(prompt) - 1 : -1]


def test_a_choice_has_ranges() -> None:
    """Each style up to its bound, the last beyond."""
    choice = Choice((STYLES["dense"], STYLES["loop"], STYLES["grouped"]), bounds=(4, 10))
    assert [choice(tokens).name for tokens in (1, 4, 5, 10, 11)] == [
        "dense",
        "dense",
        "loop",
        "loop",
        "grouped",
    ]
    assert str(choice) == "dense to 4 tokens, loop to 10 tokens, grouped beyond"


def test_the_fastest_is_chosen(layer: MoeLayer) -> None:
    """The loop wins everywhere but at 64 tokens, where dense does; bounds lie between by ratio."""
    best = dict(zip(SIZES, ("loop", "loop", "dense", "loop", "loop"), strict=True))
    choice = fastest(quantised(layer), lambda _, style, size: float(style.name != best[size]))
    assert [style.name for style in choice.styles] == ["loop", "dense", "loop"]
    assert choice.bounds == (22, 181)


def quantised(layer: MoeLayer) -> MoeLayer:
    """Return the layer with int8 weights, which no kernel runs."""
    gate_up = layer.gate_up
    assert isinstance(gate_up, torch.Tensor)
    del layer.gate_up
    layer.gate_up = Quantised.of(gate_up.data, "int8")
    return layer


def test_a_style_that_fails_is_not_chosen(
    layer: MoeLayer, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does it end the engine, unless nothing else runs."""

    def timed(_: MoeLayer, style: Style, size: int) -> float:
        if style.name == "loop":
            raise AssertionError("no such layout\nat line 7")
        return 1.0

    choice = fastest(quantised(layer), timed)
    assert [style.name for style in choice.styles] == ["dense"]
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "experts: loop: fails at 1 tokens: no such layout"
    assert len(told) == len(SIZES)

    def failing(*_: object) -> float:
        raise TypeError

    with pytest.raises(EngineError, match="no style runs 1 tokens here; take loop or dense"):
        fastest(layer, failing)


def raced(layer: MoeLayer) -> set[str]:
    """Return the styles that are timed to find a layer's fastest."""
    seen: set[str] = set()

    def timed(_: MoeLayer, style: Style, size: int) -> float:
        seen.add(style.name)
        return float(size)

    fastest(layer, timed)
    return seen


def test_what_cannot_run_or_waits_is_not_timed(layer: MoeLayer) -> None:
    """Neither Triton, as the device is none of its own, nor the baselines beside a kernel."""
    assert raced(layer) == {"grouped"}


def test_the_loop_where_no_kernel_is(layer: MoeLayer) -> None:
    """Quantised weights run in no kernel; the loop then races the baseline of all experts."""
    assert raced(quantised(layer)) == {"loop", "dense"}


def test_auto_falls_back_to_the_loop(decoder: Decoder) -> None:
    """Rows that are no multiple of 16 bytes are not for torch's grouped product."""
    layer = decoder.moe_layers[0]
    layer.gate_up = torch.nn.Parameter(torch.zeros(4, 2 * 48, 33), requires_grad=False)
    assert choose(layer, "auto")(1).name == "loop"


def test_a_sample_visits_distinct_experts(layer: MoeLayer) -> None:
    """What styles are timed on is routed as a router routes."""
    x, weights, ids = sample(layer, tokens=50)
    assert x.shape == (50, 32)
    assert weights.shape == ids.shape == (50, 2)
    assert (ids[:, 0] != ids[:, 1]).all()
    assert len(ids.unique()) == layer.num_experts


def test_unknown_style(decoder: Decoder) -> None:
    """A style that does not exist is refused with those that do."""
    with pytest.raises(EngineError, match="'swift' is none of auto, loop, dense, grouped, triton"):
        use_experts(decoder, "swift")


@pytest.mark.skipif(torch.cuda.is_available(), reason="says what a host without a GPU is told")
def test_triton_needs_a_gpu(decoder: Decoder) -> None:
    """On a host without one it is refused with what would run."""
    with pytest.raises(EngineError, match=r"triton: Triton .*; take loop or dense or grouped"):
        use_experts(decoder, "triton")


def test_the_server_passes_the_style(checkpoint: Path) -> None:
    """`serve --experts` reaches the engine, which refuses what it does not know."""
    words = ["serve", "--model", f"tiny={checkpoint}", "--port", "0", "--experts", "swift"]
    result = CliRunner().invoke(app, words)
    assert result.exit_code == 2
    assert "experts: 'swift' is none of" in result.stderr


@pytest.mark.gpu
@needs_cuda
@pytest.mark.parametrize("style", ["dense", "grouped", "triton"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ROUTINGS)
def test_cuda_styles(style: str, dtype: torch.dtype, name: str) -> None:
    """On the GPU too, in every number format; float32 is not rounded to less on the way."""
    ids, experts = ROUTINGS[name]
    x, weights, _, gate_up, down = case(ids, experts, hidden=64, inner=128)
    parts = [part.cuda() for part in (x.to(dtype), weights, ids, gate_up.to(dtype), down.to(dtype))]
    if blocked := STYLES[style].obstacle(parts[3]):
        pytest.skip(blocked)
    wanted = defined(x.to(dtype), weights, ids, gate_up.to(dtype), down.to(dtype))
    step = max(torch.finfo(dtype).eps, 1e-6)
    assert_close(STYLES[style].run(*parts).float().cpu(), wanted, atol=16 * step, rtol=16 * step)


@pytest.mark.gpu
@needs_cuda
def test_cuda_choice_can_be_captured(checkpoint: Path) -> None:
    """What is measured as fastest for one token can be captured in a graph, as decodes need it."""
    decoder = load_decoder(checkpoint, "cuda")
    choice = use_experts(decoder, "auto")
    assert choice(1).capturable


if __name__ == "__main__":
    print(json.dumps(interpreted_errors()))
