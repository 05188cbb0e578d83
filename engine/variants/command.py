"""What `moesim-engine consolidate` does: from checkpoint folders to a layout."""

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from engine.variants.digest import digest
from engine.variants.distances import Tell, distances
from engine.variants.layout import Layout, Provenance, Variant
from engine.variants.layout_file import layout_text
from engine.variants.stored import StoredExperts
from moesim.errors import EngineError
from moesim.files import atomic_path


def write_consolidation(folders: Mapping[str, Path], ratio: float, out: Path, tell: Tell) -> Layout:
    """Consolidate, and write the layout to `out`, which must not be there yet.

    That it can be written is known before any weight is read.
    """
    if out.exists():
        raise EngineError(f"{out}: exists already; remove it or choose another --out")
    with atomic_path(out) as draft:
        layout = consolidate(folders, ratio, tell)
        draft.write_text(layout_text(layout))
    return layout


def consolidate(folders: Mapping[str, Path], ratio: float, tell: Tell) -> Layout:
    """Compare the experts of checkpoints, given by name, and lay out which of them are shared.

    Raises EngineError for fewer than two, for different shapes, and for files that are damaged.
    """
    if not 0 <= ratio <= 1:
        raise EngineError(f"ratio: {ratio} must be between 0 and 1")
    stored = [StoredExperts(folder) for folder in folders.values()]
    variants = [Variant(name=name, digest=digest(path)) for name, path in folders.items()]
    return Layout.ranked(distances(stored, tell), variants, ratio, provenance())


def summary(layout: Layout) -> dict[str, Any]:
    """Return what a layout comes to: positions, how many are shared and whose, and distances."""
    positions, sources = len(layout.ranking), Counter(layout.shared.values())
    return {
        "positions": positions,
        "shared": len(layout.shared),
        "sources": {name: sources[name] for name in layout.names},
        "expert_copies": layout.copies,
        "expert_copies_apart": positions * len(layout.variants),
        "smallest_distance": layout.ranking[0].distance,
        "largest_distance": layout.ranking[-1].distance,
    }


def sentence(layout: Layout) -> str:
    """Return the same in a line."""
    found = summary(layout)
    sources = ", ".join(f"{count} of {name}" for name, count in found["sources"].items())
    return (
        f"{found['shared']} of {found['positions']} positions shared ({sources}); "
        f"{found['expert_copies']} expert copies in place of {found['expert_copies_apart']}; "
        f"distances {found['smallest_distance']:.4g} to {found['largest_distance']:.4g}"
    )


def provenance() -> Provenance:
    """Return what makes layouts here and now."""
    return Provenance(
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        moesim=_own_version(),
        torch=torch.__version__,
    )


def _own_version() -> str:
    """Return the installed version; a GPU host may run from the sources alone."""
    try:
        return version("moesim")
    except PackageNotFoundError:
        return "not installed"


def named(variants: Sequence[str]) -> dict[str, Path]:
    """Return folders by name, of `NAME=FOLDER` or `FOLDER`, which goes by its own name."""
    folders: dict[str, Path] = {}
    for text in variants:
        name, equals, folder = text.partition("=")
        path = Path(folder if equals else text)
        name = name if equals else path.resolve().name
        if not name:
            raise EngineError(f"{text!r}: has no name; give variants as NAME=FOLDER")
        if name in folders:
            raise EngineError(f"{text}: {name!r} is there twice; name variants as NAME=FOLDER")
        folders[name] = path
    return folders
