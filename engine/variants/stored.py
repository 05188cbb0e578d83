"""Experts as they lie in a checkpoint's files, read one matrix at a time.

A decoder's layer has three tensors an expert, or its experts side by side in two (fused), of which
only one expert's part is read; a Switch Transformer's layer has two tensors an expert.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from engine.model.layout import EXPERT_NAMES
from engine.model.reading import check, headers, missing, opened, weight_files
from engine.model.switch.config import MODEL_TYPE
from engine.variants.positions import Position, positions_of
from moesim.errors import EngineError, ScenarioError
from moesim.facts.models import ModelSpec, read_config

Shape = tuple[int, ...]

GATE_UP, DOWN = "mlp.experts.gate_up_proj", "mlp.experts.down_proj"
"""What a layer's fused experts are called, in every architecture."""


class Place(NamedTuple):
    """Where matrices of an expert lie: a tensor, its shape, and which row of it unless all."""

    name: str
    shape: Shape
    row: int | None = None


class StoredExperts:
    """The experts of a checkpoint folder, in the number format of its files.

    Raises EngineError where the folder is no checkpoint of an architecture that runs, or an expert
    is missing or has another shape than `config.json` says. No weight is read before `read`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self.spec = read_config(path)
        except ScenarioError as wrong:
            raise EngineError(str(wrong)) from None
        self.positions = positions_of(self.spec)
        files = weight_files(path)
        self._stored = {tensor.name: tensor for file in files for tensor in headers(file)}
        self._require(files)

    def read(self, position: Position) -> tuple[Tensor, ...]:
        """Return an expert's matrices: gate, up and down, or in a Switch Transformer wi and wo."""
        return tuple(self.matrices(position))

    def matrices(self, position: Position) -> Iterator[Tensor]:
        """Yield the same one after the other, so that no two need to be in memory at once."""
        for place in self._places(position):
            with opened(self._stored[place.name].file) as tensors:
                if place.row is None:
                    yield tensors.get_tensor(place.name)
                    continue
                part: Tensor = tensors.get_slice(place.name)[place.row]
            if place.name.endswith(GATE_UP):
                yield from part.chunk(2)
            else:
                yield part

    def _require(self, files: list[Path]) -> None:
        """Compare what the experts need with what is stored."""
        places = [place for position in self.positions for place in self._places(position)]
        absent = [place.name for place in places if place.name not in self._stored]
        if absent:
            raise missing(list(dict.fromkeys(absent)), files)
        for place in places:
            check(self._stored[place.name], place.shape)

    def _places(self, position: Position) -> list[Place]:
        if self.spec.model_type == MODEL_TYPE:
            return _switch_places(self.spec, position)
        if f"model.layers.{position.layer}.{GATE_UP}" in self._stored:
            return _fused_places(self.spec, position)
        return _separate_places(self.spec, position)


def _switch_places(spec: ModelSpec, position: Position) -> list[Place]:
    """Return wi and wo; the encoder's blocks are counted first, their networks are sublayer 1."""
    encoders, layer = spec.num_encoder_layers, position.layer
    block = f"encoder.block.{layer}.layer.1"
    if layer >= encoders:
        block = f"decoder.block.{layer - encoders}.layer.2"
    prefix = f"{block}.mlp.experts.expert_{position.expert}"
    inner, hidden = spec.intermediate_size, spec.hidden_size
    return [
        Place(f"{prefix}.wi.weight", (inner, hidden)),
        Place(f"{prefix}.wo.weight", (hidden, inner)),
    ]


def _fused_places(spec: ModelSpec, position: Position) -> list[Place]:
    """Return gate and up, one below the other, and down; each a row of its layer's tensor."""
    layer = f"model.layers.{position.layer}"
    experts, inner, hidden = spec.num_local_experts, spec.intermediate_size, spec.hidden_size
    return [
        Place(f"{layer}.{GATE_UP}", (experts, 2 * inner, hidden), position.expert),
        Place(f"{layer}.{DOWN}", (experts, hidden, inner), position.expert),
    ]


def _separate_places(spec: ModelSpec, position: Position) -> list[Place]:
    names = EXPERT_NAMES.get(spec.model_type)
    if names is None:
        raise EngineError(f"model_type: {spec.model_type!r} has no experts that can be shared")
    prefix = f"model.layers.{position.layer}.{names.expert}.{position.expert}"
    inner, hidden = spec.intermediate_size, spec.hidden_size
    return [
        Place(f"{prefix}.{names.gate}.weight", (inner, hidden)),
        Place(f"{prefix}.{names.up}.weight", (inner, hidden)),
        Place(f"{prefix}.{names.down}.weight", (hidden, inner)),
    ]
