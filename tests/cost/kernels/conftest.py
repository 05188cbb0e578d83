"""A machine whose kernels follow simple laws, and its tables as AIConfigurator lays them out."""

from collections.abc import Callable
from itertools import product
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.cost.expected import Rates
from moesim.cost.kernels.gemm import gemm_roofline_s
from moesim.facts.catalog import load_device

H100 = load_device("h100-sxm-80gb")
RATES = Rates.of(H100)
SIZES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096, 8192)

Writer = Callable[..., Path]


def gemm_ms(n: int, k: int, m: int, name: str = "bf16") -> float:
    """Half of what the datasheet promises."""
    return float(2e3 * gemm_roofline_s(RATES, name, n, k, np.array([float(m)]))[0])


def prefill_ms(heads: int, new: int, batch: int) -> float:
    """Launch in 10 us, and for each prompt 1 ns a token and 0.1 ps a pair and head."""
    return 0.010 + batch * (1e-6 * new + 1e-10 * heads * new * new)


def decode_ms(kv_heads: int, context: int, batch: int) -> float:
    """Launch in 5 us, and read keys and values at half the bandwidth."""
    return 0.005 + 2e3 * batch * context * kv_heads * 128 * 2 * 2 / RATES.bytes_per_s


def moe_ms(tokens: int, tensor: int, parts: int) -> float:
    """Launch in 20 us, then read or multiply with one expert after the other."""
    own = 8 / parts
    hit = min(own, max(1.0, 2 * tokens / parts))
    parameters = 3 * 4096 * 14336 / tensor
    read = hit * 2 * parameters / (0.9 * RATES.bytes_per_s)
    multiplied = 2 * parameters * 2 * tokens / parts / (0.6 * RATES.flop_per_s)
    return 0.020 + 1e3 * max(read, multiplied)


def frames() -> dict[str, pd.DataFrame]:
    """Return the tables by their path below the system and the framework."""
    grid = (512, 1024, 2048, 4096, 8192, 16384)
    gemm = [
        {"gemm_dtype": name, "m": m, "n": n, "k": k, "latency": gemm_ms(n, k, m, ours)}
        for name, ours in (("bfloat16", "bf16"), ("fp8", "fp8"))
        for n, k, m in product((32, *grid, 65536), grid, SIZES)
    ]
    heads = [(32, 8), (16, 4), (8, 2), (4, 1)]
    plain = {"head_dim": 128, "attn_dtype": "bfloat16", "kv_cache_dtype": "bfloat16"}
    prefill = [
        {"num_heads": h, "num_key_value_heads": kv, **plain, "batch_size": batch, "isl": new,
         "step": 0, "latency": prefill_ms(h, new, batch)}
        for (h, kv), new, batch in product(
            heads, (16, 64, 256, 1024, 4096), (1, 2, 8, 32, 128, 512)
        )
    ]  # fmt: skip
    decode = [
        {"num_heads": h, "num_key_value_heads": kv, **plain, "batch_size": batch, "isl": 1,
         "step": context - 1, "latency": decode_ms(kv, context, batch)}
        for (h, kv), context, batch in product(heads, (2, 128, 1024, 8192, 32768), (1, 8, 64, 256))
    ]  # fmt: skip
    moe = [
        {"moe_dtype": name, "num_tokens": tokens, "hidden_size": 4096, "inter_size": 14336,
         "topk": 2, "num_experts": 8, "moe_tp_size": tensor, "moe_ep_size": parts,
         "distribution": spread, "latency": moe_ms(tokens, tensor, parts)}
        for name, (tensor, parts), spread, tokens in product(
            ("bfloat16", "fp8"), ((1, 1), (2, 1), (1, 2), (4, 1), (8, 1)),
            ("balanced", "power_law_1.2"), SIZES,
        )
    ]  # fmt: skip
    comm = [
        {"op_name": "all_reduce", "allreduce_dtype": "bfloat16", "num_gpus": ranks,
         "message_size": size, "latency": 0.004 + 2 * size / 1e11 * 1e3}
        for ranks, size in product((2, 4, 8), (128, 8192, 524288, 2**25))
    ]  # fmt: skip
    return {
        "gemm/trtllm/1.0.0/gemm_perf.parquet": pd.DataFrame(gemm),
        "attention/trtllm/1.0.0/context_attention_perf.parquet": pd.DataFrame(prefill),
        "attention/trtllm/1.0.0/generation_attention_perf.parquet": pd.DataFrame(decode),
        "moe/trtllm/1.0.0/moe_perf.parquet": pd.DataFrame(moe),
        "comm/trtllm/1.0.0/custom_allreduce_perf.parquet": pd.DataFrame(comm),
    }


@pytest.fixture
def write(tmp_path: Path) -> Writer:
    """Write the tables, some of them changed, as the package lays them out."""

    def written(**changed: Callable[[pd.DataFrame], pd.DataFrame]) -> Path:
        for path, frame in frames().items():
            change = changed.get(path.split("/")[-1].removesuffix("_perf.parquet"))
            file = tmp_path / "tables" / "h100_sxm" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            (change(frame) if change else frame).to_parquet(file)
        return tmp_path / "tables"

    return written
