"""A server in this process: tiny random checkpoints, routes called without a socket.

After every test the engine must be as it was: all blocks free, nobody inside, no seat taken.
"""

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import httpx2
import pytest
from starlette.applications import Starlette

from engine.model.checkpoint import random_decoder, save_decoder
from engine.server.app import application
from engine.server.hosting import Hosting, service_of
from engine.server.service import Bounds, Service
from moesim.facts.models import ModelSpec

VOCABULARY = 300
"""All bytes, an end at 256, and some beyond."""
LENGTH = 2048

Starting = Callable[..., Service]


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a checkpoint of random weights without a tokeniser."""
    spec = ModelSpec(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        vocab_size=VOCABULARY,
        max_position_embeddings=LENGTH,
        dtype="float32",
    )
    folder = tmp_path_factory.mktemp("tiny") / "checkpoint"
    save_decoder(random_decoder(spec, seed=0), folder)
    return folder


@pytest.fixture
def loaded(tiny: Path) -> Iterator[Starting]:
    """Load services, and see at the end that each is empty."""
    with ExitStack() as checks:

        def load(
            *, queue: int = 64, body_bytes: int = 10_000, api_key: str = "", **hosting: Any
        ) -> Service:
            setting = Hosting(**{"max_num_seqs": 8, "num_blocks": 600, "seed": 0, **hosting})
            bounds = Bounds(body_bytes=body_bytes, body_s=0.2, queue=queue)
            service = service_of(
                {"tiny": tiny, "twin": tiny},
                setting,
                bounds=bounds,
                api_key=api_key,
                keep_records=True,
            )
            checks.callback(assert_empty, service)
            return service

        yield load


def assert_empty(service: Service) -> None:
    """Nothing is left of any request but its record."""
    assert not service.open
    for model in service.models.values():
        engine = model.worker.engine
        assert model.accepted == 0
        assert engine.scheduler.idle
        assert engine.scheduler.cache.free_blocks == engine.config.num_blocks
        kept = len(engine.runner.blocks.named)
        assert engine.runner.free_blocks + kept == engine.config.num_blocks
        assert [engine.runner.tokens, engine.outputs, engine.ledger.records] == [{}, {}, {}]


@pytest.fixture
async def service(loaded: Starting) -> AsyncIterator[Service]:
    """Run a service of two models."""
    service = loaded()
    async with service.running():
        yield service


@pytest.fixture
def app(service: Service) -> Starlette:
    return application(service)


@pytest.fixture
async def client(app: Starlette) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=app)
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client
