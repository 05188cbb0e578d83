"""Files: written whole or not at all, and YAML read with one-line errors."""

import os
import re
import tempfile
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from moesim.errors import ScenarioError

LONGEST_SHOWN = 200
"""Characters of a path that an error shows."""

MOST_KEYS = 10_000
"""Keys of one mapping of a YAML file that may come of merges."""

AMBIGUOUS = re.compile(r"[-+]?(0[0-7_]*[0-7]|[0-9][0-9_]*(:[0-5]?[0-9])+)")
"""`060`, which YAML 1.1 reads as 48, and `1:00`, which it reads as 60."""

MALFORMED = (ValueError, TypeError, LookupError, ArithmeticError, AttributeError, RecursionError)
"""What PyYAML raises for content that is not what its tag says."""


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a draft beside `path` to write; on success it replaces `path`, else it vanishes.

    Raises ScenarioError where `path` cannot be written.
    """
    try:
        whole = _place(path)
        whole.parent.mkdir(parents=True, exist_ok=True)
        draft = _draft(whole, whole.parent)
    except OSError as wrong:
        raise _unwritable(path, wrong) from None
    try:
        yield draft
        draft.chmod(0o644)
        draft.replace(whole)
    except OSError as wrong:
        raise _unwritable(whole, wrong) from None
    finally:
        draft.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, in UTF-8."""
    with atomic_path(path) as draft:
        draft.write_text(text, encoding="utf-8")


def check_outputs(outputs: Mapping[str, Path | None], inputs: Iterable[Path] = ()) -> None:
    """Raise ScenarioError where a result could not be written, so that no work is done for it.

    `outputs` are files by the option that names them; none may be another or one of the `inputs`.
    Nothing is left behind, and no folder is made.
    """
    read = {path.resolve() for path in inputs}
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        try:
            whole = _place(path)
            there = next(folder for folder in whole.parents if folder.exists())
            _draft(whole, there).unlink()
        except OSError as wrong:
            raise _unwritable(path, wrong) from None
        if whole in read:
            raise ScenarioError(f"{option}: {path}: is read as input; choose another place")
        if whole in taken:
            other = taken[whole]
            raise ScenarioError(f"{option}: {path}: {other} writes that too; choose another place")
        taken[whole] = option


def _place(path: Path) -> Path:
    """Return where a file is written: a link stays one, what it points to is replaced."""
    if str(path).encode(errors="replace").decode() != str(path):
        raise ScenarioError(f"{path}: the name is not UTF-8, which some files need; choose another")
    if path.is_dir():
        raise ScenarioError(f"{path}: is a folder; give a file name")
    whole = path.resolve()
    if whole.exists() and not whole.is_file():
        raise ScenarioError(f"{whole}: is a device or a pipe; give a file name")
    return whole


def _draft(path: Path, folder: Path) -> Path:
    """Make an empty draft of a file in a folder."""
    handle, draft = tempfile.mkstemp(dir=folder, prefix=f".{path.stem}-", suffix=path.suffix)
    os.close(handle)
    return Path(draft)


def _unwritable(path: Path, wrong: OSError) -> ScenarioError:
    return ScenarioError(f"{shown(path)}: cannot be written ({wrong.strerror or wrong})")


def shown(path: Path | str) -> str:
    """Return a path as it can be told in one line, the beginning of one that is too long."""
    text = str(path)
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


class _Loader(yaml.SafeLoader):
    """Reads plain YAML and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, each key once."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {min(twice)!r} is given twice")
        return super().construct_mapping(node, deep)

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Take in merged mappings, but not without end: merges of merges multiply."""
        super().flatten_mapping(node)
        if len(node.value) > MOST_KEYS:
            line = node.start_mark.line + 1
            raise yaml.YAMLError(f"line {line}: merges add up to more than {MOST_KEYS} keys")

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        """Build a number, refusing what YAML 1.1 reads as octal or as minutes and seconds."""
        text = str(node.value)
        if AMBIGUOUS.fullmatch(text):
            line = node.start_mark.line + 1
            raise yaml.YAMLError(
                f"line {line}: {text} is not read as it looks; write it in decimal"
            )
        return int(super().construct_yaml_int(node))


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; ScenarioError, naming the file, where it is not one."""
    try:
        return yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError) as wrong:
        raise ScenarioError(f"{shown(path)}: not readable ({wrong})") from None
    # PyYAML's own constructors let malformed dates, numbers, depths and tags escape as these.
    except (yaml.YAMLError, *MALFORMED) as wrong:
        raise ScenarioError(f"{path}: not valid YAML: {' '.join(str(wrong).split())}") from None
