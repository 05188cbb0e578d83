"""A variant as a layout makes it, assembled at rest: the reference for what is served.

It has the variant's own non-expert set, the sources' experts at the shared positions and its own
at the others.
"""

from collections.abc import Collection, Mapping
from pathlib import Path

import torch

from engine.model.loading import load_model
from engine.variants.digest import digest
from engine.variants.layout import Layout
from engine.variants.positions import Model, Position, expert_places
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError


def assemble(
    layout: Layout,
    folders: Mapping[str, Path],
    variant: str,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
) -> Model:
    """Load a variant and put the sources' experts where they are shared.

    `folders` are the checkpoints by the names of the layout. Raises EngineError where they are not
    those that the layout was made of.
    """
    layout.require(variant)
    check_folders(layout, folders)
    model = load_model(folders[variant], torch.device(device), dtype)
    places = expert_places(model)
    check_positions(layout, folders[variant], places)
    stored = {name: StoredExperts(folder) for name, folder in folders.items() if name != variant}
    for position, source in layout.shared.items():
        if source != variant:
            matrices = stored[source].read(position)
            for place, matrix in zip(places[position], matrices, strict=True):
                place.copy_(matrix)
    return model


def check_positions(layout: Layout, folder: Path, positions: Collection[Position]) -> None:
    """Raise EngineError unless a layout ranks the expert positions of a checkpoint, all of them."""
    ranked = {one.position for one in layout.ranking}
    if ranked != set(positions):
        raise EngineError(
            f"{folder}: has other expert positions than the layout, {len(positions)} and not "
            f"{len(ranked)} or not the same; make the layout again"
        )


def check_folders(layout: Layout, folders: Mapping[str, Path]) -> None:
    """Raise EngineError unless these are the checkpoints that a layout was made of."""
    for variant in layout.variants:
        if variant.name not in folders:
            raise EngineError(f"variants: no folder is given for {variant.name!r} of the layout")
        found = digest(folders[variant.name])
        if found != variant.digest:
            raise EngineError(
                f"{folders[variant.name]}: digest {found} is not the {variant.digest} of "
                f"{variant.name!r} in the layout; give that checkpoint, or make the layout again"
            )
    unknown = [name for name in folders if name not in layout.names]
    if unknown:
        raise EngineError(f"variants: {unknown[0]!r} is not in the layout, which has "
                          f"{', '.join(layout.names)}")  # fmt: skip
