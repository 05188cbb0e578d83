"""For how many sequences and tokens TensorRT-LLM's published engines were built.

Up to 0.14 trtllm-bench took both from a table of its own, `TABULATED`, and refused what was not in
it; later versions reckon them from the memory that is left (`reckoned`). Mixtral on eight ranks was
published although the tables that can be found lack it: engines on eight ranks are taken to be as
large as the table's others there, but for the longest answers, where results tell (`FOUND_AT`).

Sources: TensorRT-LLM's bench/build/benchmark_config.yml of version 0.14 and bench/build/tuning.py
of later ones (Apache-2.0).
"""

import re
from collections.abc import Mapping
from math import ceil

Built = tuple[int, int]
"""Most sequences and most tokens of an iteration."""

TABULATED: tuple[tuple[str, Mapping[int, Built]], ...] = (
    (r"mixtral-8x7b.*", {2: (2048, 3072), 4: (8192, 8192)}),
    (r"mistral-7b.*", {1: (4098, 8192)}),
    (r"llama-?3(\.\d)?-8b.*", {1: (2048, 8192)}),
    (r"llama-?3(\.\d)?-70b.*", {1: (2048, 2048), 2: (256, 1024), 4: (2048, 1024)}),
    (r"llama-?2-7b.*", {1: (4096, 8192)}),
    (r"llama-?2-70b.*", {2: (2048, 2048), 4: (4096, 8192)}),
)
"""By model and ranks."""

TABULATED_AT: tuple[tuple[str, Mapping[tuple[int, int], Built]], ...] = (
    (r"llama-?3(\.\d)?-70b.*", {(2, 4096): (2048, 1024)}),
    (r"llama-?2-70b.*", {(4, 4224): (256, 8192), (8, 2176): (1024, 16384)}),
)
"""By model, ranks, and tokens of prompt and answer together, where these were told apart."""

FOUND_AT: tuple[tuple[str, Mapping[tuple[int, int], Built]], ...] = (
    (r"mixtral-8x7b.*", {(8, 4224): (512, 16384)}),
)
"""The same, where the table is lacking: the power of two of sequences with which rows of 128 and
4,096 tokens on A100-SXM and on L40S come nearest. These do not judge (`served.FOUND_ON`)."""

ON_EIGHT: Built = (8192, 16384)
"""What the table has for all models but one on eight ranks."""

MOST_SEQUENCES = 4096
"""Most sequences for which later versions build an engine."""

MOST_TOKENS = 16384
"""Most tokens of an iteration for which they do."""


def tabulated(model: str, ranks: int, tokens: int) -> Built | None:
    """Return what trtllm-bench's table has for requests of so many tokens; None without an entry.

    >>> tabulated("llama-3.1-70b", 2, 2000), tabulated("llama-3.1-70b", 2, 4096)
    ((256, 1024), (2048, 1024))
    >>> tabulated("mixtral-8x7b", 8, 256), tabulated("mixtral-8x22b", 4, 256)
    ((8192, 16384), None)
    >>> tabulated("mixtral-8x7b", 8, 4224), tabulated("mixtral-8x22b", 8, 4224)
    ((512, 16384), (8192, 16384))
    """
    for pattern, at in (*TABULATED_AT, *FOUND_AT):
        if re.fullmatch(pattern, model) and (ranks, tokens) in at:
            return at[ranks, tokens]
    for pattern, by_ranks in TABULATED:
        if re.fullmatch(pattern, model) and ranks in by_ranks:
            return by_ranks[ranks]
    return ON_EIGHT if ranks == 8 else None


def reckoned(room: float, prompt_tokens: float, output_tokens: float) -> Built:
    """Return what later versions reckon from `room`: for how many requests the KV cache would do.

    Sequences are those, and tokens what enters an iteration while as many prompts come as answers
    end; both rounded up.

    >>> reckoned(250.9, 1000, 1000), reckoned(9000, 128, 128), reckoned(12, 20000, 2000)
    ((256, 2048), (4096, 8192), (64, 2048))
    """
    sequences = min(room, MOST_SEQUENCES)
    tokens = min(sequences * (1 + prompt_tokens / output_tokens), MOST_TOKENS)
    step = 32 if sequences < 256 else 128 if sequences < 1024 else 256
    unit = 256 if tokens < 4096 else 512 if tokens < 8192 else 1024
    return max(64, step * ceil(sequences / step)), max(2048, unit * ceil(tokens / unit))
