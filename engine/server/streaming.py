"""Answers as server-sent events: a chunk a token, then `[DONE]`."""

import json

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from engine.server.answers import Answers
from engine.server.errors import ApiError, ClientGoneError
from engine.server.replies import Reply, written

DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """Sends tokens as they come; a client that leaves frees what it had."""

    media_type = "text/event-stream"

    def __init__(self, answers: Answers, reply: Reply, *, counted: bool) -> None:
        super().__init__(headers={"Cache-Control": "no-cache"})
        del self.headers["content-length"]
        self._answers = answers
        self._reply = reply
        self._counted = counted

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
        sent = 0
        while pieces := await self._answers.next():
            sent += len(pieces)
            chunks = [chunk for piece in pieces for chunk in self._reply.chunks(piece)]
            events = b"".join(_event(written(chunk)) for chunk in chunks)
            await send({"type": "http.response.body", "body": events, "more_body": True})
        return [_event(written(self._reply.counts(sent)))] if self._counted else []


def _event(data: str) -> bytes:
    return f"data: {data}\n\n".encode()
