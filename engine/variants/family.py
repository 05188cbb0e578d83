"""A family: the variants of one model on one device, read from their checkpoints.

Of every variant the non-expert set is read, and of the experts those copies that a layout has it
keep; nothing else is ever in memory.
"""

from collections.abc import Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field, fields
from pathlib import Path

import torch
from torch import Tensor

from engine.model.decoder import Decoder
from engine.model.layout import places
from engine.model.reading import check, headers, missing, opened, unexpected, weight_files
from engine.variants.assemble import check_folders, check_positions
from engine.variants.copies import Copies, Popularity
from engine.variants.layout import Layout
from engine.variants.positions import Position, positions_of
from engine.variants.reconfigure import AllSets, LooseSets, PackedSets, Sets
from engine.variants.skeleton import attach, meta_weights, skeleton
from engine.variants.store import ExpertStore, Residency
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError, ScenarioError
from moesim.facts.configs import DECODERS
from moesim.facts.models import ModelSpec, read_config

ONE, ALL = "one", "all"
PACKED, AHEAD, LOOSE = SWAPS = "packed", "ahead", "loose"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sharing:
    """How variants share a device.

    `residency` says which expert copies stay there. Of the `non_expert_sets` there is "one", which
    a change of variant replaces, or "all" of them; `swap` replaces it by one copy ("packed"), by
    one that begins during the iterations before ("ahead"), or by a copy a tensor from pageable
    memory ("loose"). With `whole_models` variants share nothing: what is said of non-expert sets
    holds for all weights (full time-sharing).
    """

    residency: Residency = field(default_factory=Residency)
    non_expert_sets: str = ONE
    swap: str = PACKED
    whole_models: bool = False

    def __post_init__(self) -> None:
        for name, choices in (("non_expert_sets", (ONE, ALL)), ("swap", SWAPS)):
            if getattr(self, name) not in choices:
                raise EngineError(f"{name}: {getattr(self, name)!r} is not {' or '.join(choices)}")
        if self.whole_models and self.residency.resident < 1:
            raise EngineError(
                f"resident: {self.residency.resident} does not go with whole models, whose experts "
                "come and go with them; leave one of them out"
            )

    def sets(self, like: Mapping[str, Tensor], variants: int, device: torch.device) -> Sets:
        """Return room for the weights of so many variants, laid out like those given."""
        if self.non_expert_sets == ALL:
            return AllSets(like, variants, device)
        if self.swap == LOOSE:
            return LooseSets(like, variants, device)
        pageable = self.residency.pageable
        return PackedSets(like, variants, device, pageable=pageable, ahead=self.swap == AHEAD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The variants by name, as decoders of which the one that `sets` has loaded can run."""

    decoders: Mapping[str, Decoder]
    sets: Sets
    store: ExpertStore

    @property
    def names(self) -> list[str]:
        """What the variants are called, in order."""
        return list(self.decoders)


def load_family(
    folders: Mapping[str, Path],
    sharing: Sharing,
    device: torch.device | str = "cpu",
    *,
    layout: Layout | None = None,
    popularity: Row[Popularity] | None = None,
) -> Family:
    """Read checkpoints, given by name; without a layout each variant keeps all its experts.

    `popularity` is a variant's each, in the same order: the most popular copies stay on the device.
    Raises EngineError where the shapes differ, the layout is of other checkpoints, or something
    does not fit.
    """
    device = torch.device(device)
    if layout is not None and sharing.whole_models:
        raise EngineError("layout: whole models share no experts; leave one of them out")
    specs = {name: _spec_of(folder) for name, folder in folders.items()}
    _check_shapes(specs)
    if layout is not None:
        check_folders(layout, folders)
        for name, folder in folders.items():
            check_positions(layout, folder, positions_of(specs[name]))
    names, spec = list(folders), next(iter(specs.values()))
    whole = sharing.whole_models
    positions = [] if whole else positions_of(spec)
    copies = Copies(positions, len(names), _sources(layout, names), popularity)
    store = ExpertStore(spec, copies, sharing.residency, device)
    sets = sharing.sets(meta_weights(spec, experts=whole), len(names), device)
    decoders = {}
    for variant, (name, folder) in enumerate(folders.items()):
        _read(folder, specs[name], sets.room(variant))
        _read_experts(folder, store, variant)
        decoders[name] = skeleton(specs[name], sets.weights(variant))
        if not whole:
            attach(decoders[name], store, variant)
    store.open()
    return Family(decoders=decoders, sets=sets, store=store)


def _spec_of(folder: Path) -> ModelSpec:
    try:
        spec = read_config(folder, DECODERS)
    except ScenarioError as wrong:
        raise EngineError(str(wrong)) from None
    if not positions_of(spec):
        raise EngineError(f"{folder}: has no experts; serve it as a model of its own")
    return spec


def _check_shapes(specs: Mapping[str, ModelSpec]) -> None:
    """Raise EngineError for variants that differ in more than how long their texts may be."""
    first, *others = specs
    for name in others:
        for key in (each.name for each in fields(ModelSpec)):
            mine, its = getattr(specs[first], key), getattr(specs[name], key)
            if mine != its and key != "max_position_embeddings":
                raise EngineError(
                    f"variants: {name}: {key}: {its} is not {mine} as in {first}; "
                    "give checkpoints of one shape"
                )


def _sources(layout: Layout | None, names: list[str]) -> dict[Position, int]:
    shared = layout.shared if layout else {}
    return {position: names.index(source) for position, source in shared.items()}


def _read(folder: Path, spec: ModelSpec, room: Mapping[str, Tensor]) -> None:
    """Read those weights of a variant that there is room for, after all shapes were compared."""
    files = weight_files(folder)
    stored = [tensor for file in files for tensor in headers(file)]
    fused = any(tensor.name.endswith(".mlp.experts.gate_up_proj") for tensor in stored)
    expected = places(skeleton(spec, room), fused)
    for tensor in stored:
        if _is_redundant(tensor.name, spec):
            continue
        place = expected.pop(tensor.name, None)
        if place is None:
            raise unexpected(tensor)
        check(tensor, tuple(place.shape))
        if not place.is_meta:  # as experts of the store are, which are read one by one
            with opened(tensor.file) as tensors:
                place.copy_(tensors.get_tensor(tensor.name))
    if expected:
        raise missing(expected, files)


def _is_redundant(name: str, spec: ModelSpec) -> bool:
    """Whether a tensor repeats what the model has: a tied head, or old RoPE constants."""
    tied_head = name == "lm_head.weight" and spec.tie_word_embeddings
    return tied_head or name.endswith(".rotary_emb.inv_freq")


def _read_experts(folder: Path, store: ExpertStore, variant: int) -> None:
    """Read the expert copies that a variant is the source of."""
    stored = StoredExperts(folder)
    for number, position in store.copies.of(variant).items():
        gate, up, down = stored.read(position)
        gate_up_room, down_room = store.room(number)
        inner = gate.shape[0]
        gate_up_room[:inner].copy_(gate)
        gate_up_room[inner:].copy_(up)
        down_room.copy_(down)
