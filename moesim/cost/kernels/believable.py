"""Attention that reads keys and values faster than memory can give them: a fault of its table.

Measured over and over on blocks of cache that sequences share, attention finds them in the device's
own cache. Its rows are then too fast long before they are impossible, so that the table as a whole
is not believed.
"""

import numpy as np
import pandas as pd

from moesim.facts.hardware import Device
from moesim.facts.precision import FORMATS

UNCACHED_BYTES = 256 * 2**20
"""Keys and values that fit into no device's own cache: five times those of A100 to H200 [B]."""

DOUBTED = 0.02
"""Share of impossible rows from which on a table is not believed: clocks err a little."""

CELL = ["format", "num_heads", "num_key_value_heads", "head_dim", "batch_size", "context"]
"""What makes rows of two tables the same measurement."""


def kv_bytes(rows: pd.DataFrame) -> pd.Series:
    """Return the keys and values that each row of decoding reads, one layer [B]."""
    heads = rows["num_key_value_heads"].where(rows["num_key_value_heads"] > 0, rows["num_heads"])
    each = rows["format"].map(lambda name: FORMATS[name].bytes_of(1))
    return rows["batch_size"] * rows["context"] * 2 * heads * rows["head_dim"] * each


def share_beyond_memory(rows: pd.DataFrame, device: Device) -> float:
    """Return the share of rows with much to read that read it faster than the datasheet allows.

    `rows` have the columns `CELL` and `latency` [ms]; 0 where none has much to read.
    """
    peak = device.memory_bandwidth_bytes_per_s
    read = kv_bytes(rows)
    much = read >= UNCACHED_BYTES
    if peak is None or not much.any():
        return 0.0
    rate = read[much] / (rows.loc[much, "latency"] * 1e-3)
    return float((rate > peak).mean())


def slowed(rows: pd.DataFrame, device: Device) -> pd.DataFrame:
    """Return the rows with none faster than the datasheet's memory."""
    peak = device.memory_bandwidth_bytes_per_s or float("inf")
    return rows.assign(latency=rows["latency"].clip(lower=kv_bytes(rows) / peak * 1e3))


def distance(rows: pd.DataFrame, others: pd.DataFrame) -> float:
    """Return by how much rows that fit into a cache differ in two tables, median of |log|."""
    small = rows[kv_bytes(rows) < UNCACHED_BYTES]
    both = small.merge(others, on=CELL, suffixes=("", "_other"))
    if both.empty:
        return float("inf")
    return float(np.median(np.abs(np.log(both["latency"] / both["latency_other"]))))
