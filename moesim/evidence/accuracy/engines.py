"""The engines behind published results: how each puts batches together, and its share of memory.

What a table says of an engine is a name and a version. The rest is what that version does unless
told otherwise:

| engine | batches | sequences, tokens | KV cache |
|---|---|---|---|
| TensorRT-LLM, trtllm-bench | no evict, prompts in chunks | `limits_for` | 0.90 of free |
| TensorRT-LLM, MLPerf entry | no evict, whole prompts | 896, 8192 | 0.90 of free |
| static batches (gptSessionBenchmark, gpt-fast) | all prompts, then all answers | the batch | all |
| vLLM from 0.8 on | chunked prefill | 1024, 8192 | 0.90 of all, less the rest |
| SGLang | prefill first | 2048, 8192 | 0.88 of all, less weights |

Sources: TensorRT-LLM's docs/source/performance/perf-overview.md and perf-benchmarking.md and its
bench/build/tuning.py (Apache-2.0); the MLPerf v4.1 logs' settings; vLLM's and SGLang's defaults.
MLPerf's entries cannot have set room aside for answers of 1,024 tokens each: 300 would fit where
the logs' latencies at their rates say 650. Here they set aside what answers really need, which
nearly comes to the same as admitting whoever fits, and is forty times as fast to simulate.
TensorRT-LLM builds engines of FP8 weights with an FP8 KV cache; its blocks are of 64 tokens, 32 in
the PyTorch backend of 1.0.
"""

import re
from dataclasses import dataclass
from math import ceil

from moesim.evidence.accuracy.names import UnknownRowError
from moesim.serving.policies import POLICIES, Policy

NO_EVICT_IN_CHUNKS = Policy(chunked=True, mixed=True, admission="completion")
"""TensorRT-LLM's GUARANTEED_NO_EVICT with chunked contexts, trtllm-bench's setting."""

BENCH_SEQUENCES = 4096
"""Most sequences for which trtllm-bench builds an engine."""

BENCH_TOKENS = 16384
"""Most tokens of an iteration for which trtllm-bench builds an engine."""


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
    """Most sequences at once; None where it follows from the KV cache (`limits_for`)."""
    max_batched_tokens: int | None = None


def engine_of(software: str, scenario: str) -> Engine:
    """Return the engine that served; UnknownRowError for one that is not modelled."""
    name = software.lower()
    if re.match(r"tensorrt|trt-?llm|trtllm", name):
        return _tensorrt(name, scenario)
    if "gpt-fast" in name:
        return _static("gpt-fast", None)
    if name.startswith("vllm"):
        return Engine(
            name="vLLM",
            policy=POLICIES["chunked_prefill"],
            block_size=16,
            kv_share=0.90,
            of_free=False,
            max_num_seqs=1024,
            max_batched_tokens=8192,
        )
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


def _tensorrt(name: str, scenario: str) -> Engine:
    if scenario.startswith("static"):
        return _static("TensorRT-LLM, static batch", "fp8")
    mlperf = scenario.startswith("mlperf")
    version = re.search(r"(\d+)\.\d+", name)
    torch = version is not None and int(version[1]) == 1
    return Engine(
        name="TensorRT-LLM, MLPerf" if mlperf else "TensorRT-LLM",
        policy=POLICIES["no_evict"] if mlperf else NO_EVICT_IN_CHUNKS,
        block_size=32 if torch else 64,
        kv_share=0.90,
        of_free=True,
        kv_format="fp8",
        max_num_seqs=896 if mlperf else None,
        max_batched_tokens=8192 if mlperf else None,
    )


def _static(name: str, kv_format: str | None) -> Engine:
    return Engine(
        name=name,
        policy=POLICIES["static"],
        block_size=64,
        kv_share=1.0,
        of_free=True,
        kv_format=kv_format,
    )


def limits_for(room: float, prompt_tokens: float, output_tokens: float) -> tuple[int, int]:
    """Return sequences and tokens for which trtllm-bench builds an engine.

    `room` is for how many requests the KV cache would do. Sequences are those, and tokens what
    enters an iteration while as many prompts come as answers end; both rounded up.

    >>> limits_for(250.9, 1000, 1000), limits_for(9000, 128, 128), limits_for(12, 20000, 2000)
    ((256, 2048), (4096, 8192), (64, 2048))
    """
    sequences = min(room, BENCH_SEQUENCES)
    tokens = min(sequences * (1 + prompt_tokens / output_tokens), BENCH_TOKENS)
    step = 32 if sequences < 256 else 128 if sequences < 1024 else 256
    unit = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    return max(64, step * ceil(sequences / step)), max(2048, unit * ceil(tokens / unit))
