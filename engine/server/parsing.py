"""From a body to a request, or to one line that says what is wrong with it.

A field that we would ignore is accepted only at the value that asks for nothing (`NEUTRAL`), null
everywhere means that a field is not given, and an unknown field is an error.
"""

import difflib
from collections.abc import Mapping
from typing import Any, TypeVar

import pydantic_core
from pydantic import ValidationError

from engine.server.errors import ApiError
from engine.server.protocol import GenerationRequest

NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "n": (1,),
    "best_of": (1,),
    "echo": (False,),
    "suffix": ("",),
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "repetition_penalty": (1,),
    "length_penalty": (1,),
    "logit_bias": ({},),
    "top_k": (0, -1),
    "min_p": (0,),
    "min_tokens": (0,),
    "use_beam_search": (False,),
    "skip_special_tokens": (True,),
    "spaces_between_special_tokens": (True,),
    "priority": (0,),
    "response_format": ({"type": "text"},),
    "service_tier": ("auto", "default"),
    "store": (False,),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "functions": ([],),
    "modalities": (["text"],),
    "add_generation_prompt": (True,),
    "continue_final_message": (False,),
    "chat_template_kwargs": ({},),
    "allowed_token_ids": (),
    "bad_words": ([],),
    "prompt_logprobs": (),
    "truncate_prompt_tokens": (),
    "prediction": (),
    "audio": (),
    "reasoning_effort": (),
    "structured_outputs": (),
    "chat_template": (),
}
"""Fields that are accepted only where they ask for nothing, beside null."""

LABELS = frozenset(
    {"metadata", "safety_identifier", "prompt_cache_key", "parallel_tool_calls", "verbosity"}
)
"""Fields that change nothing in an answer of plain text, whatever they say."""

Request = TypeVar("Request", bound=GenerationRequest)


def parse(kind: type[Request], body: bytes) -> Request:
    """Return the request in a body; ApiError 400 names what is wrong with it."""
    try:
        content = pydantic_core.from_json(body, allow_inf_nan=False)
    except ValueError as wrong:
        raise ApiError(400, f"the body is not JSON: {wrong}") from None
    if not isinstance(content, dict):
        raise ApiError(400, "the body is not a JSON object")
    given = {key: value for key, value in content.items() if value is not None}
    for key in given.keys() & NEUTRAL.keys():
        _check_neutral(key, given[key])
    try:
        return kind.model_validate(
            {key: given[key] for key in given if key not in NEUTRAL and key not in LABELS}
        )
    except ValidationError as wrong:
        raise _refusal(wrong, kind) from None


def _check_neutral(key: str, value: Any) -> None:
    accepted = NEUTRAL[key]
    if any(value == neutral and _flag(value) == _flag(neutral) for neutral in accepted):
        return
    only = " or ".join(pydantic_core.to_json(one).decode() for one in (*accepted, None))
    raise ApiError(
        400, f"{key}: {_short(value)} is not supported, only {only}; leave it out", param=key
    )


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _refusal(wrong: ValidationError, kind: type[GenerationRequest]) -> ApiError:
    """Put the first thing that is wrong with a request into one line."""
    error = wrong.errors(include_url=False)[0]
    place = ".".join(str(part) for part in error["loc"] if part not in _TAGS)
    param = place.split(".")[0] or None
    if error["type"] == "extra_forbidden":
        return ApiError(400, f"{place}: unknown key{_meant(place, kind)}", param=param)
    if error["type"] == "value_error":
        message = str(error["ctx"]["error"])
        return ApiError(400, message, param=message.split(":")[0])
    text = error["msg"][0].lower() + error["msg"][1:]
    shown = "" if error["type"] == "missing" else f", not {_short(error['input'])}"
    return ApiError(400, f"{place}: {text}{shown}", param=param)


_TAGS = frozenset({"text", "tokens", "texts", "lists", "str", "list[TextPart]"})
"""Names of alternatives, which are no part of a path in the body."""


def _meant(place: str, kind: type[GenerationRequest]) -> str:
    close = difflib.get_close_matches(place, [*kind.model_fields, *NEUTRAL], n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _short(value: Any) -> str:
    text = pydantic_core.to_json(value, inf_nan_mode="constants").decode()
    return text if len(text) <= 60 else f"{text[:57]}..."
