"""From rows to experiments: what each figure was measured on, several figures to an experiment."""

import re
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

from moesim.errors import ScenarioError
from moesim.evidence.accuracy.earlier import Earlier
from moesim.evidence.accuracy.engines import Engine, engine_of
from moesim.evidence.accuracy.metrics import Metric, metric_of
from moesim.evidence.accuracy.names import (
    UnknownRowError,
    device_of,
    model_of,
    plain_model,
    precision_of,
)
from moesim.evidence.accuracy.table import Row
from moesim.evidence.accuracy.workloads import Workload, workload_of
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice, check_divides, group


@dataclass(frozen=True, slots=True, kw_only=True)
class System:
    """A model on the devices of one replica."""

    spec: ModelSpec
    device: str
    part: Slice
    precision: Precision
    alike: bool = False
    """Whether all sequences of a batch are the same, and choose the same experts."""
    rare: float | None = None
    """Share of the tokens that choose an expert which is no favourite; None if all are alike."""
    earlier: Earlier | None = None
    """Kernels that its engine had before those in the tables."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """A replica of a system, served by an engine, and what it was asked.

    `model` is its plain name, by which engines of some software were built.
    """

    system: System
    engine: Engine
    workload: Workload
    model: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A row that is understood: its experiment, and what of it was measured."""

    row: Row
    experiment: Experiment
    metric: Metric
    replicas: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Understood:
    """A table's rows: those that can be simulated, and how many others for which reason."""

    figures: tuple[Figure, ...]
    left_out: Counter[str]


def understood(rows: Iterable[Row]) -> Understood:
    """Return what can be simulated of some rows, and why the others cannot."""
    figures, left_out = [], Counter[str]()
    for row in rows:
        try:
            figures.append(figure_of(row))
        except UnknownRowError as reason:
            left_out[str(reason)] += 1
    return Understood(figures=tuple(figures), left_out=left_out)


def figure_of(row: Row) -> Figure:
    """Return a row's experiment and metric; UnknownRowError with the reason if there is none."""
    device = device_of(row.gpu)
    spec = model_of(row.model)
    metric = metric_of(row.metric)
    engine = engine_of(row.software, row.scenario)
    workload = workload_of(row)
    part, replicas = _divided(row, device)
    try:
        check_divides(spec, part)
    except ScenarioError as wrong:
        raise UnknownRowError(f"{row.model} cannot be divided so: {wrong}") from None
    precision = precision_of(row.precision, spec, device, engine.kv_format)
    system = System(
        spec=spec,
        device=device.name,
        part=part,
        precision=_served_in(precision, engine, moe=bool(spec.num_local_experts)),
        alike=workload.copies or _answers_alike(engine, workload, spec),
        rare=engine.made.rare if engine.made else None,
        earlier=engine.earlier,
    )
    return Figure(
        row=row,
        experiment=Experiment(
            system=system,
            engine=engine,
            workload=workload.shared_by(replicas),
            model=plain_model(row.model),
        ),
        metric=metric,
        replicas=replicas,
    )


def _served_in(precision: Precision, engine: Engine, *, moe: bool) -> Precision:
    """Return the formats that an engine really serves in."""
    if moe and engine.only_wide_experts and precision.experts not in ("fp16", "bf16"):
        raise UnknownRowError(f"{engine.name} had no kernel for experts in {precision.experts} yet")
    wide = engine.wide_experts and precision.experts == "fp8"
    return replace(precision, experts="fp16") if wide else precision


def _answers_alike(engine: Engine, workload: Workload, spec: ModelSpec) -> bool:
    """Say whether a benchmark's made-up prompts are so long that all their answers are alike."""
    made, prompt = engine.made, workload.prompt_tokens
    if made is None or workload.output_tokens <= 1:
        return False
    if spec.num_local_experts and made.differ_until < prompt < made.alike_from:
        raise UnknownRowError(
            f"how 0.9 routed answers to {made.differ_until + 1} to {made.alike_from - 1:,} tokens "
            "is not known"
        )
    return prompt >= made.alike_from


def _divided(row: Row, device: Device) -> tuple[Slice, int]:
    """Return the devices of a replica, and how many replicas there are.

    Attention is divided over `tp` ranks. Where experts are dealt to `ep` of them, each expert is
    divided over `tp / ep`; tables that count experts' ranks apart have `tp x ep` devices in all.
    """
    if re.search(r"attn_dp=(?!1\b)\d", row.note) or re.search(r"\bpp=(?!1\b)\d", row.note):
        raise UnknownRowError("attention in data parallel, or pipelines, are not modelled")
    tp, ep = row.tp or _replica(row), row.ep or 1
    devices = row.n_gpus or tp
    if ep > 1 and tp * ep <= devices:
        tp *= ep
    if tp % ep or devices % tp:
        raise UnknownRowError("ranks and GPUs do not add up")
    try:
        part = group(device, tensor_parallel=tp // ep, expert_parallel=ep)
    except ScenarioError as wrong:
        raise UnknownRowError(str(wrong)) from None
    return part, devices // tp


def _replica(row: Row) -> int:
    """Return the GPUs of a replica where the table does not say: NVIDIA's MLPerf entries have one.

    Their notes say so; without GPUs nothing can be said.
    """
    if "TP1" in row.note:
        return 1
    if row.n_gpus == 1:
        return 1
    raise UnknownRowError("tp is not given")
