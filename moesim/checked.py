"""What people write in files, checked against a pydantic model: the object, or one clear line."""

import difflib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from moesim.errors import MoesimError, ScenarioError

Checked = TypeVar("Checked", bound=BaseModel)

ABOUT_KEYS = ("missing", "extra_forbidden")
"""Errors whose place ends in a key, even where none is written."""


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
    location, keys = _place(kind, first, content)
    field = ".".join(str(part) for part in location)
    if first["type"] == "extra_forbidden":
        beside = [e["loc"] for e in errors if e["type"] == "missing"]
        missing = [str(loc[-1]) for loc in beside if loc[:-1] == first["loc"][:-1]]
        return f"{field}: unknown key{_instead(str(location[-1]), [*missing, *keys])}"
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


def _instead(key: str, keys: Sequence[str]) -> str:
    """Return what may be meant by an unknown key, or what there is where nothing is like it."""
    near = difflib.get_close_matches(key, keys, n=1)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; there are {', '.join(dict.fromkeys(keys))}" if keys else ""


def _place(kind: type[BaseModel], error: ErrorDetails, content: Any) -> tuple[list[Any], list[str]]:
    """Return where an error is, as it is written, and the keys of the object that it is in.

    Parts that name a member of a union are no keys: `deployment.tensor_parallel.scheduler` is
    written `deployment.scheduler`; `deployment.tensor_parallel.tensor_parallel` has one of each.
    """
    whole: Mapping[str, Any] = kind.model_json_schema()
    here, keys = whole, list(whole.get("properties", {}))
    written: list[Any] = []
    for index, part in enumerate(error["loc"]):
        members = _members(here, whole)
        tagged = [tags[name] for tags in map(_tags, members) if (name := str(part)) in tags]
        if tagged:
            here = {"$ref": tagged[0]}
            continue
        keys = [name for member in members for name in member.get("properties", {})]
        known = _has(content, part)
        if known or (error["type"] in ABOUT_KEYS and index == len(error["loc"]) - 1):
            written.append(part)
            content = content[part] if known else None
            here = next(filter(None, (_beneath(member, part) for member in members)), {})
    return written, keys


def _has(content: Any, part: Any) -> bool:
    """Say whether plain data has a key or a place."""
    if isinstance(content, (list, tuple)):
        return isinstance(part, int)
    return isinstance(content, Mapping) and part in content


def _members(schema: Mapping[str, Any], whole: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Return what a JSON schema may stand for: itself, or what it refers to, or a union's parts."""
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return _members(whole["$defs"][name], whole)
    if "anyOf" in schema:
        return [member for each in schema["anyOf"] for member in _members(each, whole)]
    return [schema]


def _tags(schema: Mapping[str, Any]) -> Mapping[str, str]:
    """Return the members of a discriminated union by tag, as references."""
    found: Mapping[str, str] = schema.get("discriminator", {}).get("mapping", {})
    return found


def _beneath(schema: Mapping[str, Any], part: Any) -> Mapping[str, Any]:
    """Return the JSON schema of an object's key or an array's place, an empty one if unknown."""
    if isinstance(part, int):
        places = schema.get("prefixItems", ())
        found = places[part] if part < len(places) else schema.get("items", {})
    else:
        found = schema.get("properties", {}).get(part, schema.get("additionalProperties", {}))
    return found if isinstance(found, Mapping) else {}
