"""What predictions assume, and where they are weak: said of the rows that a table has."""

from collections.abc import Mapping

import pandas as pd

ASSUMED: tuple[tuple[Mapping[str, str], str], ...] = (
    (
        {"software": "tensorrt|trt-?llm", "scenario": "offline(_max_load)?$"},
        "TensorRT-LLM's published maximum loads: its documentation's numbers of requests, "
        "guaranteed no evict with prompts in chunks, engines as large as in trtllm-bench's table "
        "(to 0.14; on eight GPUs for 8,192 sequences where the table has none, Mixtral 8x7B's "
        "with 128 and 4,096 tokens for 512, found on A100-SXM and L40S) or as it reckons them "
        "(later), 0.90 of the memory that weights, activations, the decoder (six values of each "
        "sequence for each entry of the vocabulary and each position, by two logs) and 0.76 GiB "
        "(1.76 GiB in a group) of runtime leave, blocks of 64 tokens (32 from 1.0 on), an FP8 KV "
        "cache with FP8 weights.",
    ),
    (
        {"scenario": "mlperf"},
        "MLPerf: one replica a GPU, 896 sequences, 8,192 tokens, FP8 KV cache; answers by the "
        "percentiles of the logs. An entry's server run is predicted with the pace of its own "
        "offline run; its offline run with the median pace of the device's other entries, which "
        "says how alike machines are, and is not judged where there are none. Prompts of 650, 300 "
        "and 190 tokens are reckoned from what the three data sets are, and good to 13 %; within "
        "that one factor on all of them is fitted: the median of those with which the other "
        "entries' servers have their mean times per token. The interval has longer and shorter "
        "ones, and the slack that the others' servers have. A device without kernels of its own "
        "has those of its nearest kin with as many SMs (H100 NVL those of H100 SXM), which say "
        "how iterations grow, and its own pace says how long they are; a roofline grows "
        "otherwise. Rates are those of a long run without its beginning and its end; servers' "
        "rates are the load, and not judged. Near saturation a few per cent of capacity decide "
        "whether 400 or 650 requests are in flight, and tails of times to the first token are as "
        "the arrivals fall. Their medians were 1.5 times per token, as if prompts took no time, "
        "and are predicted to be 1.6: what takes longer than kernels may go with sequences more "
        "than with prompts, while here all parts of an iteration are slower alike.",
    ),
    (
        {"scenario": "static_batch|decode_bs1"},
        "Static batches: all prompts in one pass, then all answers to their end.",
    ),
    (
        {"scenario": "online_closed_loop"},
        "Closed loops: ten requests a user.",
    ),
    (
        {"scenario": "online_closed_loop", "note": "inferencemax"},
        "InferenceMAX's closed loops: lengths from 0.8 of those named to those named.",
    ),
    (
        {"software": "vllm|sglang"},
        "vLLM and SGLang at their defaults.",
    ),
    (
        {},
        "Routers choose any expert alike, as they nearly do for random tokens.",
    ),
    (
        {"source": "llm-inference-bench", "software": "tensorrt|trt-?llm"},
        "Argonne's batches of TensorRT-LLM, copies of one prompt: all sequences choose the same "
        "experts.",
    ),
    (
        {"profile": "(?!roofline$)"},
        "Kernels know nothing of the software around them: no host, no gaps between launches, and "
        "the kernels are of later versions than most of these engines had. What that adds differs "
        "from engine to engine, from nothing to twice as long: intervals as is are as wide as "
        "that. Where small batches on several GPUs tell a host's time (vLLM and TensorRT-LLM's "
        "Python session of 2024), it is added to each iteration: found on 24 runs, which are not "
        "judged. Others' small batches on many GPUs are too fast.",
    ),
    (
        {"software": r"tensorrt-llm 0\.9\b"},
        "TensorRT-LLM 0.9 decodes four query heads to one of keys and values (Mistral, Mixtral) "
        "by an older kernel, which reads these again for each; how fast was found on two runs, "
        "which are not judged. Its experts are in 16 bits whatever the rest, on Hopper by kernels "
        "for Ampere, whose rate was found on one run; how made-up prompts were routed was found "
        "on two of A100, with prompts of 128 tokens and of 2,048, and is not known in between.",
    ),
    (
        {"software": r"vllm\D*0\.[0-3]\b"},
        "vLLM before 0.4 had tiles of 64 x 64 for experts, bound by the cache on the chip, and "
        "NCCL's all-reduces; the rate of its experts on A100 was found on one batch of 32.",
    ),
    (
        {"software": r"tensorrt-llm 0\."},
        "How many sequences 0.14's Mixtral on eight GPUs was built for is known from its rows "
        "alone; that of 2,048 and 2,048 tokens in FP8 looks like fewer than 1,500. Its C++ "
        "runtime takes 0.065 us more for each sequence in each layer than the kernels: found on "
        "36 rows of Llama, which are not judged. Llama 70B in FP8 on a single H100 has little "
        "memory left, so that its rows hang on it.",
    ),
    (
        {"scenario": "online_closed_loop", "figure": "ttft"},
        "Times to the first token of closed loops hang on whether users ask at once or one by "
        "one, and on whether the engine has a seat for each: the interval is from a request alone "
        "to one that waits for a seat. Where lengths are all alike, simulated users keep step, "
        "which real ones lose.",
    ),
    (
        {"device": "l40s|a100-pcie"},
        "L40S and A100 over PCIe: all-reduces of four and eight devices were chosen between two "
        "tables with these rows in sight, so that their rows on so many are not judged.",
    ),
    (
        {"scenario": "(?!static_batch|decode_bs1)"},
        "Near the edge where one more round of requests is needed, a per cent of KV memory moves "
        "a throughput by ten: rows with `KV memory` as suspect stand there.",
    ),
)
"""How the fields of a row begin of which something is said, in small letters, and what is said."""


def assumptions(rows: pd.DataFrame) -> list[str]:
    """Return what is to be said of some rows: all that is said of at least one."""
    return [said for fields, said in ASSUMED if _has(rows, fields)]


def _has(rows: pd.DataFrame, fields: Mapping[str, str]) -> bool:
    """Say whether a row has all of some fields."""
    fit = pd.Series(data=True, index=rows.index)
    for name, pattern in fields.items():
        fit &= rows[name].str.lower().str.match(pattern)
    return bool(fit.any())
