"""The shipped data by name: `demo-moe`, `a100-sxm-80gb`, `quickstart`; or any path.

A file that exists is taken as a path, for models a folder too; any other name is looked up in the
package `moesim.data`.
"""

from collections.abc import Collection
from importlib.resources import files
from pathlib import Path

from moesim.checked import checked
from moesim.errors import ScenarioError
from moesim.facts.configs import RUNNABLE
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec, read_config
from moesim.files import read_yaml, shown

SUFFIX = {
    "hardware": ".yaml",
    "models": ".json",
    "profiles": ".json",
    "workloads": ".yaml",
    "scenarios": ".yaml",
    "quality": ".yaml",
}


def data_folder() -> Path:
    """Return where the shipped data lies, also in a source tree that is not installed."""
    try:
        return Path(str(files("moesim.data")))
    except ModuleNotFoundError:  # only an installation places `data` inside `moesim`
        return Path(__file__).parents[2] / "data"


def shipped(folder: str) -> dict[str, Path]:
    """List the shipped entries of a data folder, name to file, in alphabetical order."""
    root = data_folder() / folder
    return {path.stem: path for path in sorted(root.glob(f"*{SUFFIX[folder]}"))}


def locate(folder: str, name: str, *, relative_to: Path | None = None) -> Path:
    """Find the file that `name` means: a path (also relative to a folder) or a shipped name.

    Raises ScenarioError with the names that exist.
    """
    path = written_path(folder, name, relative_to=relative_to)
    if path is not None:
        return path
    known = shipped(folder)
    if name in known:
        return known[name]
    _refuse_other(Path(name))
    listed = ", ".join(known) or "none"
    raise ScenarioError(f"{shown(name)}: neither a file nor one of the shipped {folder}: {listed}")


def written_path(folder: str, name: str, *, relative_to: Path | None = None) -> Path | None:
    """Return the path that `name` is, before the working folder, then that given; None if none."""
    candidates = (Path(name), (relative_to or Path()) / name)
    return next((path for path in candidates if _is_there(path, folder == "models")), None)


def _refuse_other(path: Path) -> None:
    """Raise ScenarioError where something is there that is no file."""
    try:
        there, folder = path.exists(), path.is_dir()
    except (OSError, ValueError):  # as in `_is_there`
        return
    if there:
        kind = "a folder" if folder else "a device or a pipe"
        raise ScenarioError(f"{shown(path)}: is {kind}; give a file")


def _is_there(path: Path, folders_too: bool) -> bool:
    try:
        return path.is_file() or (folders_too and path.is_dir())
    except (OSError, ValueError):  # too long to be a path, or with a null character
        return False


def load_model(
    name: str, *, relative_to: Path | None = None, architectures: Collection[str] = RUNNABLE
) -> ModelSpec:
    """Load a model's shape from a checkpoint folder, a config file or a shipped name.

    Of other `architectures` than those that run, the caller needs to know what to do with them.
    """
    return read_config(locate("models", name, relative_to=relative_to), architectures)


def load_device(name: str, *, relative_to: Path | None = None) -> Device:
    """Load a device from a YAML file or a shipped name."""
    path = locate("hardware", name, relative_to=relative_to)
    return checked(Device, read_yaml(path), str(path))
