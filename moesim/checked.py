"""What people write in files, checked against a pydantic model: the object, or one clear line."""

import difflib
from collections.abc import Iterable, Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from moesim.errors import MoesimError, ScenarioError

Checked = TypeVar("Checked", bound=BaseModel)


def checked(
    kind: type[Checked], content: Any, source: str, error: type[MoesimError] = ScenarioError
) -> Checked:
    """Build an object from plain data; `error` names source, field, value and remedy."""
    if not isinstance(content, Mapping):
        raise error(f"{source}: expected keys and values, found {_kind_of(content)}")
    try:
        read = kind.model_validate(content)
    except ValidationError as wrong:
        raise error(f"{source}: {explained(wrong, kind, content)}") from None
    place = _taken_for_numbers(content, read)
    if place is not None:
        field = ".".join(map(str, place))
        raise error(f"{source}: {field}: true and false are no numbers; give a number")
    return read


def _kind_of(content: Any) -> str:
    return "an empty file" if content is None else type(content).__name__


def _taken_for_numbers(written: Any, read: Any) -> tuple[Any, ...] | None:
    """Return where `true` or `false` is written and something else was read, None if nowhere.

    Python counts with them as with 1 and 0, and so does pydantic: `rate_per_s: yes` would be 1.
    """
    if isinstance(written, bool):
        return None if isinstance(read, bool) else ()
    for key, part in _parts(written):
        place = _taken_for_numbers(part, _part_of(read, key))
        if place is not None:
            return (key, *place)
    return None


def _parts(written: Any) -> Iterable[tuple[Any, Any]]:
    """Return the keys or places of plain data and what is there."""
    if isinstance(written, Mapping):
        return written.items()
    return enumerate(written) if isinstance(written, (list, tuple)) else ()


def _part_of(read: Any, key: Any) -> Any:
    """Return what was read for a part of plain data."""
    return getattr(read, key) if isinstance(read, BaseModel) else read[key]


def explained(wrong: ValidationError, kind: type[BaseModel], content: Any) -> str:
    """Return the first error as `field: what is wrong and what to do`."""
    errors = wrong.errors()
    first = next((e for e in errors if e["type"] == "extra_forbidden"), errors[0])
    location = _written_location(first["loc"], content)
    field = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        siblings = [str(e["loc"][-1]) for e in errors if e["type"] == "missing"]
        others = [name for name in siblings + _fields_of(kind) if name != location[-1]]
        near = difflib.get_close_matches(str(location[-1]), others, n=1)
        return f"{field}: unknown key{f'; did you mean {near[0]!r}?' if near else ''}"
    if first["type"] == "missing":
        return f"{field}: missing; add it"
    if first["type"] == "union_tag_invalid":
        context = first["ctx"]
        key = context["discriminator"].strip("'")
        return f"{field}.{key}: {context['tag']!r}: must be one of {context['expected_tags']}"
    if first["type"] == "union_tag_not_found":
        return f"{field}.kind: missing; say which"
    message = first["msg"].removeprefix("Value error, ")
    message = message[0].lower() + message[1:]
    if isinstance(first["input"], (str, int, float, bool)):
        message = f"{first['input']!r}: {message}"
    return f"{field}: {message}" if field else message


def _written_location(location: tuple[Any, ...], content: Any) -> list[Any]:
    """Drop the parts of a pydantic location that name a union member rather than a key."""
    written: list[Any] = []
    for index, part in enumerate(location):
        known = isinstance(content, Mapping) and part in content
        if known or index == len(location) - 1:
            written.append(part)
            content = content[part] if known else None
        elif isinstance(content, list) and isinstance(part, int):
            written.append(part)
            content = content[part]
    return written


def _fields_of(kind: type[BaseModel]) -> list[str]:
    """Return the names of all fields of a model and of the models within it."""
    schema = kind.model_json_schema()
    parts = [schema, *schema.get("$defs", {}).values()]
    return sorted({name for part in parts for name in part.get("properties", {})})
