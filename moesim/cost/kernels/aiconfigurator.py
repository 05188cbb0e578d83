"""Tables of AIConfigurator (NVIDIA, Apache-2.0), read for the shapes that models need.

Where they are is known to `moesim.cost.kernels.sources`. Latencies are in milliseconds, of one
layer on one rank; `message_size` counts values, not bytes; the `step` of decoding is the context
before the new token. Rows of windowed attention, other head widths and other formats are passed
over.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import pandas as pd

from moesim.cost.expected import Rates
from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.believable import DOUBTED, distance, share_beyond_memory, slowed
from moesim.cost.kernels.cleaning import kept, levelled
from moesim.cost.kernels.curves import MICRO
from moesim.cost.kernels.denser import filled
from moesim.cost.kernels.exchanges import ALL_REDUCE
from moesim.cost.kernels.experts import BALANCED, BORROWED, Cut, Layer
from moesim.cost.kernels.frames import groups, only
from moesim.cost.kernels.gemm import gemm_roofline_s
from moesim.cost.kernels.shapes import Shapes, around, heads_around
from moesim.cost.kernels.sources import FAMILIES, Source
from moesim.cost.kernels.tables import SPIKES, Collective, Decode, Gemm, Moe, Prefill
from moesim.errors import ProfileError
from moesim.facts.hardware import Device

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
        return self._filled(self.own_gemm())

    def own_gemm(self) -> list[Gemm]:
        """Return them with the table's own sizes alone."""
        found = self._products()
        self._need(found, "gemm")
        return found

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
