"""Charts of kernels: measured points, the curves through them, the datasheet's rooflines."""

from collections.abc import Iterator, Sequence
from html import escape
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from moesim.cost.expected import Rates
from moesim.cost.kernels.attention import (
    Decoding,
    Heads,
    Prompts,
    decode_roofline_s,
    per_chunk,
    prefill_roofline_s,
)
from moesim.cost.kernels.experts import BALANCED, drawn
from moesim.cost.kernels.gemm import Gemms, gemm_roofline_s
from moesim.cost.kernels.tables import Decode, Gemm, Kernels, Moe, Prefill
from moesim.cost.profile import Profile
from moesim.errors import MoesimError
from moesim.facts.catalog import load_device
from moesim.files import write_text
from moesim.views.charts import INK, MEASURED, OTHERS, PREDICTED, Figure, new_figure
from moesim.views.profile_charts import profile_charts
from moesim.views.report import _embedded, _notes, _page

Floats = NDArray[np.float64]

COLOURS = (PREDICTED, *OTHERS)
SOME = 6
"""Curves in a chart; more cannot be told apart."""

MICRO = 1e-6


def write_page(path: Path, name: str, kernels: Kernels) -> None:
    """Write the charts of a file of kernels; the page appears whole or not at all."""
    charts = list(charts_of(kernels))
    sentence = f"{kernels.origin.software} on {kernels.device}, {kernels.origin.source}"
    errors = [
        f"{family}: error p50 {found.p50:.1%}, p90 {found.p90:.1%} on {found.points} points; "
        f"left out: {found.left_out}"
        for family, found in kernels.residuals.items()
    ]
    write_charts(path, name, sentence, charts, [*errors, *kernels.warnings])


def write_profile_page(path: Path, name: str, profile: Profile) -> None:
    """Write one model's profile as charts: cells, curves, datasheet, residuals."""
    charts = list(profile_charts(profile))
    sentence = f"{profile.spec.model_type}, {profile.source} on {profile.provenance.device}"
    write_charts(path, name, sentence, charts, profile.verdict.warnings)


def write_charts(
    path: Path, name: str, sentence: str, charts: Sequence[Figure], notes: Sequence[str] = ()
) -> None:
    """Write charts one below the other; the page appears whole or not at all."""
    parts = [f"<h1>{escape(name)}</h1>", f'<p class="headline">{escape(sentence)}</p>']
    for place, chart in enumerate(charts):
        parts.append(_embedded(chart, str(place), with_script=place == 0))
    parts.extend(_notes(list(notes)))
    write_text(path, _page(name, parts))


def charts_of(kernels: Kernels) -> Iterator[Figure]:
    """Yield a chart for each family that the file has."""
    try:
        rates = Rates.of(load_device(kernels.device))
    except MoesimError:  # a device that does not ship: points alone, on a scale of their own
        rates = Rates(flop_per_s=np.inf, bytes_per_s=np.inf)
    if kernels.gemm:
        yield gemm_chart(kernels.gemm, rates)
    if kernels.prefill:
        yield prefill_chart(kernels.prefill, rates)
    if kernels.decode:
        yield decode_chart(kernels.decode, rates)
    plain = [curve for curve in kernels.moe if curve.expert_parallel == 1]
    if plain:
        yield distinct_chart(_first_layer(plain))
        yield skew_chart(_first_layer(plain))


def _figure(title: str, x: str) -> Figure:
    figure = new_figure(title, x, "Duration [us]")
    figure.update_xaxes(type="log")
    return figure.update_yaxes(type="log", rangemode="normal")


def _add(
    figure: Figure, name: str, colour: str, points: tuple[Floats, Floats], line: Floats | None
) -> None:
    """Draw measured points and, if there is one, the curve through them."""
    xs, ys = points
    figure.add_scatter(
        x=xs.tolist(), y=ys.tolist(), mode="markers", name=name, marker={"color": colour, "size": 6}
    )
    if line is not None:
        figure.add_scatter(
            x=xs.tolist(), y=line.tolist(), mode="lines", line={"color": colour}, showlegend=False
        )


def _roof(figure: Figure, xs: Floats, ys: Floats, *, first: bool) -> None:
    if np.isfinite(ys).all() and (ys > 0).all():
        figure.add_scatter(
            x=xs.tolist(),
            y=ys.tolist(),
            mode="lines",
            name="datasheet",
            showlegend=first,
            line={"color": MEASURED[3], "dash": "dot"},
        )


def gemm_chart(curves: Sequence[Gemm], rates: Rates) -> Figure:
    """Draw some products over tokens: the widest and some narrower ones."""
    figure = _figure("Products", "Tokens")
    ordered = sorted(curves, key=lambda curve: -curve.n * curve.k)
    chosen = ordered[:: max(1, len(ordered) // SOME)][:SOME]
    gemms = Gemms(chosen, rates) if np.isfinite(rates.flop_per_s) else None
    for place, (curve, colour) in enumerate(zip(chosen, COLOURS, strict=False)):
        tokens = np.asarray(curve.tokens, dtype=float)
        line = None
        if gemms is not None:
            line = gemms.seconds(curve.format, curve.n, curve.k, tokens)[0] / MICRO
            roof = gemm_roofline_s(rates, curve.format, curve.n, curve.k, tokens) / MICRO
            _roof(figure, tokens, roof, first=not place)
        name = f"{curve.format} {curve.n} x {curve.k}"
        _add(figure, name, colour, (tokens, np.asarray(curve.us)), line)
    return figure


def prefill_chart(curves: Sequence[Prefill], rates: Rates) -> Figure:
    """Draw chunks of prompts from nothing, for each kind of heads."""
    figure = _figure("Attention of a prompt, in an iteration full of them", "Prompt [tokens]")
    for place, (curve, colour) in enumerate(zip(curves[:SOME], COLOURS, strict=False)):
        heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
        each = sorted(per_chunk([curve]).items())
        sizes = np.array([float(size) for size, _ in each])
        points = np.array([seconds for _, seconds in each]) / MICRO
        line = None
        if np.isfinite(rates.flop_per_s):
            prompts = Prompts([curve], rates)
            line = np.array(
                [prompts.seconds(heads, curve.kv_format, size, 0)[0] / MICRO for size in sizes]
            )
            roof = prefill_roofline_s(rates, heads, curve.kv_format, sizes, np.zeros(len(sizes)))
            _roof(figure, sizes, roof / MICRO, first=not place)
        _add(figure, _heads_name(heads, curve.kv_format), colour, (sizes, points), line)
    return figure


def decode_chart(curves: Sequence[Decode], rates: Rates) -> Figure:
    """Draw decoding of the first kind of heads over the context, for some batches."""
    curve = curves[0]
    heads = Heads(curve.heads, curve.kv_heads, curve.head_dim)
    title = f"Attention of decoding, {_heads_name(heads, curve.kv_format)}"
    figure = _figure(title, "Context of each sequence [tokens]")
    batches = sorted(set(curve.sequences))
    chosen = batches[:: max(1, len(batches) // SOME)][:SOME]
    for place, (batch, colour) in enumerate(zip(chosen, COLOURS, strict=False)):
        rows = [i for i, sequences in enumerate(curve.sequences) if sequences == batch]
        contexts = np.array([float(curve.context[i]) for i in rows])
        points = np.array([curve.us[i] for i in rows])
        line = None
        if np.isfinite(rates.flop_per_s):
            decoding = Decoding([curve], rates)
            seconds = [decoding.seconds(heads, curve.kv_format, batch, c)[0] for c in contexts]
            line = np.array(seconds) / MICRO
            roof = decode_roofline_s(rates, heads, curve.kv_format, batch * contexts) / MICRO
            _roof(figure, contexts, roof, first=not place)
        _add(figure, f"batch {batch}", colour, (contexts, points), line)
    return figure


def _heads_name(heads: Heads, kv_format: str) -> str:
    return f"{heads.heads} / {heads.kv_heads} heads, KV {kv_format}"


def _first_layer(curves: Sequence[Moe]) -> list[Moe]:
    """Return the curves of one layer and format: those of the first."""
    first = curves[0]
    same = ("hidden", "inner", "experts", "format", "tensor_parallel")
    return [c for c in curves if all(getattr(c, name) == getattr(first, name) for name in same)]


def _layer_name(curve: Moe) -> str:
    return (
        f"{curve.experts} experts of {curve.hidden} x {curve.inner}, top-{curve.top_k}, "
        f"{curve.format}"
    )


def distinct_chart(curves: Sequence[Moe]) -> Figure:
    """Draw a layer of experts over tokens, by how many experts are hit, beside what was measured.

    Balanced tokens hit top-k experts each until all are hit; a number counted apart is as counted.
    """
    curve = _best(curves)
    rank = drawn(curves)
    figure = _figure(f"Experts hit: {_layer_name(curve)}", "Tokens")
    tokens = np.geomspace(1, max(curve.tokens), 40)
    for distinct, colour in zip(_numbers(curve.experts), COLOURS, strict=False):
        line = [rank.seconds(count * curve.top_k, distinct) / MICRO for count in tokens]
        figure.add_scatter(
            x=tokens.tolist(),
            y=line,
            mode="lines",
            name=f"{distinct} expert{'s' if distinct > 1 else ''} hit",
            line={"color": colour},
        )
    for count in islice(_measured_numbers(curve), SOME):
        places = [i for i, hit in enumerate(_hits(curve)) if hit == count]
        figure.add_scatter(
            x=[curve.tokens[i] for i in places],
            y=[curve.us[i] for i in places],
            mode="markers",
            name=f"measured, {count} hit",
            marker={"color": INK, "size": 5},
        )
    return figure


def skew_chart(curves: Sequence[Moe]) -> Figure:
    """Draw what skewed visits cost over balanced ones, measured and as each curve is drawn.

    Over four decades of duration nobody would see it. Where no visits were balanced, durations.
    """
    even = next((curve for curve in curves if curve.distribution == BALANCED), None)
    figure = _figure(f"Skew: {_layer_name(curves[0])}", "Tokens")
    if even is not None:
        figure.update_yaxes(type="linear", title="Over balanced visits")
    for curve, colour in zip(curves[:SOME], COLOURS, strict=False):
        sizes = np.asarray(curve.tokens, dtype=float)
        line = _drawn_us(curve) if curve.distinct is None else None
        over = np.ones(len(sizes)) if even is None else np.interp(sizes, even.tokens, even.us)
        inside = np.ones(len(sizes), dtype=bool) if even is None else sizes <= max(even.tokens)
        points = (sizes[inside], (np.asarray(curve.us) / over)[inside])
        _add(
            figure,
            curve.distribution,
            colour,
            points,
            None if line is None else (line / over)[inside],
        )
    return figure


def _drawn_us(curve: Moe) -> Floats:
    """Return what a curve of visits says at its own sizes [us]."""
    rank = drawn([curve])
    visits = zip(curve.tokens, _hits(curve), strict=True)
    return np.array([rank.seconds(size * curve.top_k, hit) / MICRO for size, hit in visits])


def _best(curves: Sequence[Moe]) -> Moe:
    """Return the curve that tells how many experts were hit, if there is one."""
    for curve in curves:
        if curve.distinct is not None or curve.distribution == BALANCED:
            return curve
    return curves[0]


def _hits(curve: Moe) -> list[int]:
    if curve.distinct is not None:
        return list(curve.distinct)
    return [min(curve.experts, count * curve.top_k) for count in curve.tokens]


def _measured_numbers(curve: Moe) -> Iterator[int]:
    yield from sorted(set(_hits(curve)))


def _numbers(experts: int) -> list[int]:
    """Return numbers of experts to draw, from all of them down by halves."""
    return [number for number in (experts >> power for power in range(SOME)) if number]
