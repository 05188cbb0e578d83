"""Half-done measurements on disk, so that an interrupted profile goes on where it was."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.files import write_text

Samples = dict[str, dict[str, list[float]]]
"""Point key, operation, durations [s]."""


@dataclass(slots=True)
class Partial:
    """Samples so far, for one setting; kept in a file beside the profile to be."""

    path: Path
    setting: dict[str, Any]
    samples: Samples = field(default_factory=dict)
    spent_s: float = 0.0

    @classmethod
    def open(cls, profile: Path, setting: dict[str, Any]) -> "Partial":
        """Take up the partial file of `profile` if it was made with the same setting."""
        path = profile.with_name(profile.name + ".partial")
        try:
            content = json.loads(path.read_text())
        except (OSError, ValueError):
            content = {}
        if content.get("setting") != setting:
            return cls(path, setting)
        return cls(path, setting, content["samples"], content["spent_s"])

    @property
    def rounds(self) -> int:
        """Complete rounds over the grid as it is now."""
        return min((len(s["iteration"]) for s in self.samples.values()), default=0)

    @property
    def longest(self) -> int:
        """Complete rounds since the measurement began, before points were added too."""
        return max((len(s["iteration"]) for s in self.samples.values()), default=0)

    def add(self, key: str, durations: dict[str, float]) -> None:
        """Add one measured iteration."""
        samples = self.samples.setdefault(key, {})
        for name, seconds in durations.items():
            samples.setdefault(name, []).append(seconds)

    def save(self) -> None:
        """Write the file atomically."""
        content = {"setting": self.setting, "samples": self.samples, "spent_s": self.spent_s}
        write_text(self.path, json.dumps(content))

    def remove(self) -> None:
        """Delete the file, once the profile is written."""
        self.path.unlink(missing_ok=True)
