"""A gateway as a file: numpy's npz, nothing in it that could run.

The arrays of `Gateway` by name, and `about`: JSON in UTF-8 with format, version, the words in the
order of their rows, and how the gateway was trained.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from engine.gateway.gateway import Gateway
from moesim.errors import EngineError
from moesim.files import atomic_path

FORMAT = "moesim-gateway"
FORMAT_VERSION = 1
ARRAYS = {"idf": 1, "directions": 2, "centres": 2, "prompts": 1}
"""The arrays and how many dimensions each has."""


def save_gateway(gateway: Gateway, path: Path) -> None:
    """Write a gateway atomically."""
    about = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        "trained": dict(gateway.trained),
        "words": list(gateway.vocabulary),
    }
    arrays = {name: getattr(gateway, name) for name in ARRAYS}
    arrays["about"] = np.frombuffer(json.dumps(about).encode(), dtype=np.uint8)
    with atomic_path(path) as draft, draft.open("wb") as file:
        np.savez(file, allow_pickle=False, **arrays)


def load_gateway(path: Path) -> Gateway:
    """Read a gateway; EngineError names the file and what is wrong with it."""
    content = _content(path)
    about = _about(path, content)
    arrays = {name: _array(path, content, name, rank) for name, rank in ARRAYS.items()}
    gateway = Gateway(
        vocabulary={word: row for row, word in enumerate(about["words"])},
        trained=about["trained"],
        **arrays,
    )
    wrong = _misfit(gateway)
    if wrong:
        raise _broken(path, wrong)
    return gateway


def _content(path: Path) -> Mapping[str, Any]:
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except OSError as wrong:
        raise EngineError(f"{path}: not readable ({wrong.strerror or wrong})") from None
    # zipfile, zlib and numpy raise half a dozen kinds for bytes that they cannot read.
    except Exception:
        raise _broken(path, "not an npz file, or damaged") from None


def _about(path: Path, content: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return what a file says of itself; EngineError where that is not a gateway."""
    try:
        about = json.loads(content["about"].tobytes())
    except (KeyError, ValueError):
        raise _broken(path, "about: missing, or not JSON") from None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise _broken(path, f"format: not {FORMAT!r}")
    version = about.get("format_version")
    if version != FORMAT_VERSION:
        raise _broken(path, f"format_version: {version!r} is not {FORMAT_VERSION}")
    words, trained = about.get("words"), about.get("trained")
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise _broken(path, "words: not a list of words")
    if not isinstance(trained, dict):
        raise _broken(path, "trained: not an object")
    return about


def _array(path: Path, content: Mapping[str, Any], name: str, rank: int) -> Any:
    """Return one array of numbers; EngineError where it is none."""
    array = content.get(name)
    kind = np.int64 if name == "prompts" else np.float64
    if array is None or array.ndim != rank or array.dtype != kind:
        raise _broken(path, f"{name}: not an array of {kind.__name__} in {rank} dimensions")
    if not np.isfinite(array).all():
        raise _broken(path, f"{name}: not finite")
    return array


def _misfit(gateway: Gateway) -> str:
    """Say which parts do not fit together, nothing if all do."""
    words, dimensions = len(gateway.vocabulary), gateway.directions.shape[1]
    shapes = {
        "idf": (words,),
        "directions": (words, dimensions),
        "centres": (gateway.clusters, dimensions),
        "prompts": (gateway.clusters,),
    }
    for name, shape in shapes.items():
        if getattr(gateway, name).shape != shape:
            return f"{name}: shape {getattr(gateway, name).shape} is not {shape}"
    if not gateway.clusters or gateway.prompts.min() < 0 or not gateway.prompts.sum():
        return "prompts: not the counts of one or more clusters"
    return ""


def _broken(path: Path, what: str) -> EngineError:
    return EngineError(f"{path}: {what}; make it with 'moesim-engine gateway train'")
