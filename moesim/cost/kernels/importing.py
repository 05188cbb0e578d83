"""Making a file of kernels: tables read, cleaned, and their curves judged by cross-validation."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from moesim.cost.expected import Rates
from moesim.cost.kernels import llmservingsim, vidur
from moesim.cost.kernels.aiconfigurator import Reader
from moesim.cost.kernels.exchanges import contradictions
from moesim.cost.kernels.shapes import Shapes
from moesim.cost.kernels.sources import PACKAGE, Source
from moesim.cost.kernels.tables import FORMAT_VERSION, Gemm, Kernels, Origin, Residual
from moesim.cost.kernels.validation import (
    BY_SHAPE,
    BY_SIZE,
    collective_sizes,
    decode_sizes,
    forms_of,
    gemm_shapes,
    gemm_sizes,
    moe_counted,
    moe_cuts,
    moe_sizes,
    prefill_sizes,
)
from moesim.cost.kernels.waves import form_named, forms_for
from moesim.cost.profile import KERNELS
from moesim.errors import ProfileError
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec

NAMES = {"trtllm": "TensorRT-LLM", "vllm": "vLLM", "sglang": "SGLang"}
"""Frameworks as people write them."""

LEAST_N = 512
"""Narrower products are not those of a model; their shapes are not judged."""


def from_aiconfigurator(
    device: Device,
    models: Mapping[str, ModelSpec],
    *,
    system: str,
    backend: str,
    version_wanted: str | None = None,
    folder: Path | None = None,
    command: str = "",
) -> Kernels:
    """Return the kernels of some models' shapes from AIConfigurator's tables of one system.

    Of the newest version that has products, attention and experts, unless one is wanted. Raises
    ProfileError where tables are absent, broken, or without the shapes.
    """
    source = Source.at(folder, system, backend)
    chosen = source.wanted(version_wanted) if version_wanted else source.newest()
    reader = Reader(source, chosen, Shapes.of(models.values()), device)
    gemm, prefill, decode = reader.gemm(), reader.prefill(), reader.decode()
    moe, collectives = reader.moe(), reader.collectives()
    origin = Origin(
        source=f"tables of AIConfigurator{_installed_version(folder)} (NVIDIA, Apache-2.0)",
        software=f"{NAMES.get(backend, backend)} {chosen}",
        files=tuple(reader.files),
        command=command,
        date=now(),
    )
    kernels = Kernels(
        format=KERNELS,
        format_version=FORMAT_VERSION,
        device=device.name,
        origin=origin,
        models=tuple(models),
        gemm=tuple(gemm),
        prefill=tuple(prefill),
        decode=tuple(decode),
        moe=tuple(moe),
        collectives=tuple(collectives),
    )
    judged = judged_kernels(kernels, device, reader.all_gemms())
    warnings = (*contradictions(collectives, device), *reader.warnings)
    return judged.model_copy(update={"warnings": warnings})


def now() -> str:
    """Return the time, as files give it."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def _installed_version(folder: Path | None) -> str:
    if folder is not None:
        return ""
    try:
        return f" {version(PACKAGE)}"
    except PackageNotFoundError:
        return ""


def judged_kernels(kernels: Kernels, device: Device, all_gemms: Sequence[Gemm] = ()) -> Kernels:
    """Return the kernels with the forms of their products and their residuals.

    `all_gemms` are those that shapes are judged by.
    """
    rates = Rates.of(device)
    wide = [curve for curve in all_gemms or kernels.gemm if min(curve.n, curve.k) >= LEAST_N]
    products = forms_of(kernels.gemm, rates, forms_for(device))
    forms = {of: form_named(name, device) for of, name in products.items()}
    found: dict[str, Residual | None] = {
        "gemm": gemm_sizes(kernels.gemm, rates, forms).residual(BY_SIZE),
        "gemm_shapes": gemm_shapes(wide, rates, forms).residual(BY_SHAPE),
        "prefill": prefill_sizes(kernels.prefill, rates).residual(
            "every third length of prompts, from the other lengths"
        ),
        "decode": decode_sizes(kernels.decode, rates).residual(
            "each batch, and each context, from the other batches and contexts"
        ),
        "moe": moe_sizes(kernels.moe).residual(BY_SIZE)
        or moe_counted(kernels.moe).residual("each number of hit experts, from the others"),
        "moe_cuts": moe_cuts(kernels.moe, rates).residual(
            "all ranks with dealt experts, from those with all experts"
        ),
        "collectives": collective_sizes(kernels.collectives).residual(BY_SIZE),
    }
    residuals = {name: residual for name, residual in found.items() if residual is not None}
    if not residuals:
        raise ProfileError("kernels: too few points to judge; import more of the table")
    return kernels.model_copy(update={"residuals": residuals, "products": products})


READERS = {"vidur": vidur.curves_of, "llmservingsim": llmservingsim.curves_of}
"""Readers of folders with one model's profile, by whose layout it is."""


def from_folder(
    layout: str, folder: Path, device: Device, name: str, spec: ModelSpec, *, command: str = ""
) -> Kernels:
    """Return the kernels of a folder that Vidur's or LLMServingSim's profilers wrote.

    Raises ProfileError where files are absent or broken, or of another model.
    """
    if not folder.is_dir():
        raise ProfileError(f"{folder}: no such folder; give the folder of the tables")
    software = "Vidur's profiler"
    if layout == "llmservingsim":
        folder = llmservingsim.variant_folder(folder)
        software = llmservingsim.software_of(folder)
    curves, files = READERS[layout](folder, spec)
    for family in ("gemm", "prefill", "decode"):
        if not curves.get(family):
            raise ProfileError(f"{folder}: no rows of {family} for {name}; other --model?")
    if spec.num_local_experts and not curves.get("moe"):
        raise ProfileError(f"{folder}: no rows of experts for {name}; other --model?")
    kernels = Kernels(
        format=KERNELS,
        format_version=FORMAT_VERSION,
        device=device.name,
        origin=Origin(
            source=f"a profile in the layout of {layout} (MIT)",
            software=software,
            files=tuple(files),
            command=command,
            date=now(),
        ),
        models=(name,),
        warnings=(
            "one model's shapes: others are extrapolated",
            "the output head and groups that were not profiled are extrapolated",
        ),
    )
    families = {family: tuple(found) for family, found in curves.items()}
    return judged_kernels(kernels.model_copy(update=families), device)
