"""Choosing the style of a model's experts: as told, or what is fastest on its device.

On CUDA the styles are timed at a few numbers of tokens on the model's own weights, those that can
be captured as replays of a CUDA graph, since that is how decodes will run them. The loop, which
waits for the host, is left out where a kernel does its work: alone it looks better than in a model,
where the host would queue the next layers meanwhile. So is `dense`, which runs E / k times the
arithmetic, over every slot of a store of experts. On the CPU the
answer is known beforehand and the same everywhere: there the grouped product is the reference loop
in C++, and a dense run does E / k times the arithmetic.
"""

import sys
from collections.abc import Callable
from math import sqrt
from statistics import median

import torch
from torch import Tensor

from engine.model.capture import capturing
from engine.model.decoder import Decoder
from engine.model.experts.choice import REFERENCE, Choice
from engine.model.experts.styles import STYLES, Style
from engine.model.moe import MoeLayer
from moesim.errors import EngineError

AUTO = "auto"
SIZES = (1, 8, 64, 512, 2048)
"""Tokens of the batches that are timed, from a lone decode to a large prefill."""

REPEATS = 7
RUNS = 3
"""Batches timed together, and how often the median is taken over."""


def use_experts(model: Decoder, told: str = AUTO) -> Choice:
    """Set the style of all MoE layers of a model, and return it.

    All layers have the same shape, so that one is measured for all.
    """
    if told != AUTO and told not in STYLES:
        raise EngineError(f"experts: {told!r} is none of {', '.join((AUTO, *STYLES))}")
    layers = model.moe_layers
    choice = choose(layers[0], told) if layers else REFERENCE
    for layer in layers:
        layer.choice = choice
    return choice


def choose(layer: MoeLayer, told: str) -> Choice:
    """Return the choice for a layer: the style it is told, or the fastest ones."""
    if told != AUTO:
        return Choice((_runnable(layer, told),))
    if layer.gate_up.device.type != "cuda":
        blocked = STYLES["grouped"].obstacle(layer.gate_up)
        return REFERENCE if blocked else Choice((STYLES["grouped"],))
    return fastest(layer, _timed)


def fastest(layer: MoeLayer, timed: Callable[[MoeLayer, Style, int], float]) -> Choice:
    """Return the styles that `timed` [s] finds fastest, each up to halfway to the next size.

    Halfway is by ratio: a style that wins at 8 tokens and loses at 64 is used up to 22.
    """
    racing = candidates(layer)
    winners = [_winner(layer, racing, size, timed) for size in SIZES]
    styles, bounds = [winners[0]], list[int]()
    for size, following, winner in zip(SIZES, SIZES[1:], winners[1:], strict=False):
        if winner != styles[-1]:
            bounds.append(int(sqrt(size * following)))
            styles.append(winner)
    return Choice(tuple(styles), tuple(bounds))


def _winner(
    layer: MoeLayer, racing: list[Style], size: int, timed: Callable[[MoeLayer, Style, int], float]
) -> Style:
    """Return the fastest of the styles that run so many tokens; what fails is told on stderr."""
    durations: dict[str, float] = {}
    for style in racing:
        try:
            durations[style.name] = timed(layer, style, size)
        except Exception as wrong:  # Triton's compiler has errors of its own
            reason = next(iter(str(wrong).splitlines()), type(wrong).__name__)
            print(f"experts: {style.name}: fails at {size} tokens: {reason}", file=sys.stderr)
    if not durations:
        raise EngineError(f"experts: auto: no style runs {size} tokens here; take loop or dense")
    return STYLES[min(durations, key=durations.__getitem__)]


def candidates(layer: MoeLayer) -> list[Style]:
    """Return the styles to time: kernels; where there is none, the loop and all experts on all."""
    runnable = [style for style in STYLES.values() if not style.obstacle(layer.gate_up)]
    kernels = [style for style in runnable if style.capturable and style.name != "dense"]
    return kernels or runnable


def sample(layer: MoeLayer, tokens: int, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return x (T, H), weights (T, k) and ids (T, k) of tokens that are routed at random."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, layer.gate_up.shape[2], generator=generator)
    scores = torch.randn(tokens, layer.num_experts, generator=generator).softmax(dim=-1)
    weights, ids = scores.topk(layer.top_k)
    device = layer.gate_up.device
    return x.to(device, layer.gate_up.dtype), weights.to(device), ids.to(device)


def _runnable(layer: MoeLayer, told: str) -> Style:
    obstacle = STYLES[told].obstacle(layer.gate_up)
    if obstacle:
        others = [style.name for style in STYLES.values() if not style.obstacle(layer.gate_up)]
        raise EngineError(f"experts: {told}: {obstacle}; take {' or '.join(others)}")
    return STYLES[told]


@torch.inference_mode()
def _timed(layer: MoeLayer, style: Style, tokens: int) -> float:
    """Return the duration [s] of one run on the layer's CUDA device."""
    inputs = sample(layer, tokens)

    def run() -> None:
        style.run(*inputs, layer.gate_up, layer.down)

    run()  # compiles and tunes
    launch = replayed(run) if style.capturable else run
    launch()
    durations: list[float] = []
    for _ in range(REPEATS):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        begin.record()
        for _ in range(RUNS):
            launch()
        end.record()
        end.synchronize()
        durations.append(begin.elapsed_time(end) / 1e3 / RUNS)
    return median(durations)


def replayed(run: Callable[[], None]) -> Callable[[], None]:
    """Capture a function that has run before, and return what replays it."""
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with capturing(graph):
        run()
    return graph.replay
