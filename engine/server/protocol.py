"""What clients send: OpenAI's completions and chat completions, with vLLM's additions."""

from typing import Annotated, Any, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

MOST_LOGPROBS = 20
MOST_PROMPTS = 1024


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
    continuous_usage_stats: bool = False
    """Count in every chunk the tokens so far; only with `include_usage`."""
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
