"""Weights with NaN: who asks for what they touch is told so, and nobody else notices."""

import asyncio
from collections.abc import Callable

import httpx2
import pytest

from engine.server.app import application
from engine.server.service import Service

pytestmark = pytest.mark.anyio

BAD = 42
"""The token whose embedding is NaN."""

ASKED = {"model": "tiny", "max_tokens": 40, "ignore_eos": True, "return_token_ids": True}
COMPLETIONS = "/v1/completions"


@pytest.mark.parametrize("temperature", [0, 1])
async def test_a_request_that_meets_nan(loaded: Callable[..., Service], temperature: float) -> None:
    """It alone ends with an error; others, beside it and in its blocks after it, get answers."""
    service = loaded(num_blocks=8)
    runner = service.models["tiny"].worker.engine.runner
    runner.decoder.embed.data[BAD] = float("nan")
    transport = httpx2.ASGITransport(app=application(service))
    async with (
        service.running(),
        httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
    ):

        async def ask(*prompt: int) -> httpx2.Response:
            body = {**ASKED, "prompt": prompt, "temperature": temperature, "seed": 1}
            return await client.post(COMPLETIONS, json=body)

        first = await ask(1, 2, 3)
        bad, beside = await asyncio.gather(ask(*[BAD] * 20), ask(5, 6))
        assert bad.status_code == 500
        assert "logits are not finite numbers" in bad.json()["error"]["message"]
        assert beside.status_code == 200
        for _ in range(3):
            assert (await ask(1, 2, 3)).json()["choices"] == first.json()["choices"]
    details = [record.detail for record in service.kept or []]
    assert sum("not finite" in detail for detail in details) == 1
