"""Make a profile: measure the grid in rounds until the budget is spent, judge it, write it.

Every round (`calibration.rounds`) visits every point once, so that a slow spell of the host touches
all points alike and the medians over rounds shed it.
"""

import math
import os
import platform
import time
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch

from calibration.grid import Grid, Point, held_out
from calibration.host import Host
from calibration.models import model_digest, open_model
from calibration.nvml import digest as digest_of
from calibration.operations import cells_of, measure
from calibration.partial import Partial
from calibration.probe import PROBED, probe_s
from calibration.rounds import Rounds
from calibration.timing import UNSTABLE_SPREAD, median_and_spread
from calibration.transfers import Asked, measure_transfers, watched
from calibration.visible import VISIBLE
from engine.serve.engine import Engine, EngineConfig
from engine.serve.memory import default_blocks
from engine.serve.sampling import Sampling
from moesim import __version__
from moesim.commands import Reporter
from moesim.cost.iteration import CostModel
from moesim.cost.profile import (
    COORDINATES,
    Cell,
    Formats,
    Kv,
    Profile,
    Provenance,
    Router,
    Verdict,
    save_profile,
)
from moesim.errors import CalibrationError
from moesim.facts.precision import Precision
from moesim.serving.scheduling import Limits
from moesim.serving.sequences import Batch, Chunk, Sequence

TOLERATED_DRIFT = 0.3
BLOCK_SIZE = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What to profile, and how long."""

    model: str
    budget_s: float = 60.0
    max_num_seqs: int = 64
    max_batched_tokens: int = 512
    num_blocks: int | None = None
    device: torch.device
    transfers: Asked | None = None
    """What to measure of models that share the device; nothing if not given."""
    dtype: str | None = None
    """The number format to run in; the model's own if not given."""
    share: str = ""
    """What share of the device this process has, if it is not all of it."""
    precision: Precision | None = None
    """What weights are narrowed to as they come; as the model has them if not given."""

    @property
    def source(self) -> str:
        """The model by name, and what its weights are narrowed to."""
        name = Path(self.model).name
        return f"{name}, {self.precision.experts}" if self.precision else name


def silent(fraction: float, doing: str) -> None:
    """Report nothing."""


def name_of(device: torch.device, host: Host) -> str:
    """Return what the system calls the device that is measured."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else host.cpu


def uuid_hash_of(device: torch.device) -> str | None:
    """Return the hash of a GPU's UUID, as `detect` prints it; None of a CPU."""
    if device.type != "cuda":
        return None
    return digest_of(f"GPU-{torch.cuda.get_device_properties(device).uuid}")


def calibrate(settings: Settings, out: Path, host: Host, progress: Reporter = silent) -> Profile:
    """Profile a model on this host and write the profile to `out`.

    Interrupted, it leaves its samples in `<out>.partial` and goes on from them when run again with
    the same settings on the same host. Raises CalibrationError where the budget is too small.
    """
    if out.is_dir():
        raise CalibrationError(f"--out {out}: is a folder; give a file name")
    progress(0.0, "loading the model")
    engine = engine_for(settings)
    if engine.config.num_blocks < PROBED:
        raise CalibrationError(
            f"--kv-blocks: {engine.config.num_blocks} is too few to measure with; "
            f"give {PROBED} or more"
        )
    spec = engine.runner.decoder.spec
    if settings.transfers is not None:
        settings.transfers.check(spec)
    digest = model_digest(settings.model, spec, _narrowed(settings, engine))
    partial = Partial.open(out, _setting(settings, engine, host, digest))
    rng = np.random.default_rng(0)
    grid = Grid(
        spec=spec,
        limits=engine.config.limits,
        kv_tokens=_kv_tokens(engine),
        block_size=BLOCK_SIZE,
        graphs=engine.runner.decode_graphs,
    )
    mixed = held_out(engine.config.limits, _kv_tokens(engine), graphs=grid.graphs)
    started = time.perf_counter() - partial.spent_s
    _warm_up(engine, grid.points(), rng)
    progress(0.05, "watching the router")
    router = watched(engine)
    before_s = probe_s(engine)
    measured = Rounds(
        engine=engine,
        grid=grid,
        mixed=mixed,
        partial=partial,
        budget_s=settings.budget_s,
        started=started,
        rng=rng,
        progress=progress,
    ).run()
    progress(1.0, "judging")
    duration_s = time.perf_counter() - started
    profile = _profile(settings, engine, router, measured, mixed, partial, host, digest, duration_s)
    probes = {"probe_s": (before_s + probe_s(engine)) / 2}
    profile = profile.model_copy(update={"verdict": profile.verdict.model_copy(update=probes)})
    if settings.transfers is not None:
        save_profile(profile, out)  # kept also where what follows fails
        found = measure_transfers(
            engine, settings.model, settings.transfers, settings.device, progress, partial
        )
        profile = profile.model_copy(update={"transfers": found})
    save_profile(profile, out)
    partial.remove()
    return profile


def engine_for(settings: Settings) -> Engine:
    """Open the model in an engine with its real KV cache, filled with noise."""
    decoder = open_model(settings.model, settings.device, settings.precision, dtype=settings.dtype)
    limits = Limits(
        max_num_seqs=settings.max_num_seqs,
        max_batched_tokens=settings.max_batched_tokens,
        max_model_len=decoder.spec.max_position_embeddings,
    )
    engine = Engine(
        decoder,
        EngineConfig(
            limits=limits,
            num_blocks=settings.num_blocks or default_blocks(decoder, limits, BLOCK_SIZE),
            block_size=BLOCK_SIZE,
            sampling=Sampling(temperature=1.0),
            graphs=not settings.share,
        ),
    )
    # Arithmetic on zeros draws less power and can run faster than on real values.
    engine.runner.cache.keys.normal_()
    engine.runner.cache.values.normal_()
    return engine


def _narrowed(settings: Settings, engine: Engine) -> Precision | None:
    """Return what the weights were narrowed to; None where they are as the model has them."""
    return engine.runner.decoder.precision if settings.precision else None


def _kv_tokens(engine: Engine) -> int:
    return engine.config.num_blocks * engine.config.block_size


def _setting(settings: Settings, engine: Engine, host: Host, digest: str) -> dict[str, object]:
    return {
        "model": digest,
        "host": host.hash,
        "device": uuid_hash_of(settings.device) or settings.device.type,
        "torch": torch.__version__,
        "max_num_seqs": settings.max_num_seqs,
        "max_batched_tokens": settings.max_batched_tokens,
        "num_blocks": engine.config.num_blocks,
        "visible": os.environ.get(VISIBLE, ""),
        "decode_graphs": list(engine.runner.decode_graphs),
        **({"share": settings.share} if settings.share else {}),
        **({"precision": asdict(settings.precision)} if settings.precision else {}),
    }


def _warm_up(engine: Engine, grid: list[Point], rng: np.random.Generator) -> None:
    launched = [point for point in grid if not point.replayed]
    replayed = [point for point in grid if point.replayed]
    for point in [launched[0], launched[len(launched) // 2], launched[-1], *replayed[-1:]] * 2:
        measure(engine, point, rng)


def _profile(
    settings: Settings,
    engine: Engine,
    router: Router,
    grid: list[Point],
    mixed: list[Point],
    partial: Partial,
    host: Host,
    digest: str,
    duration_s: float,
) -> Profile:
    spec, narrowed = engine.runner.decoder.spec, _narrowed(settings, engine)
    operations = _cells(grid, partial)
    draft = Profile(
        format="moesim-profile",
        format_version=1,
        model=spec.to_config(),
        max_batched_tokens=settings.max_batched_tokens,
        kv=Kv(block_size=BLOCK_SIZE, num_blocks=engine.config.num_blocks),
        router=router,
        operations=operations,
        precision=Formats.model_validate(asdict(narrowed)) if narrowed else None,
        decode_graphs=engine.runner.decode_graphs,
        provenance=Provenance(
            device=name_of(settings.device, host),
            device_kind="cuda" if settings.device.type == "cuda" else "cpu",
            share=settings.share or None,
            host_hash=host.hash,
            device_hash=uuid_hash_of(settings.device),
            software={
                "python": platform.python_version(),
                "torch": torch.__version__,
                "driver": host.driver or "none",
                "moesim": __version__,
            },
            threads=torch.get_num_threads(),
            date=datetime.now(UTC).isoformat(timespec="seconds"),
            model_source=settings.source,
            model_digest=digest,
            duration_s=round(duration_s, 1),
        ),
        verdict=Verdict(
            stable=False,
            unstable_cells=0,
            cells=0,
            iteration_error_p50=None,
            iteration_error_p90=None,
            drift=0.0,
        ),
    )
    return draft.model_copy(update={"verdict": _judge(draft, mixed, partial, host)})


def _cells(grid: list[Point], partial: Partial) -> dict[str, list[Cell]]:
    """Pool the samples that fall on the same cell and take their medians."""
    pooled: dict[str, dict[tuple[float, ...], list[float]]] = {name: {} for name in COORDINATES}
    for point in grid:
        samples = partial.samples[point.key]
        for name, at in cells_of(point).items():
            if name in samples:
                pooled.setdefault(name, {}).setdefault(at, []).extend(samples[name])
    cells: dict[str, list[Cell]] = {}
    for name, by_place in pooled.items():
        cells[name] = []
        for at, samples_s in sorted(by_place.items()):
            median_s, spread = median_and_spread(samples_s)
            cells[name].append(
                Cell(at=at, median_s=median_s, spread=round(spread, 4), repeats=len(samples_s))
            )
    return cells


def _judge(profile: Profile, mixed: list[Point], partial: Partial, host: Host) -> Verdict:
    """Say how far the measurement can be trusted."""
    rows = [
        partial.samples[point.key]["iteration"] for point in mixed if point.key in partial.samples
    ]
    residuals = [
        median_and_spread(row)[0] / predicted_s(profile, point) - 1
        for point, row in zip(mixed, rows, strict=True)
    ]
    # Relative to what was measured, as errors are everywhere in the reports.
    errors = [abs(1 / (1 + residual) - 1) for residual in residuals]
    spreads = [median_and_spread(s["iteration"])[1] for s in partial.samples.values()]
    unstable = sum(spread > UNSTABLE_SPREAD for spread in spreads)
    drift = _drift(partial)
    stable = unstable <= 0.1 * len(spreads) and drift <= TOLERATED_DRIFT
    warnings = list(host.notes)
    if not stable:
        warnings.append("the host was not quiet: profile again, or with a larger budget")
    return Verdict(
        stable=stable,
        unstable_cells=unstable,
        cells=len(spreads),
        iteration_error_p50=float(np.median(errors)) if errors else None,
        iteration_error_p90=float(np.percentile(errors, 90)) if errors else None,
        iteration_residuals=[round(residual, 4) for residual in residuals],
        drift=round(drift, 4),
        warnings=warnings,
    )


def predicted_s(profile: Profile, point: Point) -> float:
    """Return what the profile predicts for a whole iteration [s]."""
    chunks = [
        Chunk(
            Sequence(0, part.context + part.new_tokens, 1, computed=part.context),
            part.new_tokens,
            part.context,
        )
        for part in point.parts
    ]
    model = CostModel(profile, max_batched_tokens=point.tokens, max_num_seqs=len(chunks))
    return model.iteration_s(Batch(chunks))


def _drift(partial: Partial) -> float:
    """Compare the thirds of the measurement: slowest over fastest median round, minus 1.

    Of the points that were there from the beginning.
    """
    series = [samples["iteration"] for samples in partial.samples.values()]
    totals = np.sum([row for row in series if len(row) == partial.longest], axis=0)
    medians = [float(np.median(third)) for third in np.array_split(totals, 3) if third.size]
    return max(medians) / min(medians) - 1


def check_budget(budget_s: float) -> None:
    """Raise CalibrationError where a budget cannot be met at all, or has no end."""
    if not budget_s > 0:
        raise CalibrationError(f"--budget-s: {budget_s:g} must be above zero")
    if math.isinf(budget_s):
        raise CalibrationError("--budget-s: inf would never end; give seconds")
