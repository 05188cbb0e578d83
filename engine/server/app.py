"""The routes: OpenAI's under `/v1`, and `/health` and `/metrics` for those who run the server."""

import asyncio
import hmac
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Receive, Scope, Send

from engine.server.answers import Answers, jobs_of
from engine.server.errors import ApiError, ClientGoneError, broken
from engine.server.metrics import CONTENT_TYPE, exposition
from engine.server.parsing import parse
from engine.server.protocol import ChatRequest, CompletionRequest
from engine.server.replies import ChatReply, CompletionReply, Heading, Reply, written
from engine.server.service import Bounds, ServedModel, Service
from engine.server.streaming import EventStream
from engine.server.tokens import Tokeniser
from engine.server.worker import Piece

LONG_TEXT = 16_384
"""Characters from which a text is tokenised beside the event loop, not on it."""
CLIENT_CLOSED = 499
"""The status nobody reads, for the log."""


def application(service: Service) -> Starlette:
    """Return the server's ASGI application; its lifespan runs the workers."""

    @asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        async with service.running():
            yield

    routes = Routes(service)
    guarded = Mount(
        "/v1",
        routes=[
            Route("/models", routes.models),
            Route("/models/{name:path}", routes.model),
            Route("/completions", routes.completions, methods=["POST"]),
            Route("/chat/completions", routes.chat, methods=["POST"]),
        ],
        middleware=[Middleware(KeyRequired, api_key=service.api_key)],
    )
    return Starlette(
        lifespan=lifespan,
        routes=[Route("/health", routes.health), Route("/metrics", routes.metrics), guarded],
        exception_handlers={
            ApiError: _api_error,
            HTTPException: _http_error,
            ClientGoneError: _gone,
            ClientDisconnect: _gone,
            Exception: _crash,
        },
    )


class KeyRequired:
    """Lets nobody pass without the API key, if there is one."""

    def __init__(self, app: ASGIApp, api_key: str) -> None:
        self._app = app
        self._wanted = f"Bearer {api_key}".encode() if api_key else b""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on, or refuse."""
        given = Headers(scope=scope).get("authorization", "").encode()
        if self._wanted and not hmac.compare_digest(given, self._wanted):
            raise ApiError(
                401,
                "this server wants its API key in the header 'Authorization: Bearer ...'",
                kind="authentication_error",
                code="invalid_api_key",
            )
        await self._app(scope, receive, send)


class Routes:
    """What is answered under each path."""

    def __init__(self, service: Service) -> None:
        self._service = service

    async def health(self, _: Request) -> Response:
        """Say whether requests are welcome: 200, or 503 once draining or broken."""
        return Response(status_code=200 if self._service.healthy else 503)

    async def metrics(self, _: Request) -> Response:
        """Return the metrics of all models."""
        models = self._service.models.values()
        text = exposition(model.worker.reading() for model in models)
        return PlainTextResponse(text, headers={"Content-Type": CONTENT_TYPE})

    async def models(self, _: Request) -> Response:
        """List the models."""
        models = [_card(model) for model in self._service.models.values()]
        if self._service.gateway:
            models.append(self._service.gateway.card())
        return JSONResponse({"object": "list", "data": models})

    async def model(self, request: Request) -> Response:
        """Describe one model."""
        name, gateway = request.path_params["name"], self._service.gateway
        if gateway and name == gateway.name:
            return JSONResponse(gateway.card())
        return JSONResponse(_card(self._service.model(name)))

    async def completions(self, request: Request) -> Response:
        """Complete prompts."""
        arrival_s = self._service.clock.now()
        self._service.check_open()
        asked = parse(CompletionRequest, await _body(request, self._service.bounds))
        model = await self._service.answering(asked)
        special = asked.add_special_tokens
        prompts = [await _tokens(model.tokeniser, part, special) for part in asked.prompts]
        reply = CompletionReply(_heading(asked, model, prompts, "cmpl"))
        return await self._answer(request, asked, model, prompts, reply, arrival_s)

    async def chat(self, request: Request) -> Response:
        """Go on with a conversation."""
        arrival_s = self._service.clock.now()
        self._service.check_open()
        asked = parse(ChatRequest, await _body(request, self._service.bounds))
        model = await self._service.answering(asked)
        prompts = [await _tokens(model.tokeniser, asked.prompt, asked.add_special_tokens)]
        reply = ChatReply(_heading(asked, model, prompts, "chatcmpl"))
        return await self._answer(request, asked, model, prompts, reply, arrival_s)

    async def _answer(
        self,
        request: Request,
        asked: CompletionRequest | ChatRequest,
        model: ServedModel,
        prompts: list[list[int]],
        reply: Reply,
        arrival_s: float,
    ) -> Response:
        service = self._service
        service.check_open()
        answers = Answers(service, model, jobs_of(service, model, asked, prompts, arrival_s))
        if asked.stream:
            return EventStream(answers, reply, asked.stream_options)
        pieces: list[Piece] = []
        async with answers.attended(request.receive):
            while come := await answers.next():
                pieces += come
        return Response(written(reply.whole(pieces)), media_type="application/json")


def _heading(
    asked: CompletionRequest | ChatRequest,
    model: ServedModel,
    prompts: list[list[int]],
    prefix: str,
) -> Heading:
    return Heading(
        id=f"{prefix}-{uuid.uuid4().hex}",
        model=model.name,
        tokeniser=model.tokeniser,
        prompts=prompts,
        token_ids=asked.return_token_ids,
        tokens_as_ids=asked.return_tokens_as_token_ids,
    )


def _card(model: ServedModel) -> dict[str, Any]:
    return {
        "id": model.name,
        "object": "model",
        "created": model.created,
        "owned_by": "moesim",
        "max_model_len": model.max_model_len,
        "tokenizer": model.tokeniser.name,
    }


async def _tokens(tokeniser: Tokeniser, prompt: str | list[int], special: bool) -> list[int]:
    if isinstance(prompt, list):
        return prompt
    if len(prompt) < LONG_TEXT:
        return tokeniser.encode(prompt, special)
    return await asyncio.to_thread(tokeniser.encode, prompt, special)


async def _body(request: Request, bounds: Bounds) -> bytes:
    """Return a request's body, reading no more of it than is allowed."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # Also what keeps a web page from using a server on its reader's own machine.
        raise ApiError(415, f"content type {kind or 'none'!r} is not 'application/json'")
    if int(request.headers.get("content-length", 0)) > bounds.body_bytes:
        raise _too_large(bounds)
    body = bytearray()
    try:
        async with asyncio.timeout(bounds.body_s):
            async for part in request.stream():
                body += part
                if len(body) > bounds.body_bytes:
                    raise _too_large(bounds)
    except TimeoutError:
        raise ApiError(408, f"the body did not arrive within {bounds.body_s:g} s") from None
    return bytes(body)


def _too_large(bounds: Bounds) -> ApiError:
    return ApiError(413, f"the body exceeds {bounds.body_bytes} bytes", code="request_too_large")


async def _api_error(_: Request, wrong: Exception) -> Response:
    if not isinstance(wrong, ApiError):
        raise wrong
    return JSONResponse(wrong.content, status_code=wrong.status, headers=wrong.headers)


async def _http_error(request: Request, wrong: Exception) -> Response:
    """Put the framework's own refusals (404, 405) into OpenAI's shape."""
    if not isinstance(wrong, HTTPException):
        raise wrong
    message = f"{request.method} {request.url.path}: {wrong.detail}"
    error = ApiError(wrong.status_code, message)
    return JSONResponse(error.content, status_code=wrong.status_code, headers=wrong.headers)


async def _gone(_: Request, __: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _crash(_: Request, __: Exception) -> Response:
    error = broken("the server has a bug; its log says where")
    return JSONResponse(error.content, status_code=error.status)
