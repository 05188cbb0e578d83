"""Half-done measurements on disk, so that an interrupted profile goes on where it was."""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    Field,
    NonNegativeFloat,
    TypeAdapter,
    ValidationError,
)

from calibration.grid import POINT_KEY
from moesim.files import write_text

Key = Annotated[str, Field(pattern=POINT_KEY)]
Durations = Annotated[list[NonNegativeFloat], Field(min_length=1)]


def _timed(laps: dict[str, Durations]) -> dict[str, Durations]:
    """Return a point's laps; ValueError where the whole iteration is not among them."""
    if "iteration" not in laps:
        raise ValueError("no iteration")
    return laps


Laps = Annotated[dict[str, Durations], AfterValidator(_timed)]
Samples = dict[str, dict[str, list[float]]]
"""Point key, operation, durations [s]."""

Made = TypeVar("Made")


class _Content(BaseModel, allow_inf_nan=False, extra="forbid"):
    """What a partial file holds; one that is damaged is measured anew."""

    setting: dict[str, Any]
    samples: dict[Key, Laps]
    spent_s: NonNegativeFloat
    parts: dict[str, Any] = {}


@dataclass(slots=True)
class Partial:
    """Samples so far, for one setting; kept in a file beside the profile to be.

    `parts` are what is measured in one go after the samples, by name.
    """

    path: Path
    setting: dict[str, Any]
    samples: Samples = field(default_factory=dict)
    spent_s: float = 0.0
    parts: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, profile: Path, setting: dict[str, Any]) -> "Partial":
        """Take up the partial file of `profile` if it was made with the same setting."""
        path = profile.with_name(profile.name + ".partial")
        try:
            content = _Content.model_validate_json(path.read_bytes())
        except (OSError, ValidationError):
            return cls(path, setting)
        if content.setting != setting:
            return cls(path, setting)
        return cls(path, setting, content.samples, content.spent_s, content.parts)

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

    def once(self, name: str, kind: type[Made], make: Callable[[], Made]) -> Made:
        """Return a part of some kind: as it is on file, else as `make` measures it, and keep it."""
        known = TypeAdapter(kind)
        if name in self.parts:
            with suppress(ValidationError):
                return known.validate_python(self.parts[name])
        made = make()
        self.parts[name] = known.dump_python(made, mode="json")
        self.save()
        return made

    def save(self) -> None:
        """Write the file atomically."""
        content = {
            "setting": self.setting,
            "samples": self.samples,
            "spent_s": self.spent_s,
            "parts": self.parts,
        }
        write_text(self.path, json.dumps(content))

    def remove(self) -> None:
        """Delete the file, once the profile is written."""
        self.path.unlink(missing_ok=True)
