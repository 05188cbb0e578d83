"""From checkpoints of variants to a service in which they share one device."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.server.hosting import Hosting, config_of
from engine.server.metrics import Metrics
from engine.server.service import Bounds, ServedModel, Service
from engine.server.tokens import tokeniser_of
from engine.variants.family import Family, Sharing, load_family
from engine.variants.layout_file import read_layout
from engine.variants.serving import Turns, VariantsEngine, VariantsWallClock
from engine.variants.worker import Conductor, VariantAccount, VariantWorker
from moesim.errors import EngineError
from moesim.serving.records import Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Together:
    """Variants that share a device: how, in what turns, and by what layout if they share experts.

    `ratio` takes the place of the one in the layout's file.
    """

    folders: Mapping[str, Path]
    sharing: Sharing = field(default_factory=Sharing)
    turns: Turns = field(default_factory=Turns)
    layout: Path | None = None
    ratio: float | None = None

    def __post_init__(self) -> None:
        if self.ratio is not None and self.layout is None:
            raise EngineError("--ratio: says how much of a layout is shared; give a --layout too")

    def load(self, device: torch.device) -> Family:
        """Read the checkpoints."""
        layout = read_layout(self.layout) if self.layout else None
        if layout is not None and self.ratio is not None:
            layout = layout.with_ratio(self.ratio)
        return load_family(self.folders, self.sharing, device, layout=layout)


def together_or_none(together: Together) -> Together | None:
    """Return what variants there are, None for none; EngineError for options without them."""
    if together.folders:
        return together
    if together != Together(folders={}):
        raise EngineError(
            "--layout, --ratio, --resident, --expert-cache, --prefetch, --non-expert-sets, --swap, "
            "--whole-models, --pageable, --turns, --quantum-s: are for --variants; give some"
        )
    return None


def service_together(
    together: Together,
    hosting: Hosting,
    *,
    bounds: Bounds | None = None,
    api_key: str = "",
    keep_records: bool = False,
) -> Service:
    """Load variants and return a service that is ready to run; each is a model of its own there.

    Raises EngineError for what goes with models that do not share a device only.
    """
    _check(hosting)
    family = together.load(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    shortest = min(family.decoders.values(), key=lambda one: one.spec.max_position_embeddings)
    config = config_of(shortest, hosting, len(family.names))
    kept: list[Record] | None = [] if keep_records else None
    metrics = {name: Metrics() for name in family.names}
    accounts = {name: VariantAccount(metrics[name], kept) for name in family.names}
    clock = VariantsWallClock()
    engine = VariantsEngine(family, config, together.turns, clock, accounts)
    conductor = Conductor(engine)
    service = Service(models={}, clock=clock, bounds=bounds or Bounds(), api_key=api_key, kept=kept)
    for name, seat in engine.seats.items():
        worker = VariantWorker(name, seat, accounts[name], metrics[name], conductor)
        conductor.workers[name] = worker
        service.models[name] = ServedModel(
            name=name,
            tokeniser=tokeniser_of(together.folders[name], shortest.spec.vocab_size),
            worker=worker,
            created=int(time.time()),
            seats=config.limits.max_num_seqs + service.bounds.queue,
        )
    return service


def _check(hosting: Hosting) -> None:
    if hosting.precision is not None or hosting.rest_precision is not None:
        raise EngineError("--precision: variants keep their checkpoints' format; leave it out")
    if hosting.tensor_parallel > 1:
        raise EngineError(
            f"--tensor-parallel {hosting.tensor_parallel}: variants share one device; leave it out"
        )
