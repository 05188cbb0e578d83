"""Who is let in, who leaves early, and how the server ends."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import anyio
import httpx2
import pytest
import torch
from starlette.applications import Starlette
from starlette.types import Message

from engine.server.app import application
from engine.server.service import Service

pytestmark = pytest.mark.anyio

LONG = {"model": "tiny", "prompt": [1, 2, 3], "max_tokens": 2000, "ignore_eos": True}
SHORT = {**LONG, "max_tokens": 3}
COMPLETIONS = "/v1/completions"

Starting = Callable[..., Service]


class Caller:
    """A client at the application's door, who may leave at any time."""

    def __init__(self, app: Starlette, body: dict[str, Any]) -> None:
        self._body = json.dumps(body).encode()
        self._left = asyncio.Event()
        self._asked = False
        self.sent: list[Message] = []
        self.call = asyncio.create_task(app(self._scope(), self._receive, self._send))

    def leave(self) -> None:
        """Hang up."""
        self._left.set()

    @property
    def status(self) -> int:
        """The status that was sent."""
        return int(self.sent[0]["status"])

    def _scope(self) -> dict[str, Any]:
        headers = [(b"content-type", b"application/json")]
        common = {"type": "http", "method": "POST", "path": COMPLETIONS, "headers": headers}
        return {**common, "query_string": b"", "root_path": "", "http_version": "1.1"}

    async def _receive(self) -> Message:
        if not self._asked:
            self._asked = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._left.wait()
        return {"type": "http.disconnect"}

    async def _send(self, message: Any) -> None:
        self.sent.append(message)


async def until(condition: Any) -> None:
    """Wait for something that happens beside."""
    with anyio.fail_after(10):
        while not condition():
            await anyio.sleep(0.002)


def connected(app: Starlette) -> httpx2.AsyncClient:
    """Return a client that calls an application directly."""
    return httpx2.AsyncClient(transport=httpx2.ASGITransport(app=app), base_url="http://server")


@asynccontextmanager
async def running(service: Service) -> AsyncIterator[tuple[Starlette, httpx2.AsyncClient]]:
    """Run a service that a test has set up."""
    app = application(service)
    async with service.running(), connected(app) as client:
        yield app, client


@pytest.mark.parametrize("stream", [False, True])
async def test_a_client_that_leaves_frees_its_blocks(
    app: Starlette, service: Service, stream: bool
) -> None:
    """In the middle of its answer; the others notice nothing."""
    engine = service.models["tiny"].worker.engine
    caller = Caller(app, {**LONG, "stream": stream})
    await until(lambda: caller.sent[5:] if stream else engine.scheduler.running)
    caller.leave()
    await caller.call
    await until(lambda: engine.scheduler.idle and service.kept)
    assert engine.scheduler.cache.free_blocks == engine.config.num_blocks
    (record,) = service.kept or []
    assert (record.outcome, record.detail) == ("unfinished", "cancelled")
    assert 0 < record.output_tokens < 2000
    async with connected(app) as client:
        assert (await client.post(COMPLETIONS, json=SHORT)).status_code == 200


async def test_a_client_that_leaves_while_it_waits(loaded: Starting) -> None:
    """One runs, one waits and leaves: it never gets a token."""
    service = loaded(max_num_seqs=1)
    async with running(service) as (app, _):
        engine = service.models["tiny"].worker.engine
        first = Caller(app, LONG)
        await until(lambda: engine.scheduler.running)
        second = Caller(app, LONG)
        await until(lambda: len(engine.scheduler.waiting))
        second.leave()
        await second.call
        await until(lambda: service.kept)
        (record,) = service.kept or []
        assert (record.output_tokens, record.detail) == (0, "cancelled")
        first.leave()
        await first.call


async def test_a_client_that_leaves_before_it_has_asked(app: Starlette) -> None:
    """Nothing is submitted, nothing breaks."""
    caller = Caller(app, LONG)
    caller._asked = True
    caller.leave()
    await caller.call
    assert caller.status == 499


async def test_leaving_with_shared_blocks(loaded: Starting) -> None:
    """Under prefix caching blocks of the same prompt stay for those who share them."""
    service = loaded(prefix_caching=True)
    async with running(service) as (app, client):
        prompt = list(range(200))
        asked = {**SHORT, "prompt": prompt, "temperature": 0, "return_token_ids": True}
        before = (await client.post(COMPLETIONS, json=asked)).json()["choices"]
        caller = Caller(app, {**LONG, "prompt": prompt, "max_tokens": 1500, "stream": True})
        await until(lambda: caller.sent[5:])
        caller.leave()
        await caller.call
        assert (await client.post(COMPLETIONS, json=asked)).json()["choices"] == before
        cached = [record.cached_tokens for record in service.kept or []]
        assert max(cached) == 192


async def test_a_full_queue_is_429(loaded: Starting) -> None:
    """One runs, one waits, the third is told to come back; later there is room again."""
    service = loaded(max_num_seqs=1, queue=1)
    async with running(service) as (app, client):
        callers = [Caller(app, LONG), Caller(app, LONG)]
        await until(lambda: len(service.open) == 2)
        answer = await client.post(COMPLETIONS, json=SHORT)
        assert answer.status_code == 429
        assert answer.headers["retry-after"] == "1"
        error = answer.json()["error"]
        assert error["message"].startswith("the queue of model 'tiny' is full: 2 requests")
        assert (await client.post(COMPLETIONS, json={**SHORT, "model": "twin"})).is_success
        callers[0].leave()
        await callers[0].call
        callers.append(Caller(app, SHORT))
        callers[1].leave()
        for caller in callers:
            await caller.call
        assert callers[2].status == 200
    assert [record.outcome for record in service.kept or []].count("refused") == 1


async def test_an_api_key(loaded: Starting) -> None:
    """Whoever has none gets nothing under /v1; health and metrics are for everyone."""
    async with running(loaded(api_key="secret")) as (_, client):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "secret"}):
            for path in ("/v1/models", "/v1/nothing"):
                answer = await client.get(path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        headers = {"authorization": "Bearer secret"}
        assert (await client.get("/v1/models", headers=headers)).is_success
        assert (await client.get("/health")).is_success
        assert (await client.get("/metrics")).is_success


async def test_draining_finishes_what_runs(loaded: Starting) -> None:
    """New requests get 503 and health turns, while the running answer comes to its end."""
    service = loaded()
    async with running(service) as (app, client):
        caller = Caller(app, {**LONG, "max_tokens": 200, "stream": True})
        await until(lambda: caller.sent[2:])
        service.draining = True
        answer = await client.post(COMPLETIONS, json=SHORT)
        assert answer.status_code == 503
        assert answer.json()["error"]["message"] == "the server is shutting down"
        assert (await client.get("/health")).status_code == 503
        await caller.call
        assert caller.sent[-1]["body"].endswith(b"data: [DONE]\n\n")
        assert not service.open
    (record,) = service.kept or []
    assert record.output_tokens == 200


async def test_when_there_is_no_more_time(loaded: Starting) -> None:
    """Streams end with an error after the tokens they had, others get 503; nothing is left."""
    service = loaded()
    async with running(service) as (app, _):
        streamed, whole = Caller(app, {**LONG, "stream": True}), Caller(app, LONG)
        await until(lambda: streamed.sent[2:])
        service.hang_up()
        await streamed.call
        await whole.call
        assert whole.status == 503
        error, done, _ = streamed.sent[-1]["body"].decode().split("\n\n")
        assert "the server is shutting down" in error
        assert done == "data: [DONE]"
    assert [record.detail for record in service.kept or []] == ["cancelled"] * 2


async def test_stopping_cancels_what_is_left(loaded: Starting) -> None:
    """A drain that takes too long ends with the engine empty all the same."""
    service = loaded()
    async with running(service) as (app, _):
        caller = Caller(app, {**LONG, "stream": True})
        await until(lambda: caller.sent[2:])
    caller.leave()
    await caller.call
    (record,) = service.kept or []
    assert record.detail == "cancelled"


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
async def test_a_broken_engine_leaves_nobody_waiting(
    loaded: Starting, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Open answers end with an error, later ones too; other models go on."""
    service = loaded()
    worker = service.models["tiny"].worker

    def explode(*_: Any) -> None:
        monkeypatch.undo()
        raise RuntimeError("the device is gone")

    async with running(service) as (app, client):
        streamed, whole = Caller(app, {**LONG, "stream": True}), Caller(app, LONG)
        await until(lambda: len(worker.engine.scheduler.running) == 2)
        monkeypatch.setattr(worker.engine, "step", explode)
        await streamed.call
        await whole.call
        assert whole.status == 500
        error, done, _ = streamed.sent[-1]["body"].decode().split("\n\n")
        assert "has failed" in json.loads(error.removeprefix("data: "))["error"]["message"]
        assert done == "data: [DONE]"
        assert (await client.post(COMPLETIONS, json=SHORT)).status_code == 500
        assert (await client.get("/health")).status_code == 503
        assert (await client.post(COMPLETIONS, json={**SHORT, "model": "twin"})).is_success
    # What the engine had when it broke is lost with it.
    for request_id in list(worker.engine.ledger.records):
        assert worker.engine.cancel(request_id)
    worker.engine.ledger.records.clear()


async def test_out_of_memory_ends_what_runs_and_nothing_else(
    loaded: Starting, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """One runs, streamed, one waits: the first ends with the sizes, the second is answered."""
    service = loaded(max_num_seqs=1)
    engine = service.models["tiny"].worker.engine

    def starve(*_: Any) -> None:
        monkeypatch.undo()
        torch.empty(1 << 55)

    async with running(service) as (app, client):
        streamed = Caller(app, {**LONG, "stream": True})
        await until(lambda: streamed.sent[2:])
        waiting = Caller(app, SHORT)
        await until(lambda: len(engine.scheduler.waiting))
        monkeypatch.setattr(engine.runner, "_sample", starve)
        await streamed.call
        await waiting.call
        assert waiting.status == 200
        error, done, _ = streamed.sent[-1]["body"].decode().split("\n\n")
        assert done == "data: [DONE]"
        content = json.loads(error.removeprefix("data: "))["error"]
        assert content["code"] == "out_of_memory"
        sizes = r"needs 1\.34e\+08 GiB more, cpu has [\d.]+ GiB free of [\d.]+ GiB; ask for less"
        assert re.match(f"out of device memory: an iteration {sizes}", content["message"])
        assert (await client.get("/health")).status_code == 200
        assert (await client.post(COMPLETIONS, json=SHORT)).status_code == 200
    first, *others = sorted(service.kept or [], key=lambda record: record.request_id)
    assert first.detail.startswith("out of device memory: ")
    assert [record.outcome for record in others] == ["completed"] * 2
    assert "warning: model 'tiny': out of device memory: " in capsys.readouterr().err
