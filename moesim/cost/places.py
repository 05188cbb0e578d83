"""Where profiles are written: a new file, or one that is a profile already."""

import json
from pathlib import Path

from moesim.cost.profile import FORMAT, KERNELS
from moesim.errors import ProfileError


def check_place(out: Path) -> None:
    """Raise ProfileError where writing a profile would replace a file of another kind."""
    if out.is_dir():
        raise ProfileError(f"--out {out}: is a folder; give a file name")
    if out.exists() and _format(out) not in (FORMAT, KERNELS):
        raise ProfileError(f"--out {out}: is there and is no profile; choose another file")


def _format(path: Path) -> object:
    """Return what a file says that it is; None where it says nothing."""
    try:
        content = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return content.get("format") if isinstance(content, dict) else None


def check_drawing(plot: Path | None) -> None:
    """Raise ProfileError where drawing a profile would replace one."""
    if plot is not None and _format(plot) in (FORMAT, KERNELS):
        raise ProfileError(f"--plot {plot}: is a profile; choose another file")
