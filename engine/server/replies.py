"""Generated tokens in OpenAI's words, whole or chunk by chunk.

Only fields that were set are sent: a chunk has `usage` only where it was asked for.
"""

import time
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from pydantic import BaseModel

from engine.serve.sampling import Logprob
from engine.server.responses import (
    ChatChoice,
    ChatCompletion,
    ChatLogprob,
    ChatLogprobs,
    Completion,
    CompletionChoice,
    CompletionLogprobs,
    Said,
    TokenLogprob,
    Usage,
)
from engine.server.tokens import Tokeniser
from engine.server.worker import Piece

LOWEST = -9999.0
"""What stands for a log-probability of minus infinity, which JSON cannot say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Heading:
    """What all chunks of an answer have in common, and how tokens are written in it."""

    id: str
    model: str
    tokeniser: Tokeniser
    prompts: list[list[int]]
    created: int = field(default_factory=lambda: int(time.time()))
    token_ids: bool = False
    tokens_as_ids: bool = False

    def common(self) -> dict[str, Any]:
        """Return the fields that every chunk begins with."""
        return {"id": self.id, "created": self.created, "model": self.model}

    def piece(self, token: int) -> str:
        """Write one token by itself."""
        return f"token_id:{token}" if self.tokens_as_ids else self.tokeniser.piece(token)

    def usage(self, completion_tokens: int) -> Usage:
        """Count the tokens of the whole request."""
        prompt_tokens = sum(map(len, self.prompts))
        return Usage(
            prompt_tokens=prompt_tokens,
            completion_tokens=completion_tokens,
            total_tokens=prompt_tokens + completion_tokens,
        )


def written(answer: BaseModel) -> str:
    """Return an answer as JSON, the fields that were set."""
    return answer.model_dump_json(exclude_unset=True)


class Reply(Protocol):
    """A kind of answer: how tokens become what the client reads."""

    def whole(self, pieces: Row[Piece]) -> BaseModel:
        """Return the answer to a request that does not stream."""

    def chunks(self, piece: Piece) -> list[Completion] | list[ChatCompletion]:
        """Return what is sent for one token."""

    def usage(self, completion_tokens: int) -> Usage:
        """Count the tokens of the whole request."""

    def counts(self, completion_tokens: int) -> BaseModel:
        """Return the last chunk, without choices, that counts the tokens."""


class CompletionReply:
    """The words of `/v1/completions`."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._lengths: dict[int, int] = {}

    def whole(self, pieces: Row[Piece]) -> Completion:
        """Return the answers to all prompts, in the prompts' order."""
        return self._answer(
            [self._choice(own) for own in _by_index(pieces)],
            usage=self._heading.usage(len(pieces)),
        )

    def chunks(self, piece: Piece) -> list[Completion]:
        """Return one token as a chunk."""
        return [self._answer([self._choice([piece])])]

    def usage(self, completion_tokens: int) -> Usage:
        """Count the tokens of the whole request."""
        return self._heading.usage(completion_tokens)

    def counts(self, completion_tokens: int) -> Completion:
        """Return the chunk that counts."""
        return self._answer([], usage=self._heading.usage(completion_tokens))

    def _answer(self, choices: list[CompletionChoice], **more: Any) -> Completion:
        common = self._heading.common()
        return Completion(object="text_completion", choices=choices, **common, **more)

    def _choice(self, pieces: Row[Piece]) -> CompletionChoice:
        index, last = pieces[0].index, pieces[-1].written
        choice = CompletionChoice(
            index=index,
            text="".join(piece.written.text for piece in pieces),
            logprobs=self._logprobs(pieces),
            finish_reason=last.finish,
            stop_reason=last.reason,
        )
        if self._heading.token_ids:
            choice.token_ids = [piece.token for piece in pieces]
            if index not in self._lengths:
                choice.prompt_token_ids = self._heading.prompts[index]
        self._lengths[index] = self._lengths.get(index, 0) + len(choice.text)
        return choice

    def _logprobs(self, pieces: Row[Piece]) -> CompletionLogprobs | None:
        found = [(piece, piece.logprob) for piece in pieces if piece.logprob]
        if not found:
            return None
        offset, offsets = self._lengths.get(pieces[0].index, 0), []
        for piece in pieces:
            offsets.append(offset)
            offset += len(piece.written.text)
        return CompletionLogprobs(
            tokens=[self._heading.piece(piece.token) for piece, _ in found],
            token_logprobs=[_finite(logprob.chosen) for _, logprob in found],
            top_logprobs=[self._table(piece.token, logprob) for piece, logprob in found],
            text_offset=offsets,
        )

    def _table(self, token: int, logprob: Logprob) -> dict[str, float]:
        """Return the likeliest tokens and the chosen one; of two spelled alike the likelier."""
        table: dict[str, float] = {}
        for other, value in (*logprob.top, (token, logprob.chosen)):
            table.setdefault(self._heading.piece(other), _finite(value))
        return table


class ChatReply:
    """The words of `/v1/chat/completions`."""

    def __init__(self, heading: Heading) -> None:
        self._heading = heading
        self._begun = False

    def whole(self, pieces: Row[Piece]) -> ChatCompletion:
        """Return the assistant's message."""
        heading, last = self._heading, pieces[-1].written
        text = "".join(piece.written.text for piece in pieces)
        choice = ChatChoice(
            index=0,
            message=Said(role="assistant", content=text),
            logprobs=self._logprobs(pieces),
            finish_reason=last.finish,
            stop_reason=last.reason,
        )
        answer = self._answer("chat.completion", [choice], usage=heading.usage(len(pieces)))
        if heading.token_ids:
            choice.token_ids = [piece.token for piece in pieces]
            answer.prompt_token_ids = heading.prompts[0]
        return answer

    def chunks(self, piece: Piece) -> list[ChatCompletion]:
        """Return one token as a chunk; before the first, one that says who speaks."""
        written = piece.written
        choice = ChatChoice(
            index=0,
            delta=Said(content=written.text),
            logprobs=self._logprobs([piece]),
            finish_reason=written.finish,
        )
        if written.finish:
            choice.stop_reason = written.reason
        if self._heading.token_ids:
            choice.token_ids = [piece.token]
        chunk = self._answer("chat.completion.chunk", [choice])
        if self._begun:
            return [chunk]
        self._begun = True
        return [self._opening(), chunk]

    def usage(self, completion_tokens: int) -> Usage:
        """Count the tokens of the whole request."""
        return self._heading.usage(completion_tokens)

    def counts(self, completion_tokens: int) -> ChatCompletion:
        """Return the chunk that counts."""
        usage = self._heading.usage(completion_tokens)
        return self._answer("chat.completion.chunk", [], usage=usage)

    def _opening(self) -> ChatCompletion:
        said = Said(role="assistant", content="")
        choice = ChatChoice(index=0, delta=said, logprobs=None, finish_reason=None)
        chunk = self._answer("chat.completion.chunk", [choice])
        if self._heading.token_ids:
            chunk.prompt_token_ids = self._heading.prompts[0]
        return chunk

    def _answer(
        self,
        kind: Literal["chat.completion", "chat.completion.chunk"],
        choices: list[ChatChoice],
        **more: Any,
    ) -> ChatCompletion:
        return ChatCompletion(object=kind, choices=choices, **self._heading.common(), **more)

    def _logprobs(self, pieces: Row[Piece]) -> ChatLogprobs | None:
        found = [(piece.token, piece.logprob) for piece in pieces if piece.logprob]
        if not found:
            return None
        return ChatLogprobs(
            content=[
                ChatLogprob(
                    **self._entry(token, logprob.chosen),
                    top_logprobs=[TokenLogprob(**self._entry(*other)) for other in logprob.top],
                )
                for token, logprob in found
            ]
        )

    def _entry(self, token: int, value: float) -> dict[str, Any]:
        raw = self._heading.tokeniser.raw(token)
        return {"token": self._heading.piece(token), "logprob": _finite(value), "bytes": list(raw)}


def _finite(value: float) -> float:
    return max(value, LOWEST)


def _by_index(pieces: Row[Piece]) -> list[list[Piece]]:
    """Return the tokens of each prompt's answer, in the prompts' order."""
    answers: dict[int, list[Piece]] = {}
    for piece in pieces:
        answers.setdefault(piece.index, []).append(piece)
    return [answers[index] for index in sorted(answers)]
