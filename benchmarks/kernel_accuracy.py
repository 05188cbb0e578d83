"""How far off curves through public kernel tables are, on points that they were not drawn through.

    python benchmarks/kernel_accuracy.py [--from FOLDER] [--backend NAME] [--plot FILE] [--json]

For A100, H100 and H200, by family and format: what was left out, and median and 90th percentile of
|measured / predicted - 1|. `sizes` are every third size between the first and the last of each
curve, with those that are nearly alike (128 and 129); `its own sizes` the same of those that
are filled from another framework's table, without; `shapes` all products of one n or one k from
512 on; `heads` attention with one number of heads of keys and values, from those with others;
`cuts` ranks with dealt experts, from those with all; `as laid out` is decoding as the
simulator reads it, a straight line over the context at each batch, relative to a layer of Mixtral
8x7B on one GPU, at all measured batches and contexts from 128 to 32768. The tables are those of the
installed aiconfigurator-core, or of a folder.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from moesim.cost.curves import Fan
from moesim.cost.expected import Rates
from moesim.cost.iteration import CostModel
from moesim.cost.kernels.aiconfigurator import Reader
from moesim.cost.kernels.assembling import assembled_profile
from moesim.cost.kernels.shapes import Shapes
from moesim.cost.kernels.sources import DEVICES, Source
from moesim.cost.kernels.tables import Gemm, Kernels, load_kernels
from moesim.cost.kernels.validation import (
    Pairs,
    collective_sizes,
    decode_heads,
    decode_sizes,
    forms_of,
    gemm_shapes,
    gemm_sizes,
    moe_cuts,
    moe_sizes,
    prefill_heads,
    prefill_sizes,
)
from moesim.cost.kernels.waves import form_named, forms_for
from moesim.facts.catalog import load_device, load_model, shipped
from moesim.facts.hardware import Device

MODELS = ("mixtral-8x7b", "mixtral-8x22b", "llama-3-8b", "llama-3-70b")
LEAST_N = 512
"""Narrower products are not those of a model."""

CONTEXTS = (128, 32768)
"""Contexts that are served [tokens]."""

P50, P90 = 0.05, 0.15
"""What is aimed at."""


class Row(NamedTuple):
    """The errors of one family and format on one GPU."""

    gpu: str
    software: str
    family: str
    left_out: str
    format: str
    points: int
    p50: float
    p90: float

    @property
    def reached(self) -> bool:
        """Whether both are within what is aimed at."""
        return self.p50 <= P50 and self.p90 < P90


def rows_of(gpu: str, source: Source) -> Iterator[Row]:
    """Yield the errors of one GPU's tables."""
    device = load_device(DEVICES[gpu])
    rates, version = Rates.of(device), source.newest()
    reader = Reader(source, version, Shapes.of(map(load_model, MODELS)), device)
    gemm, prefill, decode = reader.gemm(), reader.prefill(), reader.decode()
    moe = reader.moe()
    named = forms_of(gemm, rates, forms_for(device))
    forms = {of: form_named(name, device) for of, name in named.items()}
    wide = [curve for curve in reader.all_gemms() if min(curve.n, curve.k) >= LEAST_N]
    for family, left_out, pairs in (
        ("gemm", "sizes", gemm_sizes(gemm, rates, forms)),
        ("gemm", "its own sizes", gemm_sizes(_filled(reader.own_gemm(), gemm), rates, forms)),
        ("gemm", "shapes", gemm_shapes(wide, rates, forms)),
        ("prefill", "sizes", prefill_sizes(prefill, rates)),
        ("prefill", "heads", prefill_heads(prefill, rates)),
        ("decode", "sizes", decode_sizes(decode, rates)),
        ("decode", "heads", decode_heads(decode, rates)),
        ("layer, decoding", "as laid out", laid_out(load_kernels(device.name), device)),
        ("moe", "sizes", moe_sizes(moe)),
        ("moe", "cuts", moe_cuts(moe, rates)),
        ("all-reduce", "sizes", collective_sizes(reader.collectives())),
    ):
        for name, errors in sorted(_by_format(family, pairs).items()):
            p50, p90 = np.quantile(np.abs(errors), [0.5, 0.9])
            software = f"{source.backend} {version}"
            yield Row(gpu, software, family, left_out, name, len(errors), float(p50), float(p90))


def _filled(own: list[Gemm], filled: list[Gemm]) -> list[Gemm]:
    """Return those curves of a table's own that were filled from another's."""
    return [mine for mine, other in zip(own, filled, strict=True) if mine.tokens != other.tokens]


def _by_format(family: str, pairs: Pairs) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for where, error in zip(pairs.where, pairs.errors, strict=True):
        words = where.split()
        known = next((word for word in words if word in {"bf16", "fp8", "int8", "int4"}), "")
        found["" if family == "all-reduce" else known].append(float(error))
    return found


def laid_out(kernels: Kernels, device: Device) -> Pairs:
    """Compare a layer of Mixtral 8x7B on one device as the simulator reads it with its kernels.

    At every measured batch and context: attention as the profile's line has it, and as measured.
    """
    pairs = Pairs()
    spec = load_model("mixtral-8x7b")
    most = max(batch for curve in kernels.decode for batch in curve.sequences)
    profile = assembled_profile(kernels, spec, device, max_batched_tokens=8192, max_num_seqs=most)
    model = CostModel(profile, max_batched_tokens=8192, max_num_seqs=most)
    fan = Fan.through(profile.operations["attention_decode"])
    for curve in kernels.decode:
        if (curve.heads, curve.kv_heads, curve.kv_format) == (32, 8, "bf16"):
            for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True):
                if CONTEXTS[0] <= context <= CONTEXTS[1]:
                    rest = model.tables.tokens[batch] / spec.num_hidden_layers
                    line = fan(batch, batch * context)
                    pairs.add(f"bf16 {batch} x {context}", rest + us * 1e-6, rest + line)
    return pairs


def main() -> None:
    """Print the table, and draw what experts hit and skew do."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--from", dest="folder", type=Path, default=None)
    parser.add_argument("--backend", default="trtllm")
    parser.add_argument("--plot", type=Path, default=None)
    parser.add_argument("--json", action="store_true")
    asked = parser.parse_args()
    profiled = [gpu for gpu, device in DEVICES.items() if device in shipped("profiles")]
    sources = {gpu: Source.at(asked.folder, gpu, asked.backend) for gpu in profiled}
    rows = [row for gpu, source in sources.items() for row in rows_of(gpu, source)]
    if asked.json:
        print(json.dumps([row._asdict() for row in rows], indent=1))
    else:
        _print(rows)
    if asked.plot:
        _draw(asked.plot, sources)


def _print(rows: list[Row]) -> None:
    print("| GPU | tables | family | left out | format | points | p50 | p90 | reached |")
    print("|---|---|---|---|---|---|---|---|---|")
    for row in rows:
        words = "yes" if row.reached else "no"
        print(
            f"| {row.gpu} | {row.software} | {row.family} | {row.left_out} | {row.format} | "
            f"{row.points} | {row.p50:.1%} | {row.p90:.1%} | {words} |"
        )


def _draw(path: Path, sources: dict[str, Source]) -> None:
    """Draw Mixtral 8x7B's layer on one rank, in 16 bits, on each GPU."""
    from moesim.views.kernels import distinct_chart, skew_chart, write_charts

    charts = []
    for gpu, source in sources.items():
        shapes = Shapes.of([load_model("mixtral-8x7b")])
        reader = Reader(source, source.newest(), shapes, load_device(DEVICES[gpu]))
        layer = [
            curve
            for curve in reader.moe()
            if curve.format == "bf16" and curve.tensor_parallel == curve.expert_parallel == 1
        ]
        for chart in (distinct_chart(layer), skew_chart(layer)):
            charts.append(chart.update_layout(title=f"{gpu}: {chart.layout.title.text}"))
    sentence = "Experts hit and skew, lines as predicted, points as measured"
    write_charts(path, "Mixtral 8x7B's experts", sentence, charts)


if __name__ == "__main__":
    main()
