"""Profiles of LLMServingSim (MIT): one model on one device, a folder of CSV files a group size.

The folder of a variant holds `meta.yaml` and `tp1`, `tp2`, ... with

| file | columns | is |
|---|---|---|
| attention.csv | prefill_chunk, kv_prefill, n_decode, kv_decode, time_us | one layer's attention |
| dense.csv | layer, tokens, time_us | products and norms of a layer |
| moe.csv (with experts) | tokens, activated_experts, time_us | one layer's experts |
| per_sequence.csv | layer, sequences, time_us | head and sampling |

Times are in microseconds. Attention of chunks and decodes together is passed over: the two alone
are taken, and added up.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.cost.kernels.cleaning import kept, levelled
from moesim.cost.kernels.frames import groups, numbers, read_table
from moesim.cost.kernels.projections import format_of, products_of, qkv_width
from moesim.cost.kernels.shapes import heads_of
from moesim.cost.kernels.tables import Decode, Elementwise, Gemm, Moe, Prefill
from moesim.errors import ProfileError, ScenarioError
from moesim.facts.models import ModelSpec
from moesim.files import read_yaml

PRODUCTS = {"qkv_proj": "qkv", "o_proj": "o", "gate_up_proj": "up", "down_proj": "down"}
"""Our names of the products in `dense.csv`."""

PASSES = {
    "layernorm": "norm",
    "rotary_emb": "rope",
    "qk_norm": "qk_norm",
    "embedding": "embedding",
    "act_fn": "activation",
}
"""Our names of its other kernels."""

COUNTED = "counted"
"""How experts were hit: a number of them, set apart."""

Curves = dict[str, list[Any]]
"""By family."""


def variant_folder(folder: Path) -> Path:
    """Return the folder that has `meta.yaml`, itself or the only one inside."""
    found = sorted(folder.rglob("meta.yaml"))
    if len(found) != 1:
        some = ", ".join(str(path.parent) for path in found[:3]) or "none"
        raise ProfileError(f"{folder}: expected one meta.yaml in it, found {some}; name its folder")
    return found[0].parent


def software_of(folder: Path) -> str:
    """Return the software that was profiled, and the device it ran on."""
    try:
        meta = read_yaml(folder / "meta.yaml")
    except ScenarioError as wrong:
        raise ProfileError(str(wrong)) from None
    if not isinstance(meta, dict):
        raise ProfileError(f"{folder / 'meta.yaml'}: expected keys and values; fetch it again")
    version, gpu = meta.get("vllm_version", "?"), meta.get("gpu", "a device not named")
    return f"vLLM {version} on {gpu}"


def curves_of(folder: Path, spec: ModelSpec) -> tuple[Curves, list[str]]:
    """Return the curves of a variant's folder by family, and the files they are from.

    Raises ProfileError where a file is broken or absent, or the model is another.
    """
    ranks = sorted(int(path.name[2:]) for path in folder.glob("tp[0-9]*") if path.is_dir())
    if not ranks:
        raise ProfileError(f"{folder}: no folder tp1; give the folder that has it")
    found: Curves = {}
    files: list[str] = []
    for count in ranks:
        for file, family, curve in _of_group(folder / f"tp{count}", spec, count):
            found.setdefault(family, []).append(curve)
            if file not in files:
                files.append(file)
    found["elementwise"] = _once(found.get("elementwise", []))
    return found, files


def _once(curves: list[Elementwise]) -> list[Elementwise]:
    """Keep the first of kernels that are the same on every rank."""
    return list({(curve.name, curve.width): curve for curve in reversed(curves)}.values())


def _of_group(folder: Path, spec: ModelSpec, ranks: int) -> Iterator[tuple[str, str, Any]]:
    name = folder.name
    for family, curve in _attention(folder / "attention.csv", spec, ranks):
        yield f"{name}/attention.csv", family, curve
    for family, curve in _dense(folder / "dense.csv", spec, ranks):
        yield f"{name}/dense.csv", family, curve
    for family, curve in _per_sequence(folder / "per_sequence.csv", spec, ranks):
        yield f"{name}/per_sequence.csv", family, curve
    if spec.num_local_experts:
        yield f"{name}/moe.csv", "moe", _moe(folder / "moe.csv", spec, ranks)


def _read(path: Path, columns: list[str]) -> pd.DataFrame:
    frame = read_table(path, columns)
    frame = numbers(frame, [name for name in columns if name != "layer"], str(path))
    rows: pd.DataFrame = frame.loc[frame["time_us"] > 0]
    return rows


def _attention(path: Path, spec: ModelSpec, ranks: int) -> Iterator[tuple[str, Any]]:
    columns = ["prefill_chunk", "kv_prefill", "n_decode", "kv_decode", "time_us"]
    frame = _read(path, columns)
    shape = {**heads_of(spec, ranks)._asdict(), "kv_format": format_of(spec)}
    chunks = frame[(frame["n_decode"] == 0) & (frame["prefill_chunk"] > 0)]
    decodes = frame[(frame["prefill_chunk"] == 0) & (frame["n_decode"] > 0)]
    decodes = decodes[decodes["kv_decode"] > 0]
    if chunks.empty or decodes.empty:
        raise ProfileError(f"{path}: no rows of chunks alone or of decodes alone; fetch it again")
    yield (
        "prefill",
        Prefill(
            **shape,
            sequences=(1,) * len(chunks),
            new_tokens=_ints(chunks["prefill_chunk"]),
            context=_ints(chunks["kv_prefill"]),
            us=_floats(chunks["time_us"]),
        ),
    )
    yield (
        "decode",
        Decode(
            **shape,
            sequences=_ints(decodes["n_decode"]),
            context=_ints(decodes["kv_decode"]),
            us=_floats(decodes["time_us"]),
        ),
    )


def _dense(path: Path, spec: ModelSpec, ranks: int) -> Iterator[tuple[str, Any]]:
    frame = _read(path, ["layer", "tokens", "time_us"])
    products = products_of(spec, ranks)
    there = set(frame["layer"])
    for name in ("qkv_proj", "o_proj"):
        if name not in there:
            raise ProfileError(f"{path}: layer: no rows of {name}; it has {', '.join(there)}")
    for (layer,), rows in groups(frame, ["layer"]):
        if layer in PRODUCTS and PRODUCTS[layer] in products:
            yield "gemm", product(rows, "tokens", products[PRODUCTS[layer]], format_of(spec))
        elif layer in PASSES:
            tokens, us = cleaned(rows, "tokens")
            width = widths(spec, ranks)[PASSES[layer]]
            yield "elementwise", Elementwise(name=PASSES[layer], width=width, tokens=tokens, us=us)


def _per_sequence(path: Path, spec: ModelSpec, ranks: int) -> Iterator[tuple[str, Any]]:
    frame = _read(path, ["layer", "sequences", "time_us"])
    for (layer,), rows in groups(frame, ["layer"]):
        if layer == "lm_head":
            shape = products_of(spec, ranks)["head"]
            yield "gemm", product(rows, "sequences", shape, format_of(spec))
        elif layer == "sampler":
            tokens, us = cleaned(rows, "sequences")
            yield (
                "elementwise",
                Elementwise(name="sampling", width=spec.vocab_size, tokens=tokens, us=us),
            )


def _moe(path: Path, spec: ModelSpec, ranks: int) -> Moe:
    frame = _read(path, ["tokens", "activated_experts", "time_us"])
    most = int(frame["activated_experts"].max())
    if most > spec.num_local_experts:
        raise ProfileError(
            f"{path}: activated_experts: {most}, the model has {spec.num_local_experts} a layer; "
            "give the model that was profiled"
        )
    return Moe(
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        experts=spec.num_local_experts,
        top_k=spec.num_experts_per_tok,
        tensor_parallel=ranks,
        format=format_of(spec),
        distribution=COUNTED,
        tokens=_ints(frame["tokens"]),
        distinct=_ints(frame["activated_experts"]),
        us=_floats(frame["time_us"]),
    )


def widths(spec: ModelSpec, ranks: int) -> dict[str, int]:
    """Return the values of a token that elementwise kernels pass over on one rank."""
    heads = heads_of(spec, ranks)
    inner = spec.dense_intermediate_size or spec.intermediate_size
    return {
        "norm": spec.hidden_size,
        "embedding": spec.hidden_size,
        "rope": qkv_width(heads),
        "qk_norm": qkv_width(heads),
        "activation": max(1, inner // ranks),
    }


def product(rows: pd.DataFrame, size: str, shape: tuple[int, int], number_format: str) -> Gemm:
    """Return the rows of one product as a curve."""
    tokens, us = cleaned(rows, size)
    return Gemm(format=number_format, n=shape[0], k=shape[1], tokens=tokens, us=us)


def cleaned(rows: pd.DataFrame, size: str) -> tuple[tuple[int, ...], tuple[float, ...]]:
    """Return sizes and durations in order, spikes dropped and the rest made to rise."""
    one = rows.groupby(size, sort=True)["time_us"].median()
    places = kept(one.tolist())
    sizes = [int(value) for value in one.index]
    return (
        tuple(sizes[place] for place in places),
        tuple(rounded(us) for us in levelled([one.iloc[place] for place in places])),
    )


def rounded(us: float) -> float:
    """Return microseconds with four digits, as files have them."""
    return float(f"{us:.4g}")


def _ints(values: pd.Series) -> tuple[int, ...]:
    return tuple(int(value) for value in values)


def _floats(values: pd.Series) -> tuple[float, ...]:
    return tuple(rounded(float(value)) for value in values)
