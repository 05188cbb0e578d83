"""Fit the cost of all-reduces, as device files carry it, to a table of measurements.

    python benchmarks/fit_collectives.py comm.parquet

The table is AIConfigurator's (NVIDIA, Apache-2.0): latency in ms over message_size in elements of
16 bits, by system and number of GPUs. Of its all-reduces those are read that a server runs inside
CUDA graphs: the custom kernels of vLLM, SGLang and TensorRT-LLM, which pass on to NCCL where a
message is long, in bfloat16, all versions. Sizes of 1,024 to 67,108,864 elements are a quarter of a
token to 16,384 tokens of Mixtral.

A size's figure is the median over kernels and versions, so that a stray run counts for nothing.
Servers reduce short messages in one exchange and long ones in two or by NCCL: the duration is the
lesser of two lines latency + bytes / bandwidth. Those with the least sum of relative deviations
(not of their squares) are taken, of all lines through two of the points.
"""

import argparse
import sys
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

Floats = NDArray[np.float64]

KERNELS = ("vLLM_custom_graph", "SGLang_CustomAllReduce_graph", "TRTLLM")
ELEMENT_BYTES = 2
LEAST, MOST = 2**10, 2**26
"""Sizes that are fitted [elements]."""


def main() -> int:
    """Print the fits as they stand in data/hardware."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("table", metavar="comm.parquet", type=Path, help="measured collectives")
    path = parser.parse_args().table
    try:
        table = pd.read_parquet(path)
    except (OSError, ValueError):
        print(f"error: {path}: not a Parquet file; give comm.parquet", file=sys.stderr)
        return 2
    for system, rows in points_of(table).groupby(level="gpu"):
        print(f"# {system}\nall_reduce:")
        for ranks, sizes in rows.groupby(level="num_gpus"):
            lines, errors = lines_of(
                sizes.index.get_level_values("message_size").to_numpy() * float(ELEMENT_BYTES),
                sizes.to_numpy() / 1e3,
            )
            print(f"  {ranks}:  # off by {errors.max():.0%} at most")
            for name, (latency_s, bytes_per_s) in zip(("short", "long"), lines, strict=True):
                print(f"    {name}: {{latency_s: {latency_s:.2e}, bytes_per_s: {bytes_per_s:.2e}}}")
            print(f"    typical_error: {np.median(errors):.3f}")
    return 0


def points_of(table: pd.DataFrame) -> "pd.Series[float]":
    """Return median latencies [ms] by system, number of GPUs and elements."""
    wanted = (
        (table["op_name"] == "all_reduce")
        & (table["allreduce_dtype"] == "bfloat16")
        & table["kernel_source"].isin(KERNELS)
        & table["message_size"].between(LEAST, MOST)
    )
    return table[wanted].groupby(["gpu", "num_gpus", "message_size"])["latency"].median()


def lines_of(sizes: Floats, durations: Floats) -> tuple[list[tuple[float, float]], Floats]:
    """Fit the lesser of two lines `latency + size / bandwidth`.

    Returns latency [s] and bandwidth [B/s] of both, the one for short messages first, and the
    relative deviations at the sizes.
    """
    lines = np.array(list(_through_pairs(sizes, durations)))  # [N, 2]
    alone = lines[:, :1] + lines[:, 1:] * sizes  # [N, sizes]
    deviations = np.abs(np.minimum(alone[:, None], alone[None]) / durations - 1)  # [N, N, sizes]
    first, second = divmod(int(deviations.sum(axis=-1).argmin()), len(lines))
    chosen = sorted((float(lines[one][0]), 1 / float(lines[one][1])) for one in (first, second))
    return chosen, deviations[first, second]


def _through_pairs(sizes: Floats, durations: Floats) -> Iterator[tuple[float, float]]:
    """Yield latency and slope of each line through two points that has both above zero."""
    for i, j in combinations(range(len(sizes)), 2):
        slope = (durations[j] - durations[i]) / (sizes[j] - sizes[i])
        latency = durations[i] - slope * sizes[i]
        if slope > 0 and latency > 0:
            yield latency, slope


if __name__ == "__main__":
    raise SystemExit(main())
