"""Experts read one by one: the weights that a whole loaded model has, from every format."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from engine.model.loading import load_model
from engine.model.reading import weight_files
from engine.variants.positions import Position, expert_places, positions_of
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError


def test_experts_are_those_of_the_loaded_model(folders: dict[str, Path]) -> None:
    """All positions of a layer's experts, whichever way they lie in the files."""
    stored = StoredExperts(folders["ada"])
    places = expert_places(load_model(folders["ada"]))
    assert stored.positions == sorted(places) == positions_of(stored.spec)
    assert len(places) == stored.spec.expert_positions > 0
    for position, expected in places.items():
        found = stored.read(position)
        assert [matrix.shape for matrix in found] == [place.shape for place in expected]
        assert all(map(torch.equal, found, expected))


def test_both_formats_hold_the_same_experts(
    separate: dict[str, Path], fused: dict[str, Path]
) -> None:
    """The fused checkpoint is in several files, the other is not."""
    one, other = StoredExperts(separate["bob"]), StoredExperts(fused["bob"])
    assert len(weight_files(separate["bob"])) == 1 < len(weight_files(fused["bob"]))
    for position in one.positions:
        assert all(map(torch.equal, one.read(position), other.read(position)))


def test_layers_of_an_encoder_come_before_those_of_its_decoder(switches: dict[str, Path]) -> None:
    """Of two layers each, the second is sparse: layers 1 and 3."""
    stored = StoredExperts(switches["ada"])
    assert stored.positions == [Position(layer, expert) for layer in (1, 3) for expert in range(3)]
    weights = load_file(switches["ada"] / "model.safetensors")
    name = "decoder.block.1.layer.2.mlp.experts.expert_2.wo.weight"
    assert torch.equal(stored.read(Position(3, 2))[1], weights[name])


def _copied(folder: Path, to: Path) -> Path:
    shutil.copytree(folder, to)
    return to


def test_a_missing_expert_is_named(separate: dict[str, Path], tmp_path: Path) -> None:
    folder = _copied(separate["ada"], tmp_path / "ada")
    weights = load_file(folder / "model.safetensors")
    del weights["model.layers.1.block_sparse_moe.experts.2.w3.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(EngineError, match=r"layers\.1.*experts\.2\.w3.*missing tensor"):
        StoredExperts(folder)


def test_an_expert_of_another_shape_is_named(separate: dict[str, Path], tmp_path: Path) -> None:
    folder = _copied(separate["ada"], tmp_path / "ada")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "intermediate_size": 13}))
    with pytest.raises(EngineError, match=r"w1.weight: shape \[12, 16\] is not \[13, 16\]"):
        StoredExperts(folder)


def test_a_folder_that_is_no_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"config.json: no such file; give a checkpoint folder"):
        StoredExperts(tmp_path)


def test_a_cut_file_is_named(separate: dict[str, Path], tmp_path: Path) -> None:
    folder = _copied(separate["ada"], tmp_path / "ada")
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    with pytest.raises(EngineError, match="not readable as safetensors"):
        StoredExperts(folder)
