"""The engines behind published results: how each puts batches together, and its share of memory.

What a table says of an engine is a name and a version. The rest is what that version does unless
told otherwise:

| engine | batches | sequences, tokens | KV cache |
|---|---|---|---|
| TensorRT-LLM, trtllm-bench | no evict, prompts in chunks | `builds` | 0.90 of free |
| TensorRT-LLM, MLPerf entry | no evict, whole prompts | 896, 8192 | 0.90 of free |
| static batches (gptSessionBenchmark, gpt-fast) | all prompts, then all answers | the batch | all |
| vLLM from 0.8 on, or of no version | chunked prefill | 1024, 8192 | 0.90 of all, less the rest |
| vLLM before 0.8 | prefill first; 0.2 and 0.3 padded | 256, its context | the same |
| SGLang | prefill first | 2048, 8192 | 0.88 of all, less weights |

Sources: TensorRT-LLM's docs/source/performance/perf-overview.md and perf-benchmarking.md and its
bench/build/tuning.py (Apache-2.0); the MLPerf v4.1 logs' settings; vLLM's and SGLang's defaults
(vLLM's v0: 256 sequences and max(max_model_len, 2048) tokens, vllm/config.py, Apache-2.0; v1 by
default from 0.8.0). vLLM 0.5 to 0.7 put prompts in chunks where a model's context was beyond 32,768
tokens; people mostly set a shorter one, with which it did not, as here.
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

from moesim.evidence.accuracy.earlier import TRITON_2024, UNTUNED, Earlier
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

KNOWN = ("TensorRT-LLM", "vLLM", "SGLang", "gpt-fast")
"""What is modelled; a version after it says which."""

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

VLLM_PADDED = ((0, 2), (0, 4))
"""The first version of vLLM whose prompts were padded, and the first again without (PR #1381 of
October 2023 is in 0.2.1, PR #3236 of March 2024 in 0.4.0)."""

VLLM_V1_FROM = (0, 8)
"""The first version of vLLM whose v1 engine was the default (release notes of 0.8.0)."""

VLLM_V0_CONTEXT = (2048, 32768)
"""Least and most tokens of an iteration of vLLM v0, which takes as many as its model's context;
longer contexts are hardly left as they are."""

XQA_FROM = (0, 10)
"""The first version of TensorRT-LLM that is taken to have the kernels of the tables."""

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
    context: tuple[int, int] | None = None
    """Between which it takes as many tokens as its model's context; None where it does not."""
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
    only_wide_experts: bool = False
    """Whether it has no kernel for experts in anything but 16 bits."""
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
    raise UnknownRowError(
        f"software {software or '(none)'} is not modelled: one of {', '.join(KNOWN)}"
    )


def _vllm(name: str, scenario: str) -> Engine:
    version = _version(name, (0, 0))
    early = (0, 0) < version < VLLM_KERNELS_FROM
    old = (0, 0) < version < VLLM_FASTER_FROM
    tile = None if "tuned tiles" in name else UNTUNED
    whole = scenario in ("static_batch", "decode_bs1")  # all prompts in one pass, by any rules
    served = (0, 0) if whole else version
    first = (0, 0) < served < VLLM_V1_FROM
    return Engine(
        name="vLLM",
        host=VLLM_2024 if old or (version == (0, 0) and whole) else None,
        earlier=Earlier(flop_per_s=TRITON_2024, tile=tile, nccl=True) if early else None,
        only_wide_experts=early,
        policy=POLICIES[_vllm_policy(served)],
        block_size=16,
        kv_share=0.90,
        of_free=False,
        max_num_seqs=256 if first else 1024,
        max_batched_tokens=8192,
        context=VLLM_V0_CONTEXT if first else None,
    )


def _vllm_policy(version: tuple[int, int]) -> str:
    """Return the policy of a version of vLLM; (0, 0) where that is not known.

    >>> [_vllm_policy(version) for version in ((0, 3), (0, 6), (0, 8), (0, 0))]
    ['padded_prefill', 'prefill_priority', 'chunked_prefill', 'chunked_prefill']
    """
    padded_from, padded_until = VLLM_PADDED
    if version == (0, 0) or version >= VLLM_V1_FROM:
        return "chunked_prefill"
    return "padded_prefill" if padded_from <= version < padded_until else "prefill_priority"


def _version(name: str, otherwise: tuple[int, int]) -> tuple[int, int]:
    """Return the first two numbers of the version after a name, something else without one.

    >>> [_version(name, (0, 0)) for name in ("x 1.0.9", "x v0.9.0", "x-0.5.post1", "x (cuda 12.4)")]
    [(1, 0), (0, 9), (0, 5), (0, 0)]
    """
    found = re.match(r"[a-z_-]+[\s=:]*v?(\d+)(?:\.(\d+))?", name)
    return (int(found[1]), int(found[2] or 0)) if found else otherwise


def _tensorrt(name: str, scenario: str) -> Engine:
    version = _version(name, (0, 0))
    if scenario.startswith("static"):
        static = _static("TensorRT-LLM, static batch", "fp8")
        if version == (0, 0):
            return replace(static, host=SESSION_2024)
        return replace(_of_0_9(static), made=RANDOM_0_9) if version < XQA_FROM else static
    mlperf = scenario.startswith("mlperf")
    version = TORCH_FROM if version == (0, 0) else version
    cpp = "tensorrt backend" in name
    torch = not mlperf and ("pytorch" in name or (version >= TORCH_FROM and not cpp))
    served = Engine(
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
    return _of_0_9(served) if version < XQA_FROM else served


def _of_0_9(later: Engine) -> Engine:
    """Return TensorRT-LLM 0.9 or older, of what is known of a later one.

    Its plugin for experts has no FP8 (tensorrt_llm/layers/moe.py): those of such engines are in 16
    bits.
    """
    return replace(later, gathered=XQA_0_9, earlier=AMPERE_0_9, wide_experts=True)


def _static(name: str, kv_format: str | None) -> Engine:
    return Engine(
        name=name,
        policy=POLICIES["static"],
        block_size=64,
        kv_share=1.0,
        of_free=True,
        kv_format=kv_format,
    )
