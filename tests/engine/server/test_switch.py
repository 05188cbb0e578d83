"""A Switch Transformer behind HTTP: transformers' answers, whole and streamed, beside others."""

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx2
import pytest
import torch
from transformers import SwitchTransformersConfig, SwitchTransformersForConditionalGeneration

from engine.server.app import application
from engine.server.hosting import Hosting, service_of
from moesim.errors import EngineError

pytestmark = pytest.mark.anyio

OUTPUT = 10
PROMPTS = [[5, 9, 40, 3, 77], [61, 2], [8] * 30]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> Iterator[None]:
    """Keep tiny matrices on one core."""
    former = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(former)


@pytest.fixture(scope="module")
def oracle() -> Any:
    """Build a tiny Switch Transformer whose layers weigh enough for answers to differ."""
    torch.manual_seed(0)
    model = SwitchTransformersForConditionalGeneration(
        SwitchTransformersConfig(
            vocab_size=97, d_model=32, d_kv=6, d_ff=48, num_layers=4, num_decoder_layers=4,
            num_sparse_encoder_layers=2, num_sparse_decoder_layers=2, num_heads=4, num_experts=4,
            expert_capacity=3, decoder_start_token_id=0,
        )
    ).eval()  # fmt: skip
    for name, weight in model.named_parameters():
        if "block" in name and weight.dim() == 2:
            weight.data.mul_(2.5)
    head = model.lm_head.weight.data
    head.mul_(head.shape[1] ** 0.5 / head.norm(dim=1, keepdim=True))
    return model


@pytest.fixture(scope="module")
def checkpoint(oracle: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("served-switch") / "model"
    oracle.save_pretrained(folder)
    return folder


def greedy(oracle: Any, prompt: list[int]) -> list[int]:
    """Return what transformers answers to a prompt alone."""
    found = oracle.generate(
        torch.tensor([prompt]), max_new_tokens=OUTPUT, do_sample=False, eos_token_id=None
    )
    tokens: list[int] = found[0, 1:].tolist()
    return tokens


def body(prompt: list[int], **more: Any) -> dict[str, Any]:
    common = {"model": "switch", "temperature": 0, "max_tokens": OUTPUT, "ignore_eos": True}
    return {**common, "prompt": prompt, "return_token_ids": True, **more}


async def test_completions_are_those_of_transformers(oracle: Any, checkpoint: Path) -> None:
    """Several at once, whole and streamed, and nothing is left afterwards."""
    service = service_of({"switch": checkpoint}, Hosting(max_num_seqs=4, num_blocks=64))
    transport = httpx2.ASGITransport(app=application(service))
    async with (
        service.running(),
        httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        calls = [
            client.post("/v1/completions", json=body(prompt, stream=stream))
            for prompt in PROMPTS
            for stream in (False, True)
        ]
        answers = [answer.text for answer in await asyncio.gather(*calls)]
    expected = [greedy(oracle, prompt) for prompt in PROMPTS]
    assert len({tuple(answer) for answer in expected}) == len(PROMPTS)
    assert [json.loads(one)["choices"][0]["token_ids"] for one in answers[::2]] == expected
    assert [streamed(one) for one in answers[1::2]] == expected
    scheduler = service.models["switch"].worker.engine.scheduler
    assert scheduler.cache.free_blocks == 64


def streamed(text: str) -> list[int]:
    """Return the tokens of an event stream."""
    events = [event.removeprefix("data: ") for event in text.split("\n\n")]
    chunks = [json.loads(event) for event in events if event.startswith("{")]
    return [token for chunk in chunks for token in chunk["choices"][0]["token_ids"]]


def test_what_an_encoder_decoder_cannot_do(checkpoint: Path) -> None:
    """It reads prompts as a whole."""
    with pytest.raises(EngineError, match="prefix_caching: not for an encoder-decoder"):
        service_of({"switch": checkpoint}, Hosting(num_blocks=8, prefix_caching=True))
