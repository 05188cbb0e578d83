"""What an engine's own software makes of the kernels' time: its host, and kernels that it lacked.

Three things were found that tables of newer kernels do not have, each on a few rows, which are not
judged (`FOUND_ON`), and checked on all others:

| what | found on | holds on |
|---|---|---|
| the host of vLLM in 2024 | Llama 3 8B on H100, 128 tokens | other models, A100, GH200 |
| the host of TensorRT-LLM's Python session | the same | the same |
| attention of TensorRT-LLM 0.9 | Mistral 7B on H100 | Mistral 7B on H200 and A100 |

A host's time is what an iteration takes beyond its kernels: scheduling, the inputs, launches,
sampling and detokenising, and telling the workers of a group (blog.vllm.ai, 5 September 2024, finds
62 % of the time of Llama 3 8B on an H100 there). The attention is no slower on L40S, whose memory
takes longer to read keys and values once than its cache does four times.
"""

from dataclasses import dataclass
from math import log2

import numpy as np

from moesim.cost.iteration import Cost
from moesim.cost.parallel import Shard
from moesim.evidence.accuracy.table import Row
from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.slices import Slice


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """What an iteration takes beyond its kernels [s]."""

    alone_s: float
    """On one device."""
    doubling_s: float
    """More for twice the devices."""
    sequence_s: float
    """More for each sequence."""

    def fixed_s(self, ranks: int) -> float:
        """Return what an iteration takes whatever is in it [s]."""
        return self.alone_s + self.doubling_s * log2(ranks)


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathered:
    """Kernels that decode the query heads of one head of keys and values together.

    Other numbers of query heads are decoded one by one, each reading the keys and values again.
    """

    groups: tuple[int, ...]
    """For how many query heads there are such kernels."""
    bytes_per_s: float
    """How fast keys and values are read again, from the cache on the chip."""


VLLM_2024 = Host(alone_s=1.35e-3, doubling_s=0.83e-3, sequence_s=0.05e-3)
"""Least squares of the relative errors over 12 batches (1 to 64 sequences on 1, 2 and 4 GPUs) of
Argonne's inference benchmark, on what kernels leave."""

SESSION_2024 = Host(alone_s=0.58e-3, doubling_s=0.38e-3, sequence_s=0.021e-3)
"""The same of the same benchmark's TensorRT-LLM, run from its Python session (examples/run.py)."""

XQA_0_9 = Gathered(groups=(1, 8), bytes_per_s=4.3e12)
"""TensorRT-LLM 0.9 has its XQA kernels for one and for eight query heads a head of keys and values
(cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention/decoderXQARunner.h, Apache-2.0), and an
older kernel, a block a query head, for Mistral's and Mixtral's four. The rate is the one with which
the answers of 2,048 tokens of Mistral 7B on H100 are right; L2 caches of A100 and H100 have 5,120
bytes a clock, 7 to 9 TB/s (NVIDIA's A100 whitepaper)."""

FOUND_ON: tuple[dict[str, object], ...] = (
    {"software": "vLLM", "gpu": "H100-80GB", "model": "Llama-3-8B", "isl": 128.0},
    {"software": "TensorRT-LLM", "gpu": "H100-80GB", "model": "Llama-3-8B", "isl": 128.0},
    {
        "software": "TensorRT-LLM 0.9.0",
        "gpu": "H100-SXM-80GB",
        "model": "Mistral-7B",
        "osl": 2048.0,
    },
)
"""The rows on which these figures were found."""


def found_on(row: Row) -> bool:
    """Say whether something here was found on a row, so that it does not judge."""
    return any(
        all(getattr(row, name) == value for name, value in each.items()) for each in FOUND_ON
    )


def as_served(
    kernels: Cost,
    spec: ModelSpec,
    part: Slice,
    precision: Precision,
    *,
    host: Host | None,
    gathered: Gathered | None,
) -> Cost:
    """Return what iterations take with an engine's host and its own attention."""
    again_s = 0.0
    shard = Shard.of(spec, part)
    if gathered and spec.num_attention_heads // spec.num_key_value_heads not in gathered.groups:
        values = 2 * shard.query_width * spec.num_hidden_layers
        again_s = FORMATS[precision.kv].bytes_of(values) / gathered.bytes_per_s
    if host is None and not again_s:
        return kernels
    return Served(
        kernels,
        fixed_s=host.fixed_s(shard.ranks) if host else 0.0,
        sequence_s=host.sequence_s if host else 0.0,
        context_s=again_s,
    )


class Served(Cost):
    """Another cost, and a host's time in each iteration.

    Decoding takes at least `context_s` for each token of the summed context [s].
    """

    def __init__(
        self, kernels: Cost, *, fixed_s: float, sequence_s: float, context_s: float
    ) -> None:
        tables = kernels.tables
        host = fixed_s + sequence_s * np.arange(len(tables.sequences))
        lines = np.array(tables.lines)
        more = np.maximum(context_s - lines[:, 1], 0.0)
        more[0] = 0.0
        lines[:, 1] += more
        alone, joined = np.array(tables.decoding), np.array(tables.joined)
        alone[:, 0] += host[: len(alone)] + (more * np.arange(len(more)))[: len(alone)]
        joined[:, 0] += host[1 : len(joined) + 1] + (more * np.arange(len(more)))[: len(joined)]
        alone[:, 1] += more[: len(alone)]
        joined[:, 1] += more[: len(joined)]
        super().__init__(
            tables._replace(
                sequences=(np.array(tables.sequences) + host).tolist(),
                lines=list(map(tuple, lines.tolist())),
                decoding=list(map(tuple, alone.tolist())),
                joined=list(map(tuple, joined.tolist())),
            )
        )
        self._kernels = kernels

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        return self._kernels.prefill_attention_s(new_tokens, cached)

    def basis(self) -> dict[str, str]:
        """Say what each operation's answers rest on."""
        return self._kernels.basis()
