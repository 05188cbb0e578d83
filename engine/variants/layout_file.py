"""The layout file: JSON, one object, which says of what format and version it is.

    {"format": "moesim-layout", "version": 1, "ratio": 0.5,
     "variants": [{"name": "base", "digest": "0f..."}, ...],
     "positions": [{"layer": 1, "expert": 0, "distance": 0.2, "source": "base"}, ...],
     "provenance": {"made": "2025-11-21T12:00:00+00:00", "moesim": "0.1.0", "torch": "2.13.0"}}

`positions` are in the order of the ranking. Version 1 is the first.
"""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from engine.variants.layout import Layout, Provenance, Ranked, Variant
from engine.variants.positions import Position
from moesim.errors import EngineError
from moesim.files import write_text

FORMAT = "moesim-layout"
VERSION = 1

Kinds = Mapping[str, type | tuple[type, ...]]
TOP: Kinds = {"format": str, "version": int, "ratio": (int, float), "variants": list,
              "positions": list, "provenance": dict}  # fmt: skip
POSITION: Kinds = {"layer": int, "expert": int, "distance": (int, float), "source": str}


def write_layout(path: Path, layout: Layout) -> None:
    """Write a layout file, whole or not at all."""
    write_text(path, layout_text(layout))


def layout_text(layout: Layout) -> str:
    """Return what is in a layout's file."""
    positions = [
        {**one.position._asdict(), "distance": one.distance, "source": one.source}
        for one in layout.ranking
    ]
    content = {
        "format": FORMAT,
        "version": VERSION,
        "ratio": layout.ratio,
        "variants": [asdict(variant) for variant in layout.variants],
        "positions": positions,
        "provenance": asdict(layout.provenance),
    }
    return json.dumps(content, indent=1) + "\n"


def read_layout(path: Path) -> Layout:
    """Read a layout file; EngineError names the file, the field and what to do."""
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError:
        raise EngineError(f"{path}: no such file; moesim-engine consolidate makes one") from None
    except (OSError, ValueError, RecursionError) as wrong:
        raise EngineError(f"{path}: not readable as JSON ({wrong}); make it again") from None
    try:
        return _layout(content)
    except EngineError as wrong:
        raise EngineError(f"{path}: {wrong}") from None


def _layout(content: Any) -> Layout:
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise EngineError("not a layout file; moesim-engine consolidate makes one")
    if content.get("version") != VERSION:
        raise EngineError(
            f"version: {content.get('version')!r} is not {VERSION}; "
            "make it again with this moesim-engine"
        )
    _check(content, TOP, "")
    for index, one in enumerate(content["variants"]):
        _check(one, dict.fromkeys(Variant.__slots__, str), f"variants.{index}.")
    for index, one in enumerate(content["positions"]):
        _check(one, POSITION, f"positions.{index}.")
    _check(content["provenance"], dict.fromkeys(Provenance.__slots__, str), "provenance.")
    return Layout(
        ratio=content["ratio"],
        variants=tuple(Variant(**one) for one in content["variants"]),
        ranking=tuple(_ranked(one) for one in content["positions"]),
        provenance=Provenance(**content["provenance"]),
    )


def _ranked(one: Mapping[str, Any]) -> Ranked:
    position = Position(one["layer"], one["expert"])
    return Ranked(position=position, distance=float(one["distance"]), source=one["source"])


def _check(part: Any, kinds: Kinds, prefix: str) -> None:
    """Raise EngineError unless `part` has exactly the keys of `kinds`, of their types."""
    if not isinstance(part, dict):
        raise EngineError(f"{prefix.removesuffix('.')}: {part!r:.40} is not an object with keys")
    for key in part:
        if key not in kinds:
            raise EngineError(f"{prefix}{key}: unknown key; remove it")
    for key, kind in kinds.items():
        if key not in part:
            raise EngineError(f"{prefix}{key}: missing; make the layout again")
        value = part[key]
        wrong = not isinstance(value, kind) or isinstance(value, bool)
        if wrong or (isinstance(value, float) and not math.isfinite(value)):
            shown = json.dumps(value)[:40]
            raise EngineError(f"{prefix}{key}: {shown} is not possible; make the layout again")
