"""The styles by name, and what each needs of a device."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from engine.model.experts.dense import dense
from engine.model.experts.fused import fused, interpreted
from engine.model.experts.grouped import grouped
from engine.model.experts.loop import loop
from engine.model.quantised import Quantised, Weight
from moesim.errors import EngineError

Run = Callable[[Tensor, Tensor, Tensor, Weight, Weight], Tensor]
"""From x (T, H), weights (T, k), ids (T, k), gate_up (E, 2 I, H) and down (E, H, I) to (T, H)."""

PlainRun = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""The same of a style that has no kernel for quantised weights."""

Obstacle = Callable[[Weight], str | None]
"""From gate_up (E, 2 I, H), as it lies on its device, to why a style cannot run there."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Style:
    """One way to run experts; `capturable` in a CUDA graph, as it never waits for the device."""

    name: str
    run: Run
    obstacle: Obstacle
    capturable: bool


def of_plain(run: PlainRun) -> Run:
    """Refuse quantised weights to a style that would take them for plain ones."""

    def checked(x: Tensor, weights: Tensor, ids: Tensor, gate_up: Weight, down: Weight) -> Tensor:
        if isinstance(gate_up, Quantised) or isinstance(down, Quantised):
            raise EngineError("experts: quantised weights run in the styles loop and dense only")
        return run(x, weights, ids, gate_up, down)

    return checked


def has_triton() -> bool:
    """Whether Triton is installed."""
    return find_spec("triton") is not None


def anywhere(gate_up: Weight) -> str | None:
    """Find nothing in the way."""
    return None


def not_grouped(gate_up: Weight) -> str | None:
    """Ask for rows of 16 bytes; on CUDA for what makes it one kernel: sm90 or sm100, bfloat16."""
    if isinstance(gate_up, Quantised):
        return f"torch's grouped product knows no {gate_up.format} weights"
    inner, hidden = gate_up.shape[1] // 2, gate_up.shape[2]
    if any(size * gate_up.element_size() % 16 for size in (inner, hidden)):
        return "torch's grouped product wants rows of a multiple of 16 bytes"
    if gate_up.device.type != "cuda":
        return None
    major, minor = torch.cuda.get_device_capability(gate_up.device)
    if major not in (9, 10):
        return f"torch's grouped product waits for the host on sm{major}{minor}"
    if gate_up.dtype != torch.bfloat16:
        return f"torch's grouped product is fast in bfloat16 only, not in {gate_up.dtype}"
    return None


def not_fused(gate_up: Weight) -> str | None:
    """Ask for Triton and a GPU, or for Triton's interpreter."""
    if isinstance(gate_up, Quantised):
        return f"Triton's kernels know no {gate_up.format} weights"
    if not has_triton():
        return "Triton is not installed"
    if interpreted():
        # Triton 3.7 there multiplies bfloat16 as if its bits were integers.
        wrong = gate_up.dtype == torch.bfloat16
        return "Triton's interpreter cannot multiply bfloat16" if wrong else None
    return None if gate_up.device.type == "cuda" else "Triton needs a CUDA device"


STYLES = {
    style.name: style
    for style in (
        Style(name="loop", run=loop, obstacle=anywhere, capturable=False),
        Style(name="dense", run=dense, obstacle=anywhere, capturable=True),
        Style(name="grouped", run=of_plain(grouped), obstacle=not_grouped, capturable=True),
        Style(name="triton", run=of_plain(fused), obstacle=not_fused, capturable=True),
    )
}
