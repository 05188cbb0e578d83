"""Rooflines of groups beside what was measured on them, small batches and full ones.

    python benchmarks/roofline_check.py [serving.csv]

Nothing is fitted to these rows: all that is known of the systems is their datasheets, the shares of
them that kernels reach, what passes over few tokens take and the fitted all-reduces. Latencies
count no host and no sampling: they are far below what early servers reached with small batches.

With a table of published results (columns model, gpu, tp, precision, isl, osl, metric, value,
software) its TensorRT-LLM 0.14 throughputs at unlimited load are added, for prompts and answers of
the same lengths. There the batch is taken as large as the KV cache allows, with full lengths
reserved, and at most 2048, that version's default; every iteration decodes all and takes in as many
prompt tokens as leave.
"""

import argparse
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.cost.iteration import CostModel
from moesim.cost.roofline import BLOCK_SIZE, blocks_beside, on_slice, roofline_profile
from moesim.facts.catalog import load_device, load_model
from moesim.facts.configs import ARCHITECTURES
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice, group, whole

MAX_BATCH = 2048
PASS_TOKENS = 32768
"""Prompt tokens in one pass of servers that did not cut prompts, Mixtral's longest context."""

DEVICES = {
    "A100-SXM4-80GB": "a100-sxm-80gb",
    "H100-SXM-80GB": "h100-sxm-80gb",
    "H200-SXM-141GB": "h200-sxm-141gb",
}
MODELS = {
    "Mixtral-8x7B": "mixtral-8x7b",
    "Mixtral-8x22B": "mixtral-8x22b",
    "Llama-3.1-8B": "llama-3-8b",
    "Llama-3.1-70B": "llama-3-70b",
}
PRECISIONS = {
    "FP16": Precision(),
    "FP8": Precision(experts="fp8", rest="fp8", kv="fp8"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """A batch of like requests that start together, and how long until the last is answered."""

    source: str
    model: str
    device: str
    ranks: int
    batch: int
    prompt: int
    output: int
    measured_s: float
    precision: str = "bf16"


def _vllm(device: str, ranks: int, measured: dict[int, float]) -> list[Latency]:
    """Return published latencies of vLLM, Mixtral, 1,000 tokens in and 50 out, by batch."""
    return [
        Latency(
            source="vLLM",
            model="mixtral-8x7b",
            device=device,
            ranks=ranks,
            batch=batch,
            prompt=1000,
            output=50,
            measured_s=seconds,
        )
        for batch, seconds in measured.items()
    ]


def _gpt_fast(model: str, precision: str, tokens_per_s: dict[int, float]) -> list[Latency]:
    """Return gpt-fast's README, A100 at 330 W: batch 1, 5 tokens in, 200 out, by ranks."""
    return [
        Latency(
            source="gpt-fast",
            model=model,
            device="a100-sxm-80gb",
            ranks=ranks,
            batch=1,
            prompt=5,
            output=200,
            measured_s=200 / rate,
            precision=precision,
        )
        for ranks, rate in tokens_per_s.items()
    ]


LATENCIES = [
    *_vllm("a100-sxm-80gb", 2, {1: 0.762, 4: 1.449, 16: 2.893, 64: 7.537}),
    *_vllm("h100-sxm-80gb", 8, {1: 0.459, 4: 0.610, 16: 1.044, 64: 2.419}),
    Latency(
        source="vLLM",
        model="mixtral-8x7b",
        device="h100-sxm-80gb",
        ranks=2,
        batch=8,
        prompt=32,
        output=128,
        measured_s=2.327,
    ),
    *_gpt_fast("mixtral-8x7b", "bf16", {2: 96.67, 8: 227.82}),
    *_gpt_fast("mixtral-8x7b", "int8", {1: 97.92, 2: 155.03, 8: 279.35}),
    *_gpt_fast("llama-3-8b", "bf16", {1: 93.83, 2: 149.10, 8: 276.01}),
    *_gpt_fast("llama-3-70b", "bf16", {2: 16.03, 8: 58.78}),
]


def main() -> int:
    """Print one table, or two."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", nargs="?", type=Path, help="published throughputs")
    table = parser.parse_args().table
    print(pd.DataFrame(map(_latency_row, LATENCIES)).to_string(index=False))
    if table:
        print()
        rows = pd.DataFrame(throughput_rows(pd.read_csv(table)))
        print(rows.to_string(index=False))
        low, median, high = rows["ratio"].quantile([0.1, 0.5, 0.9])
        print(f"ratio, {len(rows)} rows: median {median:.2f}, p10 {low:.2f}, p90 {high:.2f}")
    return 0


def _latency_row(row: Latency) -> dict[str, object]:
    predicted = latency_s(row)
    return {
        "source": row.source,
        "model": row.model,
        "system": f"{row.ranks}x {row.device}",
        "weights": row.precision,
        "batch": row.batch,
        "in/out": f"{row.prompt}/{row.output}",
        "measured s": f"{row.measured_s:.3f}",
        "roofline s": f"{predicted:.3f}",
        "error": f"{predicted / row.measured_s - 1:+.0%}",
    }


def latency_s(row: Latency) -> float:
    """Return how long the batch takes: its prompts in whole passes, then decodes alone [s]."""
    spec, device = _model(row.model), load_device(row.device)
    cost = _cost(spec, device, _slice(device, row.ranks), Precision.uniform(row.precision))
    passes = max(1, -(-row.batch * row.prompt // PASS_TOKENS))
    some = row.batch / passes
    prefill = cost.but_prefill_attention_s(round(some * row.prompt), round(some), round(some), 0, 0)
    attention = row.batch * cost.prefill_attention_s(row.prompt, 0)
    contexts = row.batch * (row.prompt + 1 + np.arange(row.output - 1))
    decodes = [
        cost.but_prefill_attention_s(row.batch, row.batch, row.batch, row.batch, int(context))
        for context in contexts
    ]
    return passes * prefill + attention + sum(decodes)


def throughput_rows(table: pd.DataFrame) -> Iterator[dict[str, object]]:
    """Yield each published throughput with the roofline's."""
    wanted = (
        (table["software"] == "TensorRT-LLM 0.14")
        & (table["metric"] == "output_tokens_per_s")
        & table["model"].isin(MODELS)
        & table["gpu"].isin(DEVICES)
        & table["precision"].isin(PRECISIONS)
        & (table["isl"] == table["osl"])
    )
    for _, row in table[wanted].iterrows():
        spec, device = _model(MODELS[row["model"]]), load_device(DEVICES[row["gpu"]])
        precision, length = PRECISIONS[row["precision"]], int(row["isl"])
        batch, predicted = tokens_per_s(spec, device, int(row["tp"]), precision, length)
        yield {
            "model": row["model"],
            "system": f"{row['tp']:.0f}x {row['gpu']}",
            "weights": row["precision"],
            "in/out": f"{length}/{length}",
            "batch": batch,
            "measured tokens/s": round(row["value"]),
            "roofline tokens/s": round(predicted),
            "ratio": round(predicted / row["value"], 2),
        }


def tokens_per_s(
    spec: ModelSpec, device: Device, ranks: int, precision: Precision, length: int
) -> tuple[int, float]:
    """Return the batch that fits, and output tokens a second with prompts as long as answers."""
    part = _slice(device, ranks)
    blocks = blocks_beside(spec, device.memory_bytes, BLOCK_SIZE, precision=precision, part=part)
    batch = max(1, min(MAX_BATCH, blocks * BLOCK_SIZE // (2 * length)))
    cost = _cost(spec, device, part, precision)
    starts = batch / length
    iteration_s = cost.but_prefill_attention_s(
        2 * batch, batch, batch, batch, round(batch * 1.5 * length)
    ) + starts * cost.prefill_attention_s(length, 0)
    return batch, batch / iteration_s


def _cost(spec: ModelSpec, device: Device, part: Slice, precision: Precision) -> CostModel:
    limits = {"max_batched_tokens": PASS_TOKENS, "max_num_seqs": MAX_BATCH}
    profile = roofline_profile(spec, device, precision=precision, **limits)
    return CostModel(on_slice(profile, device, part, precision=precision), **limits)


def _model(name: str) -> ModelSpec:
    return load_model(name, architectures=ARCHITECTURES)


def _slice(device: Device, ranks: int) -> Slice:
    return group(device, tensor_parallel=ranks) if ranks > 1 else whole(device)


if __name__ == "__main__":
    raise SystemExit(main())
