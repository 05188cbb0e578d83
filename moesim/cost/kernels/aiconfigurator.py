"""Tables of AIConfigurator (NVIDIA, Apache-2.0): from the user's own installation, or a folder.

The package `aiconfigurator-core` holds `systems/data/SYSTEM/FAMILY/FRAMEWORK/VERSION/*.parquet`. A
folder may be such a `data`, or hold parquet files of several of these one after the other, told
apart by the columns `gpu` and `file` (the path within `data`).

Latencies are in milliseconds, of one layer on one rank; `message_size` counts values, not bytes;
the `step` of decoding is the context before the new token. Rows of windowed attention, other head
widths and other formats are passed over.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np
import pandas as pd

from moesim.cost.expected import Rates
from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.believable import DOUBTED, distance, share_beyond_memory, slowed
from moesim.cost.kernels.cleaning import kept, levelled
from moesim.cost.kernels.curves import MICRO, bracket
from moesim.cost.kernels.denser import filled
from moesim.cost.kernels.exchanges import ALL_REDUCE
from moesim.cost.kernels.experts import BALANCED, BORROWED, Cut, Layer
from moesim.cost.kernels.frames import groups, numbers, only, read_table
from moesim.cost.kernels.gemm import gemm_roofline_s
from moesim.cost.kernels.shapes import Shapes
from moesim.cost.kernels.tables import SPIKES, Collective, Decode, Gemm, Moe, Prefill
from moesim.errors import ProfileError
from moesim.facts.hardware import Device

PACKAGE = "aiconfigurator-core"

DEVICES = {
    "a100_sxm": "a100-sxm-80gb",
    "h100_sxm": "h100-sxm-80gb",
    "h200_sxm": "h200-sxm-141gb",
    "l40s": "l40s-48gb",
}
"""Shipped devices by the name that the tables give the system."""

FORMATS = {"bfloat16": "bf16", "fp8": "fp8", "int8_wo": "int8", "int4_wo": "int4"}
"""Our names of the formats that we know; `_wo` narrows weights only."""

SPARSE = 2
"""A table is denser than another that has fewer than half of its sizes."""

MILLI = 1e-3
MESSAGE_BYTES = 2
"""Bytes of a value of an all-reduce in 16 bits."""

TOO_SLOW = 1.5
"""Ratio to 16 bits from which on experts in 8 bits are taken for a fault of the table: they read
half the bytes and do as many products at twice the rate."""

OFF_SCALE = 30.0
"""Ratio to the datasheet from which on large products are taken to be in another unit."""

FAMILIES = {
    "gemm": ("gemm", "gemm_perf.parquet", ("gemm_dtype", "m", "n", "k", "latency")),
    "prefill": (
        "attention",
        "context_attention_perf.parquet",
        ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "latency"),
    ),
    "decode": (
        "attention",
        "generation_attention_perf.parquet",
        ("batch_size", "isl", "num_heads", "num_key_value_heads", "head_dim", "step", "latency"),
    ),
    "moe": (
        "moe",
        "moe_perf.parquet",
        ("moe_dtype", "num_tokens", "hidden_size", "inter_size", "topk", "num_experts",
         "moe_tp_size", "moe_ep_size", "distribution", "latency"),
    ),
    "collectives": (
        "comm",
        "custom_allreduce_perf.parquet",
        ("num_gpus", "message_size", "latency"),
    ),
}  # fmt: skip
"""By family of kernels: the folder, the file, and the columns that are needed."""

TEXT = {"gemm_dtype", "moe_dtype", "distribution"}
"""The columns that are no numbers."""


@dataclass(frozen=True, slots=True)
class Source:
    """Where the tables of one system and framework are."""

    folder: Path
    system: str
    backend: str
    joined: bool
    """Whether the folder holds files of several tables one after the other."""

    @classmethod
    def at(cls, folder: Path | None, system: str, backend: str) -> "Source":
        """Find the tables; ProfileError, with what there is, where there are none."""
        root = _installed() if folder is None else folder
        if not root.is_dir():
            raise ProfileError(f"{root}: no such folder; give the folder of the tables")
        for data in (root, root / "data", root / "systems" / "data"):
            if (data / system).is_dir():
                return cls(data, system, backend, joined=False)
        if sorted(root.glob("*.parquet")):
            return cls(root, system, backend, joined=True)
        there = sorted(p.name for p in (root / "systems" / "data").glob("*") if p.is_dir())
        raise ProfileError(
            f"{root}: no tables of the system {system!r}; "
            f"{'there are ' + ', '.join(there) if there else 'no parquet file in it'}"
        )

    def others(self) -> list["Source"]:
        """Return the tables of other frameworks on the same system, by name; a folder's alone."""
        if self.joined:
            return []
        folders = {folder for folder, _, _ in FAMILIES.values()}
        beside = [path for name in folders for path in (self.folder / self.system / name).glob("*")]
        names = sorted({path.name for path in beside if path.is_dir()} - {self.backend})
        return [replace(self, backend=name) for name in names]

    def versions(self, family: str) -> list[str]:
        """Return the versions of a family's table, oldest first."""
        folder, name, _ = FAMILIES[family]
        if self.joined:
            found = {Path(file).parts[-2] for file in self._files(folder, name)}
        else:
            tables = (self.folder / self.system / folder / self.backend).glob(f"*/{name}")
            found = {path.parent.name for path in tables}
        return sorted(found, key=version_key)

    def newest(self) -> str:
        """Return the newest version with products, attention and experts."""
        needed = [set(self.versions(name)) for name in FAMILIES if name != "collectives"]
        both = sorted(set.intersection(*needed), key=version_key)
        if not both:
            raise ProfileError(
                f"{self.folder}: no version of {self.backend} has gemm, attention and moe of "
                f"{self.system}; gemm has {', '.join(self.versions('gemm')) or 'none'}"
                f"{self._beside()}"
            )
        return both[-1]

    def _beside(self) -> str:
        """Name the frameworks that have tables, where this one has none."""
        if self.versions("gemm"):
            return ""
        others = [other.backend for other in self.others() if other.versions("gemm")]
        return f"; --backend may be {' or '.join(others)}" if others else ""

    def wanted(self, version: str) -> str:
        """Return a version that has products; ProfileError with those there are."""
        known = self.versions("gemm")
        if version not in known:
            raise ProfileError(
                f"--version: {version}: {self.backend} has no tables of it for {self.system}; "
                f"it has {', '.join(known) or 'none'}{self._beside()}"
            )
        return version

    def table(self, family: str, version: str) -> tuple[pd.DataFrame, str]:
        """Return a table with numbers as numbers, and the name of its file."""
        folder, name, columns = FAMILIES[family]
        path = f"{self.system}/{folder}/{self.backend}/{version}/{name}"
        if self.joined:
            frame, file = self._joined(columns, path)
        else:
            frame, file = read_table(self.folder / path, columns), str(self.folder / path)
        numeric = [column for column in columns if column not in TEXT]
        return numbers(frame, numeric, file), path

    def _joined(self, columns: Sequence[str], path: str) -> tuple[pd.DataFrame, str]:
        for file in sorted(self.folder.glob("*.parquet")):
            frame = read_table(file, ["file"])
            rows = frame[frame["file"] == path]
            if len(rows):
                missing = [name for name in columns if name not in rows]
                if missing:
                    raise ProfileError(f"{file}: no column {missing[0]}; fetch it again")
                return rows, str(file)
        raise ProfileError(f"{self.folder}: no rows of {path}; another --version or --backend?")

    def _files(self, folder: str, name: str) -> Iterator[str]:
        wanted = f"{self.system}/{folder}/{self.backend}/"
        for file in sorted(self.folder.glob("*.parquet")):
            frame = read_table(file, ["file"])
            for found in frame["file"].unique():
                if str(found).startswith(wanted) and str(found).endswith(name):
                    yield str(found)


def _installed() -> Path:
    """Return the data folder of the installed package; ProfileError where there is none."""
    try:
        return Path(str(resources.files("aiconfigurator_core"))) / "systems" / "data"
    except ModuleNotFoundError:
        raise ProfileError(
            f"{PACKAGE} is not installed; pip install 'moesim[import]', or give --from FOLDER"
        ) from None


def version_key(version: str) -> tuple[float, ...]:
    """Order versions; a release comes after its candidates.

    >>> sorted(["1.3.0", "1.3.0rc20", "1.3.0rc5"], key=version_key)
    ['1.3.0rc5', '1.3.0rc20', '1.3.0']
    """
    parts = re.findall(r"\d+|rc", version)
    key = [-1.0 if part == "rc" else float(part) for part in parts]
    return (*key, 0.0)


class Reader:
    """Reads the curves of some shapes from one version's tables, and notes what it drops."""

    def __init__(self, source: Source, version: str, shapes: Shapes, device: Device) -> None:
        self.warnings: list[str] = []
        self.files: list[str] = []
        self._source = source
        self._version = version
        self._shapes = shapes
        self._device = device
        self._rates = Rates.of(device)

    def gemm(self) -> list[Gemm]:
        """Return the products wanted, and those around them that they are interpolated from."""
        found = self._products()
        self._need(found, "gemm")
        return self._filled(found)

    def _products(self) -> list[Gemm]:
        frame = self._table("gemm", self._version, ("m", "n", "k"))
        frame = self._known(frame, "gemm_dtype")
        self._check_unit(frame)
        found = []
        for (name,), rows in groups(frame, ["format"]):
            known = {(int(n), int(k)) for n, k in rows[["n", "k"]].drop_duplicates().to_numpy()}
            wanted = around(self._shapes.gemms, known)
            for (n, k), points in groups(rows, ["n", "k"]):
                if (int(n), int(k)) in wanted:
                    sizes, us = self._curve(points, "m", f"gemm {name} {n}x{k}")
                    found.append(Gemm(format=str(name), n=int(n), k=int(k), tokens=sizes, us=us))
        return found

    def _filled(self, found: list[Gemm]) -> list[Gemm]:
        """Fill products in 16 bits from the denser table of another framework, where one is."""
        known = {(c.n, c.k): c for c in found if c.format == "bf16"}
        most = max((len(curve.tokens) for curve in known.values()), default=0)
        for source in self._source.others():
            for version in source.versions("gemm")[-1:]:
                reader = Reader(source, version, self._shapes, self._device)
                try:
                    theirs = [c for c in reader._products() if (c.n, c.k) in known]
                except ProfileError as wrong:
                    self._note(f"gemm: {source.backend} {version} is left aside: {wrong}")
                    continue
                denser = [c for c in theirs if c.format == "bf16" and len(c.tokens) > SPARSE * most]
                new = {(c.n, c.k): _filled_from(known[c.n, c.k], c) for c in denser}
                changed = sum(curve is not known[key] for key, curve in new.items())
                if changed:
                    self.files += reader.files
                    name = f"{source.backend} {version}"
                    self._note(f"gemm: {changed} products have sizes of {name} between their own")
                    return [new.get((c.n, c.k), c) if c.format == "bf16" else c for c in found]
        return found

    def all_gemms(self) -> list[Gemm]:
        """Return every product of the table: what shapes between them are judged by."""
        frame = self._known(self._table("gemm", self._version, ("m", "n", "k")), "gemm_dtype")
        found = []
        for (name, n, k), points in groups(frame, ["format", "n", "k"]):
            sizes, us = self._curve(points, "m", "")
            found.append(Gemm(format=str(name), n=int(n), k=int(k), tokens=sizes, us=us))
        return found

    def prefill(self) -> list[Prefill]:
        """Return the attention of prompts for the heads wanted."""
        frame = self._attention("prefill")
        found = []
        for (heads, kv_format), rows in self._by_heads(frame):
            batch, new, us = _columns(rows, "batch_size", "isl")
            found.append(
                Prefill(
                    **heads._asdict(),
                    kv_format=kv_format,
                    sequences=batch,
                    new_tokens=new,
                    context=(0,) * len(us),
                    us=us,
                )
            )
        self._need(found, "prefill")
        return found

    def decode(self) -> list[Decode]:
        """Return the attention of decoding for the heads wanted."""
        found = []
        for (heads, kv_format), rows in self._by_heads(self._believed()):
            clean = [
                self._cleaned(row, "context", f"decode {tuple(heads)} {kv_format}")
                for _, row in groups(rows, ["batch_size"])
            ]
            batch, context, us = _columns(pd.concat(clean), "batch_size", "context")
            found.append(
                Decode(
                    **heads._asdict(), kv_format=kv_format, sequences=batch, context=context, us=us
                )
            )
        self._need(found, "decode")
        return found

    def _decoding(self) -> pd.DataFrame:
        frame = self._attention("decode")
        return frame.assign(context=frame["step"] + frame["isl"])

    def _believed(self) -> pd.DataFrame:
        """Return the rows of decoding, of another framework where these cannot be."""
        own = self._decoding()
        beyond = share_beyond_memory(own, self._device)
        if beyond < DOUBTED:
            return own
        said = f"decode: {beyond:.0%} of long reads are faster than the memory's datasheet"
        others = [found for source in self._source.others() for found in self._believable(source)]
        if not others:
            self._note(f"{said}; slowed to it, since no other framework's table is there")
            return slowed(own, self._device)
        name, rows, files = min(others, key=lambda other: distance(own, other[1]))
        self.files = [file for file in self.files if not file.endswith(FAMILIES["decode"][1])]
        self.files += files
        self._note(f"{said}; those of {name} are taken instead")
        return rows

    def _believable(self, source: Source) -> Iterator[tuple[str, pd.DataFrame, list[str]]]:
        """Yield the name, rows and files of another framework's decoding, if they can be."""
        for version in source.versions("decode")[-1:]:
            reader = Reader(source, version, self._shapes, self._device)
            try:
                rows = reader._decoding()
            except ProfileError as wrong:
                self._note(f"decode: {source.backend} {version} is left aside: {wrong}")
                continue
            if not rows.empty and share_beyond_memory(rows, self._device) < DOUBTED:
                yield f"{source.backend} {version}", rows, reader.files

    def moe(self) -> list[Moe]:
        """Return the layers of experts wanted; none where the models have no experts."""
        if not self._shapes.layers:
            return []
        found = self._without_too_slow(self._layers())
        self._need(found, "moe")
        for layer, cut in sorted(self._shapes.layers):
            if not any(_is(curve, layer, cut) for curve in found):
                self.warnings.append(f"moe: no rows of {tuple(layer)}, {tuple(cut)}: interpolated")
        if not any(curve.distribution == BALANCED for curve in found):
            self.warnings.append("moe: no balanced rows: the durations are of skewed visits")
            found += self._borrowed({curve.format for curve in found})
        return found

    def _layers(self) -> list[Moe]:
        frame = self._known(self._table("moe", self._version, ("num_tokens",)), "moe_dtype")
        columns = ["format", "hidden_size", "inter_size", "num_experts", "topk", "moe_tp_size",
                   "moe_ep_size", "distribution"]  # fmt: skip
        found = []
        for (name, *shape, distribution), rows in groups(frame, columns):
            hidden, inner, experts, top_k, tensor, parts = map(int, shape)
            layer, cut = Layer(hidden, inner, experts, top_k), Cut(tensor, parts)
            if (layer, cut) in self._shapes.layers:
                where = f"moe {name} {hidden}x{inner} tp {tensor} ep {parts} {distribution}"
                sizes, us = self._curve(rows, "num_tokens", where)
                found.append(
                    Moe(
                        **layer._asdict(),
                        **cut._asdict(),
                        format=str(name),
                        distribution=str(distribution),
                        tokens=sizes,
                        us=us,
                    )
                )
        return found

    def _borrowed(self, formats: set[str]) -> list[Moe]:
        """Return balanced rows of the other frameworks' newest tables of the same device."""
        found: list[Moe] = []
        for source in self._source.others():
            for version in source.versions("moe")[-1:]:
                reader, name = Reader(source, version, self._shapes, self._device), source.backend
                try:
                    layers = reader._layers()
                except ProfileError as wrong:
                    self._note(f"moe: {name} {version} is left aside: {wrong}")
                    continue
                own = [
                    curve.model_copy(update={"distribution": f"{BORROWED}{name} {version}"})
                    for curve in layers
                    if curve.distribution == BALANCED and curve.format in formats
                ]
                if own:
                    self.files += reader.files
                    self._note(f"moe: balanced rows of {name} {version} are taken where faster")
                found += own
        return found

    def collectives(self) -> list[Collective]:
        """Return the all-reduces of the framework's own kernels, of the nearest version."""
        versions = self._source.versions("collectives")
        if not versions:
            self.warnings.append("collectives: no table: the device's fitted all-reduces are taken")
            return []
        version = self._version if self._version in versions else versions[-1]
        if version != self._version:
            self.warnings.append(f"collectives: of version {version}, none of {self._version}")
        frame = only(
            self._table("collectives", version, ("num_gpus", "message_size")),
            {"op_name": ALL_REDUCE, "allreduce_dtype": "bfloat16"},
        )
        found = []
        for (ranks,), rows in groups(frame, ["num_gpus"]):
            rows = rows.assign(bytes=rows["message_size"] * MESSAGE_BYTES)
            sizes, us = self._curve(rows, "bytes", f"all-reduce {ranks}")
            found.append(Collective(operation=ALL_REDUCE, ranks=int(ranks), bytes=sizes, us=us))
        return found

    def _table(self, family: str, version: str, sizes: Sequence[str]) -> pd.DataFrame:
        frame, file = self._source.table(family, version)
        if file not in self.files:
            self.files.append(file)
        latency = frame["latency"]
        good = np.isfinite(latency) & (latency > 0)
        for name in sizes:
            good &= frame[name] > 0
        if not good.all():
            self._note(f"{family}: {int((~good).sum())} rows without a size or a duration dropped")
        rows: pd.DataFrame = frame.loc[good]
        return rows

    def _note(self, warning: str) -> None:
        if warning not in self.warnings:
            self.warnings.append(warning)

    def _known(self, frame: pd.DataFrame, column: str) -> pd.DataFrame:
        frame = frame.assign(format=frame[column].map(FORMATS))
        return frame[frame["format"].notna()]

    def _attention(self, family: str) -> pd.DataFrame:
        frame = self._table(family, self._version, ("batch_size", "isl"))
        wanted = {"attn_dtype": "bfloat16", "window_size": 0, "beam_width": 1}
        frame = only(frame, wanted)
        if family == "prefill":
            frame = only(frame, {"step": 0})
        return self._known(frame, "kv_cache_dtype")

    def _by_heads(self, frame: pd.DataFrame) -> Iterator[tuple[tuple[Heads, str], pd.DataFrame]]:
        columns = ["format", "num_heads", "num_key_value_heads", "head_dim"]
        measured = {
            Heads(*map(int, key)) for key in frame[columns[1:]].drop_duplicates().to_numpy()
        }
        wanted = heads_around(self._shapes.heads, measured)
        for (name, *shape), rows in groups(frame, columns):
            heads = Heads(*map(int, shape))
            if heads in wanted:
                yield (heads, str(name)), rows

    def _check_unit(self, frame: pd.DataFrame) -> None:
        """Raise ProfileError where large products are off the datasheet by orders of magnitude."""
        large = frame[(frame["format"] == "bf16") & (frame["m"] >= 1024) & (frame["n"] >= 1024)]
        large = large[large["k"] >= 1024]
        if large.empty:
            return
        roof = [
            gemm_roofline_s(self._rates, "bf16", int(n), int(k), np.array([float(m)]))[0]
            for m, n, k in large[["m", "n", "k"]].head(500).to_numpy()
        ]
        ratio = float(np.median(large["latency"].head(500).to_numpy() * MILLI / np.array(roof)))
        if not 1 / OFF_SCALE < ratio < OFF_SCALE:
            raise ProfileError(
                f"gemm: latency: {ratio:.3g} times the datasheet's time; milliseconds are expected,"
                " of the device that is named; check --system and the unit"
            )

    def _curve(
        self, rows: pd.DataFrame, size: str, where: str
    ) -> tuple[tuple[int, ...], tuple[float, ...]]:
        clean = self._cleaned(rows, size, where)
        return tuple(clean[size].astype(int)), tuple(map(_rounded, clean["latency"]))

    def _cleaned(self, rows: pd.DataFrame, size: str, where: str) -> pd.DataFrame:
        """Return one row a size, spikes dropped and the rest made to rise."""
        one = rows.groupby(size, sort=True, as_index=False).agg(
            {"latency": "median"}
            | {name: "first" for name in rows if name not in (size, "latency")}
        )
        places = kept(one["latency"].tolist())
        if len(places) < len(one) and where:
            gone = [int(value) for value in one[size].drop(index=places)]
            self._note(f"{where}: {SPIKES} at {', '.join(map(str, gone))}")
        left: pd.DataFrame = one.iloc[places]
        return left.assign(latency=levelled(left["latency"].tolist()))

    def _without_too_slow(self, curves: list[Moe]) -> list[Moe]:
        """Drop experts in 8 bits that take far longer than in 16."""
        plain = {_key(c): dict(zip(c.tokens, c.us, strict=True)) for c in curves
                 if c.format == "bf16"}  # fmt: skip
        ratios = [
            us / plain[_key(curve)][tokens]
            for curve in curves
            if curve.format == "fp8" and _key(curve) in plain
            for tokens, us in zip(curve.tokens, curve.us, strict=True)
            if tokens in plain[_key(curve)]
        ]
        if not ratios or np.median(ratios) < TOO_SLOW:
            return curves
        self.warnings.append(
            f"moe fp8: {np.median(ratios):.1f} times as slow as bf16, all dropped: a fault of the "
            "table"
        )
        return [curve for curve in curves if curve.format != "fp8"]

    def _need(self, found: Sequence[object], family: str) -> None:
        if not found:
            raise ProfileError(
                f"{self._source.folder}: {family}: no rows of the models' shapes for "
                f"{self._source.system}, {self._source.backend} {self._version}; other --models?"
            )


def _filled_from(curve: Gemm, denser: Gemm) -> Gemm:
    own = (curve.tokens, curve.us)
    sizes, us = filled(own, (denser.tokens, denser.us))
    if len(sizes) == len(curve.tokens):
        return curve
    return curve.model_copy(update={"tokens": sizes, "us": tuple(map(float, levelled(us)))})


def _key(curve: Moe) -> tuple[object, ...]:
    return (curve.hidden, curve.inner, curve.experts, curve.top_k, curve.tensor_parallel,
            curve.expert_parallel, curve.distribution)  # fmt: skip


def _is(curve: Moe, layer: Layer, cut: Cut) -> bool:
    return _key(curve)[:6] == (*layer, *cut)


def _rounded(latency: float) -> float:
    """Return milliseconds as microseconds with four digits, as they are written."""
    return float(f"{latency * MILLI / MICRO:.4g}")


def _columns(
    rows: pd.DataFrame, first: str, second: str
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[float, ...]]:
    rows = rows.groupby([first, second], sort=True)["latency"].median().reset_index()
    return (
        tuple(rows[first].astype(int)),
        tuple(rows[second].astype(int)),
        tuple(map(_rounded, rows["latency"])),
    )


def around(wanted: frozenset[tuple[int, int]], known: set[tuple[int, int]]) -> set[tuple[int, int]]:
    """Return the known shapes that are wanted, or lie around those that are.

    >>> sorted(around(frozenset({(3, 3)}), {(2, 2), (2, 4), (4, 2), (4, 4), (8, 8)}))
    [(2, 2), (2, 4), (4, 2), (4, 4)]
    """
    ks = sorted({k for _, k in known})
    narrowest = min(n for n, _ in known)
    found = set()
    for n, k in wanted:
        wide = max(n, narrowest)
        for side in bracket([k for k in ks if _spans(known, k, wide)] or ks, k):
            ns = sorted(n for n, other in known if other == side)
            found |= {(int(end), int(side)) for end in bracket(ns, wide)}
    return found


def _spans(known: set[tuple[int, int]], k: int, n: int) -> bool:
    ns = [width for width, other in known if other == k]
    return min(ns) <= n <= max(ns)


def heads_around(wanted: frozenset[Heads], known: set[Heads]) -> set[Heads]:
    """Return the known heads that are wanted, or lie around those with as many for keys."""
    found = wanted & known
    for heads in wanted - known:
        alike = sorted(other.heads for other in known if other[1:] == heads[1:])
        if alike:
            found |= {heads._replace(heads=int(end)) for end in bracket(alike, heads.heads)}
    return set(found)
