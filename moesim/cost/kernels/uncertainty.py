"""How far off iterations may be that are added up from kernels.

Each family's error was found by cross-validation (`validation`). An iteration's error is the sum of
its families' errors, each weighted by the family's share of the time; errors of different families
are independent, those of the layers are not: all layers have the same shapes. Shares are those of a
decoding batch and of one with prompts, in turns.

What tables of kernels cannot know is the software around them: the host, gaps between launches,
other kernels than those that were timed. What it adds was found on published results, engine
by engine (`SOFTWARE`): each iteration takes a factor longer, drawn from engines alike and from a
hundred rows of one no more often than from twenty of another. An engine that is asked about apart
is left out, so that it does not speak for itself.
"""

import re
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cost.curves import Curve, Fan, Sheet
from moesim.cost.kernels.tables import Residual
from moesim.cost.profile import PER_LAYER, Cell
from moesim.facts.models import ModelSpec

FAMILY = {
    "projections": "gemm",
    "router": "gemm",
    "head": "gemm",
    "experts": "moe",
    "attention_decode": "decode",
    "attention_prefill": "prefill",
    "collectives": "collectives",
}
"""The family whose error an operation has; an FFN is made of products."""

DRAWS = 999
"""Iterations drawn; the quantiles of so many hardly differ from those of more."""

QUANTILES = np.arange(0.05, 0.96, 0.05)

CONTEXT = 1024
"""Context of the sequences whose shares are taken [tokens]."""

EXECUTOR_S = 0.065e-6
"""What TensorRT-LLM's C++ runtime (before 1.0) takes for each sequence in each layer [s].

Iterations as full of tokens but with seven times as many sequences (answers of 128 tokens to
prompts of 128, not of 2,048) take longer than by the tables' kernels, by so much: least sum of the
differences between the two rows' errors, over 18 such pairs of Llama 8B and 70B of version 0.14 on
A100, H100 and H200. Their mean falls from 3.4 to 1.6 %, that of 12 pairs of Mixtral, which had no
say, from 6.3 to 1.5 %. Neither ranks nor format matter, so that it is neither attention itself nor
a product. What it is has not been seen; each layer's attention prepares the lengths of the whole
batch, a block a sequence (invokeBuildDecoderInfo; Apache-2.0). Version 1.0 with PyTorch has next
to none of it."""


class Software(NamedTuple):
    """What an engine was found to add to the kernels of a device."""

    name: str
    device: str
    slower: tuple[float, ...]
    """Measured over predicted durations at the 5th, 15th, ... 95th percentile of its rows."""


SOFTWARE: tuple[Software, ...] = (
    Software(
        "PyTorch gpt-fast torch.compile",
        "a100-sxm-80gb",
        (0.94, 0.94, 0.97, 0.97, 0.98, 0.99, 1.02, 1.03, 1.06, 1.22),
    ),
    Software(
        "TensorRT-LLM",
        "h100-sxm-80gb",
        (0.96, 0.98, 1.01, 1.03, 1.05, 1.08, 1.11, 1.14, 1.17, 1.22),
    ),
    Software(
        "TensorRT-LLM 0.14",
        "a100-sxm-80gb",
        (0.97, 0.99, 1.00, 1.02, 1.03, 1.05, 1.06, 1.08, 1.11, 1.18),
    ),
    Software(
        "TensorRT-LLM 0.14",
        "h100-sxm-80gb",
        (0.92, 1.03, 1.07, 1.10, 1.12, 1.14, 1.17, 1.19, 1.23, 1.35),
    ),
    Software(
        "TensorRT-LLM 0.14",
        "h200-sxm-141gb",
        (0.95, 1.00, 1.03, 1.05, 1.06, 1.07, 1.09, 1.11, 1.15, 1.21),
    ),
    Software(
        "TensorRT-LLM 0.9.0",
        "a100-sxm-80gb",
        (0.95, 0.98, 0.99, 0.99, 1.01, 1.01, 1.02, 1.04, 1.06, 1.08),
    ),
    Software(
        "TensorRT-LLM 0.9.0",
        "h100-sxm-80gb",
        (0.95, 0.97, 0.99, 1.00, 1.01, 1.02, 1.04, 1.06, 1.10, 1.12),
    ),
    Software(
        "TensorRT-LLM 0.9.0",
        "h200-sxm-141gb",
        (0.94, 0.99, 1.00, 1.00, 1.01, 1.02, 1.04, 1.09, 1.13, 1.17),
    ),
    Software(
        "TensorRT-LLM 1.0 (PyTorch backend)",
        "h100-sxm-80gb",
        (0.83, 0.85, 0.91, 0.95, 0.96, 0.97, 0.98, 0.99, 1.00, 1.02),
    ),
    Software(
        "TensorRT-LLM 1.0 (PyTorch backend)",
        "h200-sxm-141gb",
        (0.69, 0.78, 0.94, 0.99, 1.02, 1.03, 1.04, 1.08, 1.11, 1.13),
    ),
    Software(
        "sglang 0.5.1.post1",
        "h100-sxm-80gb",
        (1.00, 1.02, 1.04, 1.05, 1.07, 1.08, 1.09, 1.10, 1.12, 1.14),
    ),
    Software(
        "sglang 0.5.6.post2",
        "h200-sxm-141gb",
        (0.98, 1.04, 1.20, 1.33, 1.38, 1.44, 1.49, 1.53, 1.62, 1.82),
    ),
    Software(
        "trtllm",
        "h200-sxm-141gb",
        (0.74, 0.76, 0.79, 0.81, 0.84, 0.86, 0.88, 0.91, 0.94, 0.99),
    ),
    Software(
        "trtllm 1.0.0rc3",
        "h100-sxm-80gb",
        (0.67, 0.83, 0.94, 1.01, 1.04, 1.07, 1.11, 1.16, 1.22, 1.44),
    ),
    Software(
        "vLLM",
        "h100-sxm-80gb",
        (0.96, 0.99, 1.01, 1.02, 1.04, 1.06, 1.09, 1.13, 1.20, 1.44),
    ),
    Software(
        "vllm",
        "h100-sxm-80gb",
        (0.89, 0.89, 0.90, 0.90, 0.91, 0.92, 0.94, 0.96, 0.98, 1.00),
    ),
    Software(
        "vllm",
        "h200-sxm-141gb",
        (0.84, 0.86, 0.87, 0.88, 0.89, 0.89, 0.90, 0.93, 1.00, 1.05),
    ),
    Software(
        "vllm 0.12.0",
        "h100-sxm-80gb",
        (1.04, 1.08, 1.10, 1.13, 1.16, 1.18, 1.20, 1.23, 1.30, 1.33),
    ),
    Software(
        "vllm 0.12.0",
        "h200-sxm-141gb",
        (0.37, 0.47, 0.60, 0.95, 1.24, 1.32, 1.37, 1.40, 1.58, 1.83),
    ),
)
"""Engines with a dozen rows or more in tables of published results, by GPU, as `moesim accuracy`
found them by kernels alone (docs/accuracy.md says on what): TensorRT-LLM's performance overviews,
Argonne's inference benchmark, the measured runs beside AIConfigurator. Rates and times per token;
names are those of the tables. Where a host's time is known (`moesim/evidence/accuracy/served.py`),
it is not in these. Made by benchmarks/fit_software.py."""


def added(without: str = "") -> NDArray[np.float64]:
    """Return by which factors software makes iterations longer, each as likely; 1 where unknown."""
    left_out = plain_software(without)
    known = [
        factor
        for each in SOFTWARE
        if plain_software(each.name) != left_out
        for factor in each.slower
    ]
    return np.array(known or [1.0])


def plain_software(name: str) -> str:
    """Return software and version as one writes them; a name without a version as it is.

    >>> [plain_software(name) for name in ("TensorRT-LLM v0.14.0", "vllm-0.5.4.post1", "vLLM")]
    ['tensorrt-llm 0.14', 'vllm 0.5.4.post1', 'vLLM']
    """
    found = re.match(r"([a-z_-]+?)[\s=:_-]*v?(\d+(?:\.\d+)*)(.*)", name.lower())
    if found is None:
        return name
    engine, version, rest = found.groups()
    return f"{engine} {re.sub(r'(?:[.]0)+$', '', version)}{rest}"


def iteration_residuals(
    residuals: Mapping[str, Residual],
    spec: ModelSpec,
    operations: Mapping[str, Sequence[Cell]],
    *,
    without: str = "",
) -> list[float]:
    """Return measured / predicted - 1 of whole iterations at the 5th, 10th, ... 95th percentile.

    `without` names an engine whose own results are left out.
    """
    if not residuals:
        return []
    rng = np.random.default_rng(0)
    errors = {
        family: rng.choice(np.asarray(found.quantiles), DRAWS)
        for family, found in sorted(residuals.items())
    }
    draws = [
        sum(share * errors.get(family, 0.0) for family, share in shares.items())
        for shares in _shares(spec, operations)
    ]
    kernels = np.concatenate([np.zeros(0), *(np.atleast_1d(draw) for draw in draws)])
    drawn = (1 + kernels) * rng.choice(added(without), len(kernels)) - 1
    return [round(float(value), 4) for value in np.quantile(drawn, QUANTILES)]


def _shares(spec: ModelSpec, operations: Mapping[str, Sequence[Cell]]) -> list[dict[str, float]]:
    """Return each family's share of a decoding batch and of a batch of prompts."""
    batch = max(cell.at[0] for cell in operations["attention_decode"])
    most = max(cell.at[0] for cell in operations["attention_prefill"])
    return [
        _share_of(spec, operations, tokens=batch, decodes=batch, new=0.0),
        _share_of(spec, operations, tokens=most, decodes=0.0, new=most),
    ]


def _share_of(
    spec: ModelSpec,
    operations: Mapping[str, Sequence[Cell]],
    *,
    tokens: float,
    decodes: float,
    new: float,
) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, cells in operations.items():
        if name == "attention_decode":
            seconds = Fan.through(cells)(decodes, decodes * CONTEXT) if decodes else 0.0
        elif name == "attention_prefill":
            seconds = Sheet.through(cells)(new, 0.0) if new else 0.0
        elif name == "experts":
            seconds = Sheet.through(cells)(tokens, max(cell.at[1] for cell in cells))
        else:
            seconds = Curve.through(cells)(tokens)
        family = FAMILY.get(name, "elementwise")
        if name == "experts" and not spec.num_local_experts:
            family = "gemm"
        layers = spec.num_hidden_layers if name in PER_LAYER else 1
        found[family] = found.get(family, 0.0) + layers * seconds
    total = sum(found.values())
    return {family: seconds / total for family, seconds in found.items()}
