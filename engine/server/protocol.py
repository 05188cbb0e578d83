"""What clients send and get: OpenAI's completions and chat completions, with vLLM's additions.

A field that we would ignore is accepted only at the value that asks for nothing (`NEUTRAL`), null
everywhere means that a field is not given, and an unknown field is an error.
"""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeVar

import pydantic_core
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    ValidationError,
    field_validator,
    model_validator,
)

from engine.server.errors import ApiError

MOST_LOGPROBS = 20
MOST_PROMPTS = 1024
GREEDY_BELOW = 1e-5
"""Temperatures below this are taken as 0: dividing by them would overflow."""

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


class Schema(BaseModel):
    """A part of a request: no unknown keys, no silent conversions."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        strict=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class StreamOptions(Schema):
    """How an answer is streamed."""

    include_usage: bool = False
    """Send a last chunk without choices that counts the tokens."""
    include_obfuscation: bool = False
    """Accepted, without effect."""


StopText = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[int, Field(ge=0)]
Length = Annotated[int, Field(ge=1, lt=2**31)]


class GenerationRequest(Schema):
    """What both kinds of requests may say."""

    model: str
    """The name of a model, as `/v1/models` lists them."""
    temperature: float = Field(1.0, ge=0, le=2)
    """0 always takes the likeliest token."""
    top_p: float = Field(1.0, gt=0, le=1)
    """Draw from the likeliest tokens that together reach this probability."""
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    """The same seed draws the same tokens, whatever else is served beside."""
    stop: tuple[StopText, ...] = Field((), max_length=16)
    """Texts that end the answer; they are not part of it."""
    stop_token_ids: list[TokenId] = Field([], max_length=64)
    """Tokens that end the answer."""
    include_stop_str_in_output: bool = False
    """Keep what ended the answer in its text."""
    ignore_eos: bool = False
    """Go on to the full length, whatever the model says."""
    add_special_tokens: bool = True
    """Put the tokens around a text that the tokeniser expects there."""
    stream: bool = False
    """Send tokens as they are generated, as server-sent events."""
    stream_options: StreamOptions = StreamOptions()
    """Only with `stream`."""
    return_token_ids: bool = False
    """Give the token ids of prompt and answer beside the text."""
    return_tokens_as_token_ids: bool = False
    """Write tokens in log-probabilities as `token_id:17`."""
    user: str = Field("", max_length=256)
    """Who asks; becomes the tenant in the records."""

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, str) else _as_tuple(value)

    @model_validator(mode="after")
    def _streams(self) -> Self:
        if "stream_options" in self.model_fields_set and not self.stream:
            raise ValueError("stream_options: only with stream true")
        return self

    @property
    def heat(self) -> float:
        """The temperature that the sampler is given."""
        return 0.0 if self.temperature < GREEDY_BELOW else self.temperature


def _as_tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _kind_of_prompt(value: Any) -> str:
    if isinstance(value, str):
        return "text"
    first = value[0] if isinstance(value, list) and value else 0
    if isinstance(first, str):
        return "texts"
    return "lists" if isinstance(first, list) else "tokens"


Prompt = Annotated[
    Annotated[str, Tag("text")]
    | Annotated[list[TokenId], Tag("tokens")]
    | Annotated[list[str], Field(max_length=MOST_PROMPTS), Tag("texts")]
    | Annotated[list[list[TokenId]], Field(max_length=MOST_PROMPTS), Tag("lists")],
    Discriminator(_kind_of_prompt),
]


class CompletionRequest(GenerationRequest):
    """The body of `/v1/completions`."""

    prompt: Prompt
    """A text, its token ids, or a list of either."""
    max_tokens: Length = 16
    """The most tokens to generate."""
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    """How many of the likeliest tokens to report at each position."""

    @property
    def prompts(self) -> list[str | list[int]]:
        """The prompts one by one."""
        prompt = self.prompt
        if isinstance(prompt, list) and prompt and not isinstance(prompt[0], int):
            return [part for part in prompt if not isinstance(part, int)]
        return [prompt]  # type: ignore[list-item]  # a list of lists or texts was told apart above


class TextPart(Schema):
    """A part of a message's content."""

    type: Literal["text"]
    """Only text is served."""
    text: str
    """The text."""


class Message(Schema):
    """One turn of a conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    """Who speaks."""
    content: str | list[TextPart] = ""
    """What is said."""
    name: str = ""
    """Accepted, without effect."""

    @model_validator(mode="before")
    @classmethod
    def _given(cls, value: Any) -> Any:
        # Clients send back assistants' messages with all the fields that they had, mostly empty.
        if not isinstance(value, dict):
            return value
        return {key: part for key, part in value.items() if part is not None and part != []}

    @property
    def text(self) -> str:
        """The content as one text."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class ChatRequest(GenerationRequest):
    """The body of `/v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    """The conversation so far."""
    max_completion_tokens: Length | None = None
    """The most tokens to generate; as many as there is room for if not given."""
    max_tokens: Length | None = None
    """The older name of `max_completion_tokens`."""
    logprobs: bool = False
    """Report the log-probability of each token."""
    top_logprobs: int = Field(0, ge=0, le=MOST_LOGPROBS)
    """How many of the likeliest tokens to report at each position; only with `logprobs`."""

    @model_validator(mode="after")
    def _together(self) -> Self:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: only with logprobs true")
        if self.max_tokens and self.max_completion_tokens not in (None, self.max_tokens):
            raise ValueError("max_tokens: differs from max_completion_tokens; give one of them")
        return self

    @property
    def prompt(self) -> str:
        """The conversation under the plain template: a line `role: text` a turn, ours to go on."""
        turns = [f"{message.role}: {message.text}\n" for message in self.messages]
        return "".join(turns) + "assistant:"


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


class Usage(BaseModel):
    """Tokens of a request."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a completion, position by position."""

    tokens: list[str]
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]]
    text_offset: list[int]


class CompletionChoice(BaseModel):
    """An answer to a prompt, or a part of it."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None
    token_ids: list[int] = []
    prompt_token_ids: list[int] = []


class Completion(BaseModel):
    """The answer of `/v1/completions`, whole or a chunk of it."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage | None = None


class TokenLogprob(BaseModel):
    """A token and its log-probability."""

    token: str
    logprob: float
    bytes: list[int]


class ChatLogprob(TokenLogprob):
    """The same, beside the likeliest tokens of its position."""

    top_logprobs: list[TokenLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a message, position by position."""

    content: list[ChatLogprob]


class Said(BaseModel):
    """An assistant's message, or what a chunk adds to it."""

    role: Literal["assistant"] = "assistant"
    content: str = ""


class ChatChoice(BaseModel):
    """An answer in a conversation, or a part of it."""

    index: int
    message: Said = Said()
    delta: Said = Said()
    logprobs: ChatLogprobs | None
    finish_reason: str | None
    stop_reason: int | str | None = None
    token_ids: list[int] = []


class ChatCompletion(BaseModel):
    """The answer of `/v1/chat/completions`, whole or a chunk of it."""

    id: str
    object: Literal["chat.completion", "chat.completion.chunk"]
    created: int
    model: str
    choices: list[ChatChoice]
    usage: Usage | None = None
    prompt_token_ids: list[int] = []
