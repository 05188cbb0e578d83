"""What an engine's own software makes of the kernels' time: its host, and kernels that it lacked.

Some things were found that tables of newer kernels do not have, each on a few rows, which are not
judged (`FOUND_ON`), and checked on all others:

| what | found on | holds on |
|---|---|---|
| the host of vLLM in 2024 | Llama 3 8B on H100, 128 tokens | other models, A100, GH200 |
| the host of TensorRT-LLM's Python session | the same | the same |
| sequences in TensorRT-LLM 0's C++ runtime | Llama, answers of 128 tokens | Mixtral |
| how many Mixtral was built for (`builds`) | A100-SXM, L40S | H100, A100 over PCIe |
| experts of vLLM before 0.4 on A100 | Mixtral, 32 prompts, tuned tiles | its other batches |
| attention of TensorRT-LLM 0.9 | Mistral 7B on H100 | Mistral 7B on H200 and A100 |
| its experts on Hopper | Mixtral's first token on H100 | the others of Mixtral on H100 |
| how made-up prompts were routed (`routing`) | two times of Mixtral on A100 | its others, H100 |

A host's time is what an iteration takes beyond its kernels: scheduling, the inputs, launches,
sampling and detokenising, and telling the workers of a group (blog.vllm.ai, 5 September 2024, finds
62 % of the time of Llama 3 8B on an H100 there). The attention is no slower on L40S, whose memory
takes longer to read keys and values once than its cache does four times.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from math import log2
from types import MappingProxyType

from moesim.cost.iteration import Cost
from moesim.cost.kernels.uncertainty import EXECUTOR_S, plain_software
from moesim.cost.parallel import Shard
from moesim.evidence.accuracy.earlier import CACHE_BYTES_PER_S, Earlier
from moesim.evidence.accuracy.names import device_of, plain_model
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
    layer_sequence_s: float = 0.0
    """More for each sequence in each layer."""

    def each_s(self, layers: int) -> float:
        """Return what a sequence takes more [s]."""
        return self.sequence_s + self.layer_sequence_s * layers

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

EXECUTOR_0 = Host(alone_s=0.0, doubling_s=0.0, sequence_s=0.0, layer_sequence_s=EXECUTOR_S)
"""TensorRT-LLM's engines in its C++ runtime, before 1.0."""

XQA_0_9 = Gathered(groups=(1, 8), bytes_per_s=CACHE_BYTES_PER_S)
"""TensorRT-LLM 0.9 has its XQA kernels for one and for eight query heads a head of keys and values
(cpp/tensorrt_llm/kernels/decoderMaskedMultiheadAttention/decoderXQARunner.h, Apache-2.0), and an
older kernel, a block a query head, for Mistral's and Mixtral's four. The rate is the one with which
the answers of 2,048 tokens of Mistral 7B on H100 are right; L2 caches of A100 and H100 have 5,120
bytes a clock, 7 to 9 TB/s (NVIDIA's A100 whitepaper)."""

AMPERE_0_9 = Earlier(flop_per_s=(("h100-sxm-80gb", 3.1e14), ("h200-sxm-141gb", 3.1e14)))
"""TensorRT-LLM 0.9's experts on Hopper, by kernels that were written for Ampere, at a third of what
the device's own instructions reach: the rate with which the first token of a prompt of 2,048 tokens
of Mixtral on two H100 is right. On Ampere and Ada the tables' own rates are lower."""

_MIXTRAL_0_9 = MappingProxyType({"software": "TensorRT-LLM 0.9.0", "model": "Mixtral-8x7B"})

_BUILT_0_14 = MappingProxyType(
    {"software": "TensorRT-LLM 0.14", "model": "Mixtral-8x7B", "tp": 8, "isl": 128.0, "osl": 4096.0}
)

FOUND_ON: tuple[dict[str, object], ...] = (
    {"software": "vLLM", "gpu": "H100-80GB", "model": "Llama-3-8B", "isl": 128.0},
    {"software": "TensorRT-LLM", "gpu": "H100-80GB", "model": "Llama-3-8B", "isl": 128.0},
    {
        "software": "TensorRT-LLM 0.9.0",
        "gpu": "H100-SXM-80GB",
        "model": "Mistral-7B",
        "osl": 2048.0,
    },
    {**_MIXTRAL_0_9, "gpu": "H100-SXM-80GB", "isl": 2048.0, "osl": 1.0},
    {**_MIXTRAL_0_9, "gpu": "A100-SXM4-80GB", "isl": 128.0, "osl": 1.0},
    {**_MIXTRAL_0_9, "gpu": "A100-SXM4-80GB", "isl": 2048.0, "osl": 2048.0},
    *(
        dict[str, object](software="TensorRT-LLM 0.14", gpu=gpu, model=model, osl=128.0)
        for gpu in ("A100-SXM4-80GB", "H100-SXM-80GB", "H200-SXM-141GB")
        for model in ("Llama-3.1-8B", "Llama-3.1-70B")
    ),
    {"software": "vLLM 0.3.3, tuned tiles", "gpu": "A100-SXM4-80GB", "load": "batch 32"},
    *({**_BUILT_0_14, "gpu": gpu} for gpu in ("A100-SXM4-80GB", "L40S-48GB")),
)
"""The rows on which these figures were found."""


def found_on(row: Row) -> bool:
    """Say whether something here was found on a row, so that it does not judge."""
    return any(
        all(_plain(name, getattr(row, name)) == _plain(name, value) for name, value in each.items())
        for each in FOUND_ON
    )


@cache
def _plain(name: str, value: object) -> object:
    """Return a field as it is known, however it is spelled."""
    known: dict[str, Callable[[str], str]] = {
        "software": plain_software,
        "gpu": lambda gpu: device_of(gpu).name,
        "model": plain_model,
    }
    return known[name](str(value)) if name in known else value


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
        sequence_s=host.each_s(spec.num_hidden_layers) if host else 0.0,
        context_s=again_s,
    )


def _with(
    lines: Sequence[tuple[float, float]], host: Sequence[float], more: Sequence[float]
) -> list[tuple[float, float]]:
    """Return lines over the context with a host's time, and more for each token of it [s]."""
    each = enumerate(zip(lines, host, more, strict=False))
    return [(s + its + m * n, slope + m) for n, ((s, slope), its, m) in each]


class Served(Cost):
    """Another cost, and a host's time in each iteration.

    Decoding takes at least `context_s` for each token of the summed context [s].
    """

    def __init__(
        self, kernels: Cost, *, fixed_s: float, sequence_s: float, context_s: float
    ) -> None:
        tables = kernels.tables
        host = [fixed_s + sequence_s * count for count in range(len(tables.sequences))]
        more = [0.0, *(max(context_s - slope, 0.0) for _, slope in tables.lines[1:])]
        super().__init__(
            tables._replace(
                sequences=[each + its for each, its in zip(tables.sequences, host, strict=True)],
                lines=[(s, slope + m) for (s, slope), m in zip(tables.lines, more, strict=True)],
                decoding=_with(tables.decoding, host, more),
                joined=_with(tables.joined, host[1:], more),
            )
        )
        self._kernels = kernels

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        return self._kernels.prefill_attention_s(new_tokens, cached)

    def basis(self) -> dict[str, str]:
        """Say what each operation's answers rest on."""
        return self._kernels.basis()
