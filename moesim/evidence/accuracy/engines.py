"""The engines behind published results: how each puts batches together, and its share of memory.

What a table says of an engine is a name and a version. The rest is what that version does unless
told otherwise:

| engine | batches | sequences, tokens | KV cache |
|---|---|---|---|
| TensorRT-LLM, trtllm-bench | no evict, prompts in chunks | `builds` | 0.90 of free |
| TensorRT-LLM, MLPerf entry | no evict, whole prompts | 896, 8192 | 0.90 of free |
| static batches (gptSessionBenchmark, gpt-fast) | all prompts, then all answers | the batch | all |
| vLLM from 0.8 on | chunked prefill | 1024, 8192 | 0.90 of all, less the rest |
| SGLang | prefill first | 2048, 8192 | 0.88 of all, less weights |

Sources: TensorRT-LLM's docs/source/performance/perf-overview.md and perf-benchmarking.md and its
bench/build/tuning.py (Apache-2.0); the MLPerf v4.1 logs' settings; vLLM's and SGLang's defaults.
MLPerf's entries cannot have set room aside for answers of 1,024 tokens each: 300 would fit where
the logs' latencies at their rates say 650. Here they set aside what answers really need, which
nearly comes to the same as admitting whoever fits, and is forty times as fast to simulate.
Static batches of vLLM without a version are those of 2024, as are versions before 0.6: their host
did not work beside the device (blog.vllm.ai, 5 September 2024). What the kernels of vLLM before 0.4
and of TensorRT-LLM 0.9 were is in `earlier`. Those of TensorRT-LLM without a
version are those of its Python session of that year; its servers without a version are of 2025
(InferenceMAX's), when they had the PyTorch backend.
TensorRT-LLM builds engines of FP8 weights with an FP8 KV cache; its blocks are of 64 tokens, 32 in
the PyTorch backend of 1.0.
"""

import re
from dataclasses import dataclass, replace

from moesim.evidence.accuracy.earlier import UNTUNED, Earlier
from moesim.evidence.accuracy.names import UnknownRowError
from moesim.evidence.accuracy.routing import RANDOM_0_9, Made
from moesim.evidence.accuracy.served import (
    AMPERE_0_9,
    EXECUTOR_0,
    SESSION_2024,
    VLLM_2024,
    XQA_0_9,
    Gathered,
    Host,
)
from moesim.serving.policies import POLICIES, Policy

COPIES = 3
"""Copies of all logits, where nothing is known of how a server samples."""

DECODER_COPIES = 6
"""Values of 4 bytes that TensorRT-LLM's runtime and decoder keep for each sequence: so many for
each entry of the vocabulary and each position that a sequence may reach.

A log of 2,048 sequences, 151,936 entries and 32,768 positions has 8.42 GiB of them
(github.com/NVIDIA/TensorRT-LLM, issue 1188), which six make 8.46; one of 32,000 entries and 2,048
positions (docs/source/reference/memory.md) has 224 MiB: six make 199 if that engine was built for
256 sequences, the default of its time.
"""

TABLE_UNTIL = (0, 14)
"""The last version whose trtllm-bench takes the size of engines from a table."""

VLLM_FASTER_FROM = (0, 6)
"""The first version of vLLM whose host was made to work beside the device."""

VLLM_KERNELS_FROM = (0, 4)
"""The first version of vLLM with tuned tiles for experts, and its own all-reduce for good; where a
row says `tuned tiles`, they were tuned before."""

TORCH_FROM = (1, 0)
"""The first version whose backend is PyTorch, unless told otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What serves: rules of batching, limits, and how much memory the KV cache gets.

    `of_free` says whether `kv_share` is of what weights and activations leave, as TensorRT-LLM
    counts, or of the whole device, from which those are taken off.
    """

    name: str
    policy: Policy
    block_size: int
    kv_share: float
    of_free: bool
    kv_format: str | None = None
    max_num_seqs: int | None = None
    """Most sequences at once; None where it is as trtllm-bench builds engines (`builds`)."""
    max_batched_tokens: int | None = None
    tabulated: bool = False
    """Whether trtllm-bench took both from its table."""
    copies: int = COPIES
    """Values of 4 bytes kept beside the logits, by sequence and entry of the vocabulary."""
    copies_of_positions: int = 0
    """The same, by sequence and position that it may reach."""
    host: Host | None = None
    """What it adds to the kernels of each iteration; None where that is not known."""
    gathered: Gathered | None = None
    """Which query heads it decodes together; None where its kernels are as those in the tables."""
    earlier: Earlier | None = None
    """Other kernels that it had before those in the tables."""
    wide_experts: bool = False
    """Whether experts stay in 16 bits where other weights are in FP8."""
    made: Made | None = None
    """How its benchmark's prompts are routed; None where that is not known."""


def engine_of(software: str, scenario: str) -> Engine:
    """Return the engine that served; UnknownRowError for one that is not modelled."""
    name = software.lower()
    if re.match(r"tensorrt|trt-?llm|trtllm", name):
        return _tensorrt(name, scenario)
    if "gpt-fast" in name:
        return _static("gpt-fast", None)
    if name.startswith("vllm"):
        return _vllm(name, scenario)
    if name.startswith("sglang"):
        return Engine(
            name="SGLang",
            policy=POLICIES["prefill_priority"],
            block_size=1,
            kv_share=0.88,
            of_free=False,
            max_num_seqs=2048,
            max_batched_tokens=8192,
        )
    raise UnknownRowError(f"software {software or '(none)'} is not modelled")


def _vllm(name: str, scenario: str) -> Engine:
    version = _version(name, (0, 0))
    old = version < VLLM_FASTER_FROM
    early = (0, 0) < version < VLLM_KERNELS_FROM
    tile = None if "tuned tiles" in name else UNTUNED
    return Engine(
        name="vLLM",
        host=VLLM_2024 if old and scenario == "static_batch" else None,
        earlier=Earlier(nccl=True, tile=tile) if early else None,
        policy=POLICIES["chunked_prefill"],
        block_size=16,
        kv_share=0.90,
        of_free=False,
        max_num_seqs=1024,
        max_batched_tokens=8192,
    )


def _version(name: str, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the first two numbers of a version in a name, something else where there is none."""
    found = re.search(r"(\d+)\.(\d+)", name)
    return (int(found[1]), int(found[2])) if found else otherwise


def _tensorrt(name: str, scenario: str) -> Engine:
    if scenario.startswith("static"):
        static = _static("TensorRT-LLM, static batch", "fp8")
        if not re.search(r"\d", name):
            return replace(static, host=SESSION_2024)
        old = re.search(r"\b0\.9\b", name)
        return _of_0_9(static) if old else static
    mlperf = scenario.startswith("mlperf")
    version = _version(name, TORCH_FROM)
    torch = not mlperf and version >= TORCH_FROM
    return Engine(
        name="TensorRT-LLM, MLPerf" if mlperf else "TensorRT-LLM",
        policy=POLICIES["no_evict"] if mlperf else POLICIES["no_evict_chunked"],
        block_size=32 if torch else 64,
        kv_share=0.90,
        of_free=True,
        kv_format="fp8",
        max_num_seqs=896 if mlperf else None,
        max_batched_tokens=8192 if mlperf else None,
        tabulated=version <= TABLE_UNTIL,
        copies=COPIES if torch else DECODER_COPIES,
        copies_of_positions=0 if torch else DECODER_COPIES,
        host=None if torch or mlperf else EXECUTOR_0,
    )


def _of_0_9(static: Engine) -> Engine:
    """Return TensorRT-LLM 0.9, whose plugin for experts has no FP8 (tensorrt_llm/layers/moe.py).

    Those of its engines in FP8 are in 16 bits.
    """
    return replace(static, gathered=XQA_0_9, earlier=AMPERE_0_9, wide_experts=True, made=RANDOM_0_9)


def _static(name: str, kv_format: str | None) -> Engine:
    return Engine(
        name=name,
        policy=POLICIES["static"],
        block_size=64,
        kv_share=1.0,
        of_free=True,
        kv_format=kv_format,
    )
