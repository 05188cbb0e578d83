"""Files: written whole or not at all, and YAML read with one-line errors."""

import os
import tempfile
from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml

from moesim.errors import ScenarioError


@contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """Yield a draft beside `path` to write; on success it replaces `path`, else it vanishes.

    Raises ScenarioError where `path` cannot be written.
    """
    if path.is_dir():
        raise ScenarioError(f"{path}: is a folder; give a file name")
    path = path.resolve()  # a link stays one, what it points to is replaced
    if path.exists() and not path.is_file():
        raise ScenarioError(f"{path}: is a device or a pipe; give a file name")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, draft = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem}-", suffix=path.suffix
        )
    except OSError as wrong:
        raise ScenarioError(f"{path}: cannot be written ({wrong.strerror})") from None
    os.close(handle)
    try:
        yield Path(draft)
        Path(draft).chmod(0o644)
        Path(draft).replace(path)
    except OSError as wrong:
        raise ScenarioError(f"{path}: cannot be written ({wrong.strerror or wrong})") from None
    finally:
        Path(draft).unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically."""
    with atomic_path(path) as draft:
        draft.write_text(text)


class _Loader(yaml.SafeLoader):
    """Reads plain YAML and refuses a key that is given twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Build a mapping, each key once."""
        keys = [key.value for key, _ in node.value if key.tag != "tag:yaml.org,2002:merge"]
        twice = {str(key) for key in keys if keys.count(key) > 1}
        if twice:
            raise yaml.YAMLError(f"line {node.start_mark.line + 1}: {min(twice)!r} is given twice")
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> Any:
    """Read a YAML file; ScenarioError, naming the file, where it is not one."""
    try:
        return yaml.load(path.read_text(), Loader=_Loader)  # noqa: S506  # a SafeLoader
    except (OSError, UnicodeDecodeError) as wrong:
        raise ScenarioError(f"{path}: not readable ({wrong})") from None
    # PyYAML's own constructors let malformed dates, numbers and depths escape as these.
    except (yaml.YAMLError, ValueError, AttributeError, RecursionError) as wrong:
        raise ScenarioError(f"{path}: not valid YAML: {' '.join(str(wrong).split())}") from None
