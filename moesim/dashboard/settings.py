"""What of a scenario can be turned on the page: its numbers, found in the scenario itself.

Label, help and bounds of a number come from its field in `moesim.scenario`, so a field that is
added there appears here. A change goes into the plain content of the file, which is then validated
as any file is.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from types import UnionType
from typing import Any, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

Path = tuple[str, ...]
Content = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A number of the scenario; bounds are inclusive, None is no bound or no value."""

    path: Path
    description: str
    whole: bool
    value: float | None
    low: float | None
    high: float | None

    @property
    def key(self) -> str:
        """Where the number stands in the file: `tenants.chat.arrivals.rate_per_s`."""
        return ".".join(self.path)

    @property
    def label(self) -> str:
        """The description up to its first colon or semicolon."""
        return re.split("[:;]", self.description.rstrip("."))[0]

    @property
    def step(self) -> float:
        """A change worth seeing: an eighth of a whole number, about a tenth of another."""
        if not self.value:
            return 1 if self.whole else 0.1
        if self.whole:
            return max(1, (1 << math.floor(math.log2(self.value))) // 8)
        return float(f"{math.pow(10, math.floor(math.log10(self.value))) / 2:g}")


def numbers(part: BaseModel, path: Path = ()) -> list[Setting]:
    """Return the numbers that stand directly in a part of a scenario, in its fields' order."""
    return [
        Setting(
            path=(*path, name),
            description=field.description or name,
            whole=int in _kinds(field),
            value=getattr(part, name),
            **_bounds(field),
        )
        for name, field in type(part).model_fields.items()
        if _kinds(field) & {int, float}
    ]


def describe(kind: type[BaseModel], field: str) -> str:
    """Return what a field says about itself."""
    return kind.model_fields[field].description or field


def with_value(content: Content, path: Path, value: Any) -> dict[str, Any]:
    """Return the content with one value replaced; what leads there is added where it is missing."""
    key, *rest = path
    if rest:
        value = with_value(content.get(key) or {}, tuple(rest), value)
    return {**content, key: value}


def with_changes(content: Content, changes: Mapping[Path, Any]) -> dict[str, Any]:
    """Return the content with every change made."""
    changed = dict(content)
    for path, value in changes.items():
        changed = with_value(changed, path, value)
    return changed


def with_enough_devices(content: Content, needed: int) -> dict[str, Any]:
    """Return the content with as many devices as are needed, if it has fewer."""
    written = content["hardware"].get("count", 1)
    return with_value(content, ("hardware", "count"), max(written, needed))


def _kinds(field: FieldInfo) -> set[Any]:
    if get_origin(field.annotation) in (Union, UnionType):
        return set(get_args(field.annotation))
    return {field.annotation}


def _bounds(field: FieldInfo) -> dict[str, float | None]:
    """Return the field's bounds as inclusive ones; validation refuses an excluded end itself."""
    found: dict[str, float] = {
        name: getattr(item, name)
        for item in field.metadata
        for name in ("gt", "ge", "lt", "le")
        if getattr(item, name, None) is not None
    }
    beyond = 1 if int in _kinds(field) else 0
    low = found["gt"] + beyond if "gt" in found else found.get("ge")
    high = found["lt"] - beyond if "lt" in found else found.get("le")
    return {"low": low, "high": high}
