"""A variant as a layout makes it: its own non-expert set, the sources' experts, bit for bit."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from engine.model.layout import places as decoder_places
from engine.model.loading import load_model
from engine.model.switch.layout import places as switch_places
from engine.model.switch.model import Switch
from engine.variants.assemble import assemble
from engine.variants.command import consolidate
from engine.variants.family import Sharing, load_family
from engine.variants.layout import Layout
from engine.variants.positions import Model, expert_places
from moesim.errors import EngineError


def silent(_: float, __: str) -> None:
    """Tell nobody."""


def weights(model: Model) -> dict[str, torch.Tensor]:
    """Return all weights by the names that they are stored by."""
    return switch_places(model) if isinstance(model, Switch) else decoder_places(model, fused=False)


def rest(model: Model) -> dict[str, torch.Tensor]:
    """Return the non-expert set."""
    return {name: weight for name, weight in weights(model).items() if ".experts." not in name}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("name", ["ada", "bob", "eve"])
def test_nothing_shared_is_the_own_checkpoint(folders: dict[str, Path], name: str) -> None:
    """Ratio 0, to the last bit."""
    layout = consolidate(folders, 0.0, silent)
    made = assemble(layout, folders, name)
    assert same(weights(made), weights(load_model(folders[name])))


@pytest.mark.parametrize("ratio", [0.5, 1.0])
def test_shared_experts_are_the_sources(folders: dict[str, Path], ratio: float) -> None:
    """At every position the expert of whom the layout names; the rest is the variant's own."""
    layout = consolidate(folders, ratio, silent)
    own = {name: load_model(folder) for name, folder in folders.items()}
    assert set(layout.shared.values()) == set(folders)
    for name in folders:
        made = assemble(layout, folders, name)
        assert same(rest(made), rest(own[name]))
        found = expert_places(made)
        for position, source in layout.sources_of(name).items():
            assert all(map(torch.equal, found[position], expert_places(own[source])[position]))


def test_all_shared_is_the_same_experts_for_all(folders: dict[str, Path]) -> None:
    """Ratio 1: variants differ in nothing but their non-expert sets."""
    layout = consolidate(folders, 1.0, silent)
    one, other = (expert_places(assemble(layout, folders, name)) for name in ("ada", "eve"))
    assert all(torch.equal(a, b) for at in one for a, b in zip(one[at], other[at], strict=True))


@pytest.fixture
def layout(separate: dict[str, Path]) -> Layout:
    return consolidate(separate, 0.5, silent)


def test_a_folder_that_the_layout_does_not_know(layout: Layout, separate: dict[str, Path]) -> None:
    more = {**separate, "zoe": separate["ada"]}
    with pytest.raises(EngineError, match="'zoe' is not in the layout, which has ada, bob, eve"):
        assemble(layout, more, "ada")


def test_a_folder_that_is_missing(layout: Layout, separate: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="no folder is given for 'bob' of the layout"):
        assemble(layout, {"ada": separate["ada"]}, "ada")


@pytest.mark.parametrize("left", [0, 5])
def test_positions_that_a_layout_lacks(
    layout: Layout, separate: dict[str, Path], left: int
) -> None:
    """A ranking that was cut short, to be assembled or to be served."""
    short = replace(layout, ranking=layout.ranking[:left])
    said = f"other expert positions than the layout, 6 and not {left}"
    with pytest.raises(EngineError, match=said):
        assemble(short, separate, "ada")
    with pytest.raises(EngineError, match=said):
        load_family(separate, Sharing(), layout=short)


def test_a_variant_that_is_none(layout: Layout, separate: dict[str, Path]) -> None:
    with pytest.raises(EngineError, match="variant: 'zoe' is not one of ada, bob, eve"):
        assemble(layout, separate, "zoe")


def test_other_checkpoints_by_the_same_names(layout: Layout, separate: dict[str, Path]) -> None:
    """Two variants that changed places."""
    swapped = {**separate, "ada": separate["bob"], "bob": separate["ada"]}
    with pytest.raises(EngineError, match=r"digest .* is not the .* of 'ada' in the layout; give"):
        assemble(layout, swapped, "ada")


def test_one_tensor_that_was_trained_on(
    layout: Layout, separate: dict[str, Path], tmp_path: Path
) -> None:
    """The smallest tensor of the file, a norm, makes it another checkpoint."""
    folder = tmp_path / "ada"
    shutil.copytree(separate["ada"], folder)
    model: Any = load_model(folder)
    model.decoder_layers[1].post_norm.mul_(1.001)
    _overwrite(folder, model)
    with pytest.raises(EngineError, match="of 'ada' in the layout; give that checkpoint"):
        assemble(layout, {**separate, "ada": folder}, "ada")


def _overwrite(folder: Path, model: Model) -> None:
    from safetensors.torch import save_file

    file = folder / "model.safetensors"
    save_file({k: v.clone() for k, v in weights(model).items()}, file, metadata={"format": "pt"})


def test_a_copy_elsewhere_is_the_same_checkpoint(
    layout: Layout, separate: dict[str, Path], tmp_path: Path
) -> None:
    shutil.copytree(separate["ada"], tmp_path / "ada")
    moved = {**separate, "ada": tmp_path / "ada"}
    assert same(weights(assemble(layout, moved, "ada")), weights(assemble(layout, separate, "ada")))
