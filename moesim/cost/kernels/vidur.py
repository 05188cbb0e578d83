"""Profiles of Vidur (MIT) and of its kin: one model on one device, CSV files with `time_stats`.

| file | is |
|---|---|
| mlp.csv | products and norms of a layer, by num_tokens and num_tensor_parallel_workers |
| attention.csv | attention by batch_size, prefill_chunk_size, kv_cache_size and is_prefill |
| all_reduce.csv (optional) | all-reduces by num_workers and size [B] |
| moe.csv (optional; Frontier's) | grouped products of experts, one device or a group |

Times are medians in milliseconds. Files may be gzipped.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.cost.kernels.curves import MICRO
from moesim.cost.kernels.exchanges import ALL_REDUCE
from moesim.cost.kernels.frames import groups, numbers, read_table
from moesim.cost.kernels.llmservingsim import Curves, cleaned, product, rounded, widths
from moesim.cost.kernels.projections import format_of, products_of
from moesim.cost.kernels.shapes import heads_of
from moesim.cost.kernels.tables import Collective, Decode, Elementwise, Moe, Prefill
from moesim.errors import ProfileError
from moesim.facts.models import ModelSpec

MILLI = 1e-3
RANKS = "num_tensor_parallel_workers"

PRODUCTS = {
    "attn_pre_proj": "qkv",
    "attn_post_proj": "o",
    "mlp_up_proj": "up",
    "mlp_down_proj": "down",
}
"""Our names of the products in `mlp.csv`."""

PASSES = {
    "emb": "embedding",
    "input_layernorm": "norm",
    "attn_rope": "rope",
    "mlp_act": "activation",
}
"""Our names of its other kernels."""


def curves_of(folder: Path, spec: ModelSpec) -> tuple[Curves, list[str]]:
    """Return the curves of a folder by family, and the files they are from.

    Raises ProfileError where a file is broken or absent, or the model is another.
    """
    found: Curves = {}
    files = []
    for name, reader, needed in (
        ("mlp", _mlp, True),
        ("attention", _attention, True),
        ("all_reduce", _all_reduce, False),
        ("moe", _moe, bool(spec.num_local_experts)),
    ):
        path = _file(folder, name, needed=needed)
        if path is None:
            continue
        files.append(path.name)
        for family, curve in reader(path, spec):
            found.setdefault(family, []).append(curve)
    once = {(curve.name, curve.width): curve for curve in reversed(found.get("elementwise", []))}
    found["elementwise"] = list(once.values())
    return found, files


def _file(folder: Path, name: str, *, needed: bool) -> Path | None:
    for path in (folder / f"{name}.csv", folder / f"{name}.csv.gz"):
        if path.is_file():
            return path
    if needed:
        raise ProfileError(f"{folder}: no {name}.csv; give the folder that has it")
    return None


def _read(path: Path, names: Sequence[str], columns: Sequence[str]) -> pd.DataFrame:
    times = [f"time_stats.{name}.median" for name in names]
    return read_table(path, [*times, *columns])


def _timed(frame: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows with a duration of this kernel, as `time_us`."""
    column = f"time_stats.{name}.median"
    us = pd.to_numeric(frame[column], errors="coerce") * (MILLI / MICRO)
    timed = frame.assign(time_us=us)
    rows: pd.DataFrame = timed.loc[timed["time_us"] > 0]
    return rows


def _mlp(path: Path, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    shape = ["n_head", "n_kv_head", "n_embd"]
    frame = _read(path, [*list(PRODUCTS)[:2]], [*shape, "num_tokens", RANKS])
    frame = numbers(frame, [*shape, "num_tokens", RANKS], str(path))
    _same_model(path, frame, spec)
    for (ranks,), rows in groups(frame, [RANKS]):
        products = products_of(spec, int(ranks))
        for name, ours in PRODUCTS.items():
            if f"time_stats.{name}.median" in rows and ours in products:
                timed = _timed(rows, name)
                if len(timed):
                    yield "gemm", product(timed, "num_tokens", products[ours], format_of(spec))
        for name, ours in PASSES.items():
            if f"time_stats.{name}.median" in rows:
                timed = _timed(rows, name)
                if len(timed):
                    tokens, us = cleaned(timed, "num_tokens")
                    width = widths(spec, int(ranks))[ours]
                    yield "elementwise", Elementwise(name=ours, width=width, tokens=tokens, us=us)


def _same_model(path: Path, frame: pd.DataFrame, spec: ModelSpec) -> None:
    """Raise ProfileError where a file is of another model than the one that is named."""
    names = {name: column for column, name in _SHAPE.items() if column in frame}
    for name, column in names.items():
        measured, wanted = int(frame[column].iloc[0]), getattr(spec, name)
        if measured != wanted:
            raise ProfileError(
                f"{path}: {column}: {measured}, the model has {name} {wanted}; give the model that "
                "was profiled"
            )


_SHAPE = {
    "n_head": "num_attention_heads",
    "n_q_head": "num_attention_heads",
    "n_kv_head": "num_key_value_heads",
    "n_embd": "hidden_size",
    "num_experts": "num_local_experts",
    "hidden_dim": "hidden_size",
    "expert_hidden_dim": "intermediate_size",
    "router_topk": "num_experts_per_tok",
}
"""Their names of a model's shape, and ours."""


def _attention(path: Path, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    sizes = ["batch_size", "prefill_chunk_size", "kv_cache_size", "n_q_head", "n_kv_head", RANKS]
    frame = _read(path, ["attn_prefill", "attn_decode"], [*sizes, "is_prefill"])
    frame = numbers(frame, sizes, str(path))
    _same_model(path, frame, spec)
    for (ranks,), rows in groups(frame, [RANKS]):
        shape = {**heads_of(spec, int(ranks))._asdict(), "kv_format": format_of(spec)}
        chunks = _timed(rows[rows["prefill_chunk_size"] > 0], "attn_prefill")
        chunks = _one_each(chunks, ["prefill_chunk_size", "kv_cache_size"])
        if len(chunks):
            yield (
                "prefill",
                Prefill(
                    **shape,
                    sequences=(1,) * len(chunks),
                    new_tokens=_ints(chunks["prefill_chunk_size"]),
                    context=_ints(chunks["kv_cache_size"]),
                    us=tuple(map(rounded, chunks["time_us"])),
                ),
            )
        decodes = _timed(rows[rows["prefill_chunk_size"] == 0], "attn_decode")
        decodes = _one_each(decodes, ["batch_size", "kv_cache_size"])
        if len(decodes):
            yield (
                "decode",
                Decode(
                    **shape,
                    sequences=_ints(decodes["batch_size"]),
                    context=_ints(decodes["kv_cache_size"]),
                    us=tuple(map(rounded, decodes["time_us"])),
                ),
            )


def _one_each(rows: pd.DataFrame, columns: list[str]) -> pd.DataFrame:
    return rows.groupby(columns, sort=True)["time_us"].median().reset_index()


def _all_reduce(path: Path, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    frame = _read(path, [ALL_REDUCE], ["num_workers", "size"])
    frame = _timed(numbers(frame, ["num_workers", "size"], str(path)), ALL_REDUCE)
    if "devices_per_node" in frame:  # workers of one node, where a file has both
        frame = frame[frame["devices_per_node"] == frame["num_workers"]]
    for (ranks,), rows in groups(frame, ["num_workers"]):
        sizes, us = cleaned(rows, "size")
        yield (
            "collectives",
            Collective(operation=ALL_REDUCE, ranks=int(ranks), bytes=sizes, us=us),
        )


def _moe(path: Path, spec: ModelSpec) -> Iterator[tuple[str, Any]]:
    """Yield grouped products: as they were measured, visits fell as uniform routers send them."""
    parts = "expert_parallel_size"
    frame = _read(path, ["moe_grouped_gemm"], ["num_tokens", parts, RANKS])
    frame = numbers(frame, ["num_tokens", parts, RANKS], str(path))
    _same_model(path, frame, spec)
    for (tensor, dealt), rows in groups(frame, [RANKS, parts]):
        timed = _timed(rows, "moe_grouped_gemm")
        if timed.empty:
            continue
        tokens, us = cleaned(timed, "num_tokens")
        yield (
            "moe",
            Moe(
                hidden=spec.hidden_size,
                inner=spec.intermediate_size,
                experts=spec.num_local_experts,
                top_k=spec.num_experts_per_tok,
                tensor_parallel=int(tensor),
                expert_parallel=int(dealt),
                format=format_of(spec),
                distribution="uniform",
                tokens=tokens,
                us=us,
            ),
        )


def _ints(values: pd.Series) -> tuple[int, ...]:
    return tuple(int(value) for value in values)
