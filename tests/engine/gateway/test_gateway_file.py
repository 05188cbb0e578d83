"""A gateway as a file: the same afterwards, whole or not at all, one line where it is broken."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine.gateway.file import load_gateway, save_gateway
from engine.gateway.gateway import Gateway
from engine.gateway.training import train
from moesim.errors import EngineError, MoesimError


def test_a_loaded_gateway_is_the_saved_one(
    gateway: Gateway, saved: Path, write: Callable[[str], str]
) -> None:
    """Array by array, word by word, and so route by route."""
    loaded = load_gateway(saved)
    unseen = [f"{write('sailing')} {write('algebra')}" for _ in range(50)]
    assert loaded.route_many(unseen) == gateway.route_many(unseen)
    assert loaded.vocabulary == gateway.vocabulary
    assert loaded.trained == gateway.trained
    assert loaded.shares == gateway.shares
    assert loaded.topic(1) == gateway.topic(1)
    for name in ("idf", "directions", "centres", "prompts"):
        assert np.array_equal(getattr(loaded, name), getattr(gateway, name)), name


def test_the_same_training_writes_the_same_bytes(texts: list[str], tmp_path: Path) -> None:
    for name in "ab":
        save_gateway(train(texts, 3, seed=2), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_nothing_in_it_is_pickled(saved: Path) -> None:
    with np.load(saved, allow_pickle=False) as archive:
        about = json.loads(archive["about"].tobytes())
        assert {archive[name].dtype.kind for name in archive.files} == {"f", "i", "u"}
    assert about["format"] == "moesim-gateway"
    assert set(about["trained"]) == {"seed", "scikit_learn"}


def test_a_failed_write_leaves_the_former_file(
    gateway: Gateway, saved: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = saved.read_bytes()

    def full_disk(file: Any, **_: Any) -> None:
        file.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(np, "savez", full_disk)
    with pytest.raises(MoesimError, match="No space left"):
        save_gateway(gateway, saved)
    assert saved.read_bytes() == before
    assert list(saved.parent.iterdir()) == [saved]


def _rewritten(path: Path, **changes: Any) -> None:
    """Write a gateway's file again with other arrays, `None` for none."""
    with np.load(path) as archive:
        arrays = {**{name: archive[name] for name in archive.files}, **changes}
    with path.open("wb") as file:
        np.savez(file, **{name: part for name, part in arrays.items() if part is not None})


def _telling(path: Path, **changes: Any) -> None:
    """Write a gateway's file again that says other things of itself."""
    with np.load(path) as archive:
        about = {**json.loads(archive["about"].tobytes()), **changes}
    _rewritten(path, about=np.frombuffer(json.dumps(about).encode(), dtype=np.uint8))


DAMAGES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "text": (lambda path: path.write_text("hello"), "not an npz file"),
    "empty": (lambda path: path.write_bytes(b""), "not an npz file"),
    "half": (lambda path: path.write_bytes(path.read_bytes()[:5000]), "not an npz file"),
    "pickle": (lambda path: path.write_bytes(pickle.dumps({"a": 1})), "not an npz file"),
    "object": (lambda path: _rewritten(path, about=np.array([{}])), "not an npz file"),
    "npy": (lambda path: np.save(path.open("wb"), np.zeros(3)), "not an npz file"),
    "other npz": (lambda path: _rewritten(path, about=None), "about: missing"),
    "other format": (lambda path: _telling(path, format="profile"), "format: not"),
    "other version": (lambda path: _telling(path, format_version=2), "format_version: 2 is not 1"),
    "words": (lambda path: _telling(path, words=[1, 2]), "words: not a list of words"),
    "trained": (lambda path: _telling(path, trained=3), "trained: not an object"),
    "a word less": (lambda path: _telling(path, words=["mast"]), "idf: shape"),
    "no idf": (lambda path: _rewritten(path, idf=None), "idf: not an array of float64"),
    "rank": (lambda path: _rewritten(path, centres=np.zeros(3)), "centres: not an array"),
    "shape": (lambda path: _rewritten(path, centres=np.zeros((3, 2))), "centres: shape"),
    "nan": (lambda path: _rewritten(path, idf=np.full(36, np.nan)), "idf: not finite"),
    "counts": (lambda path: _rewritten(path, prompts=np.array([0, 0, 0])), "prompts: not the"),
}


@pytest.mark.filterwarnings("ignore::ResourceWarning")
@pytest.mark.parametrize("name", DAMAGES)
def test_a_broken_file_is_named(name: str, saved: Path) -> None:
    """With what is wrong, and how to make one that is not."""
    damage, expected = DAMAGES[name]
    damage(saved)
    with pytest.raises(EngineError) as caught:
        load_gateway(saved)
    said = str(caught.value)
    assert said.startswith(f"{saved}: {expected}")
    assert said.endswith("moesim-engine gateway train'")
    assert "\n" not in said


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match=r"none\.npz: not readable \(No such file"):
        load_gateway(tmp_path / "none.npz")
