"""The section `transfers` of a profile: what models cost that share a device.

It is measured after the model itself, on the same host, and stands beside its operations. Each part
is on file as soon as it is measured: interrupted, the next run goes on with the part after.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from calibration.copies import expert_loads, swaps
from calibration.models import model_digest, open_model
from calibration.partial import Partial
from calibration.router import observe_router
from calibration.stored import Found, measure_stored
from engine.gateway.file import load_gateway
from engine.gateway.gateway import Gateway
from engine.gateway.latency import measure as measure_gateway
from engine.gateway.prompts import read_prompts
from engine.serve.engine import Engine
from moesim.commands import Reporter
from moesim.cost.profile import Classification, ExpertLoad, Router, Swap, Transfers, Variant
from moesim.errors import CalibrationError, EngineError
from moesim.facts.catalog import load_model
from moesim.facts.models import ModelSpec

WORDS = (8, 32, 128, 512)
"""Lengths of made-up prompts: from a line to a page, evenly."""

EACH = 16
"""Made-up prompts of each length."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What to measure beside the copies: variants by name, a gateway, prompts for it."""

    variants: Mapping[str, Path] = field(default_factory=dict)
    gateway: Path | None = None
    prompts: Path | None = None

    def check(self, spec: ModelSpec) -> None:
        """Raise what is wrong with any of it, before anything is measured.

        It is a CalibrationError for a variant of another shape.
        """
        if self.prompts is not None and self.gateway is None:
            raise CalibrationError("--prompts: are for a gateway to sort; give a --gateway too")
        if self.gateway is not None:
            load_gateway(self.gateway)
        if self.prompts is not None:
            read_prompts(self.prompts)
        for name, folder in self.variants.items():
            if load_model(str(folder)) != spec:
                raise CalibrationError(
                    f"--variants: {name}: {folder} is not of the shape of --model; profile it "
                    "by itself"
                )


@dataclass(frozen=True, slots=True, kw_only=True)
class Copied:
    """Loads and swaps, and what of them could not be timed."""

    loads: list[ExpertLoad]
    swaps: list[Swap]
    notes: list[str]


def measure_transfers(
    plain: Engine,
    model: str,
    asked: Asked,
    device: torch.device,
    progress: Reporter,
    partial: Partial,
) -> Transfers:
    """Measure all that the device and `asked` allow, but what is in `partial` already.

    `plain` is the engine that was profiled.
    """
    spec = plain.runner.decoder.spec
    variants = {
        name: _variant(plain, folder, name, device, progress, partial)
        for name, folder in asked.variants.items()
    }
    classification = None
    if asked.gateway is not None:
        progress(1.0, "timing the gateway")
        classification = _gateway(asked.gateway, asked.prompts, partial)
    if not spec.num_local_experts:
        notes = ["a model without experts: none of them is loaded, and nothing but it swapped"]
        return Transfers(gateway=classification, variants=variants, notes=notes)
    progress(1.0, "timing loads and swaps")
    copied = partial.once("copies", Copied, lambda: _copied(spec, device))
    loads, notes = copied.loads, copied.notes
    folders = dict(asked.variants) or ({"model": Path(model)} if Path(model).is_dir() else {})
    stored = []
    if folders:
        digests = [model_digest(str(folder), spec) for folder in folders.values()]
        found = partial.once(
            f"stores of {', '.join(digests)}",
            Found,
            lambda: measure_stored(plain, folders, device, progress),
        )
        stored, notes = found.stored, [*notes, *found.notes]
        loads = [*found.loads, *loads]
    else:
        notes = [*notes, "experts in a store were not measured: that takes a checkpoint's folder"]
    return Transfers(
        expert_loads=loads,
        swaps=copied.swaps,
        stored=stored,
        gateway=classification,
        variants=variants,
        notes=notes,
    )


def _copied(spec: ModelSpec, device: torch.device) -> Copied:
    notes: list[str] = []
    loads: list[ExpertLoad] = []
    try:
        loads = expert_loads(spec, device)
    except EngineError as wrong:
        notes.append(f"loads of experts: not measured: {wrong}")
    return Copied(loads=loads, swaps=swaps(spec, device, notes=notes), notes=notes)


def _gateway(gateway: Path, prompts: Path | None, partial: Partial) -> Classification:
    files = [gateway, *([prompts] if prompts else [])]
    digests = [sha256(file.read_bytes()).hexdigest()[:16] for file in files]
    return partial.once(
        f"gateway {', '.join(digests)}", Classification, lambda: classified(gateway, prompts)
    )


def _variant(
    plain: Engine,
    folder: Path,
    name: str,
    device: torch.device,
    progress: Reporter,
    partial: Partial,
) -> Variant:
    progress(1.0, f"watching the router of {name}")
    digest = model_digest(str(folder), plain.runner.decoder.spec)
    router = partial.once(
        f"router of {digest}",
        Router,
        lambda: watched(Engine(open_model(str(folder), device), plain.config)),
    )
    return Variant(model_digest=digest, router=router)


def watched(engine: Engine) -> Router:
    """Watch a model's routers as it generates text, the same for every model."""
    sequences = min(24, engine.config.limits.max_num_seqs)
    return observe_router(engine, sequences=sequences, prompt=24, output=24, seed=0)


def classified(gateway_file: Path, prompts: Path | None) -> Classification:
    """Time a gateway with prompts, made up if none are given."""
    gateway = load_gateway(gateway_file)
    texts = read_prompts(prompts) if prompts else made_up(gateway)
    latency = measure_gateway(gateway, texts)
    return Classification(
        prompts=latency.prompts,
        mean_s=latency.mean_s,
        median_s=latency.median_s,
        p90_s=latency.p90_s,
    )


def made_up(gateway: Gateway) -> list[str]:
    """Return prompts of words that the gateway knows, which are all looked up."""
    rng = np.random.default_rng(0)
    words = list(gateway.vocabulary)
    return [" ".join(rng.choice(words, size=size)) for size in WORDS for _ in range(EACH)]
