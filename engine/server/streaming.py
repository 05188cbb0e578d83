"""Answers as server-sent events: a chunk a token, then `[DONE]`."""

import json

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.server.answers import Answers
from engine.server.errors import ApiError, ClientGoneError
from engine.server.protocol import StreamOptions
from engine.server.replies import Reply, written
from engine.server.responses import ChatCompletion, Completion
from engine.server.worker import Piece

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends tokens as they come; a client that leaves frees what it had."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, reply: Reply, options: StreamOptions) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._answers = answers
        self._reply = reply
        self._options = options
        self._sent = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer."""
        async with self._answers.attended(receive):
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            try:
                last = await self._tokens(send)
            except ClientGoneError:
                return
            except ApiError as wrong:
                # The status was sent long ago: the failure has to be an event.
                last = [_event(json.dumps(wrong.content))]
            await send({"type": "http.response.body", "body": b"".join([*last, DONE])})

    async def _tokens(self, send: Send) -> list[bytes]:
        """Send the tokens, return what is left to send."""
        while pieces := await self._answers.next():
            chunks = [chunk for piece in pieces for chunk in self._chunks(piece)]
            events = b"".join(_event(written(chunk)) for chunk in chunks)
            await send({"type": "http.response.body", "body": events, "more_body": True})
        counted = self._options.include_usage
        return [_event(written(self._reply.counts(self._sent)))] if counted else []

    def _chunks(self, piece: Piece) -> list[Completion] | list[ChatCompletion]:
        """Return what is sent for one token, each chunk with the tokens so far if asked for."""
        chunks = self._reply.chunks(piece)
        self._sent += 1
        if self._options.include_usage and self._options.continuous_usage_stats:
            for chunk in chunks[:-1]:  # who speaks is said before the first token
                chunk.usage = self._reply.usage(self._sent - 1)
            chunks[-1].usage = self._reply.usage(self._sent)
        return chunks


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
