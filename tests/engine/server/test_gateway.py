"""A gateway before two models: each prompt answered by the expert of its topic, and who says so."""

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx2
import pytest

from engine.gateway.file import save_gateway
from engine.gateway.gateway import Gateway
from engine.gateway.training import train
from engine.server import gateway as gateway_module
from engine.server.command import Setting, serve
from engine.server.gateway import GatewayModel, gateway_model
from engine.server.hosting import Hosting
from engine.server.service import Bounds, Service
from moesim.errors import EngineError

pytestmark = pytest.mark.anyio

SAIL, BAKE = "hoist the jib and mind the keel", "knead the dough and heat the oven"
ROUTER: dict[str, Any] = {"model": "router", "max_tokens": 3, "temperature": 0, "ignore_eos": True}


@pytest.fixture(scope="module")
def sorter() -> Gateway:
    """Return a gateway of two topics: 0 is sailing, 1 baking."""
    sailing = [f"hoist jib mind keel {word}" for word in ("mast", "tide", "hull", "buoy")]
    baking = [f"knead dough heat oven {word}" for word in ("flour", "yeast", "sugar")]
    return train([*sailing, *baking], 2)


@pytest.fixture
async def client(
    service: Service, sorter: Gateway, client: httpx2.AsyncClient
) -> AsyncIterator[httpx2.AsyncClient]:
    """Put a gateway before the server's two models."""
    service.gateway = GatewayModel(name="router", gateway=sorter, experts=("tiny", "twin"))
    return client


@pytest.mark.parametrize(("prompt", "expert"), [(SAIL, "tiny"), (BAKE, "twin"), ("?!", "tiny")])
async def test_the_expert_of_the_topic_answers(
    service: Service, client: httpx2.AsyncClient, prompt: str, expert: str
) -> None:
    """Its name is in the answer and in the record; its answer is what it says if asked itself."""
    answer = await client.post("/v1/completions", json={**ROUTER, "prompt": prompt})
    assert answer.json()["model"] == expert
    (record,) = service.kept or []
    assert (record.model, record.replica) == (expert, f"{expert}/0")
    direct = await client.post(
        "/v1/completions", json={**ROUTER, "model": expert, "prompt": prompt}
    )
    assert direct.json()["choices"] == answer.json()["choices"]


async def test_streams_name_the_expert(client: httpx2.AsyncClient) -> None:
    body = {**ROUTER, "prompt": BAKE, "stream": True}
    answer = await client.post("/v1/completions", json=body)
    chunks = [line for line in answer.text.splitlines() if '"id"' in line]
    assert len(chunks) == 3
    assert all('"model":"twin"' in chunk for chunk in chunks)


async def test_a_conversation_is_sorted_by_what_the_user_says(client: httpx2.AsyncClient) -> None:
    """Not by the system's words, which are in every conversation."""
    messages = [
        {"role": "system", "content": f"{SAIL}. {SAIL}."},
        {"role": "user", "content": BAKE},
        {"role": "assistant", "content": SAIL},
    ]
    answer = await client.post("/v1/chat/completions", json={**ROUTER, "messages": messages})
    assert answer.json()["model"] == "twin"


async def test_long_prompts_are_sorted_too(
    client: httpx2.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beside the event loop."""
    monkeypatch.setattr(gateway_module, "LONG_TEXT", 10)
    answer = await client.post("/v1/completions", json={**ROUTER, "prompt": BAKE})
    assert answer.json()["model"] == "twin"


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        ([SAIL, BAKE], "prompt: a gateway takes one a request; send several"),
        ([1, 2, 3], "prompt: a gateway sorts texts, not token ids"),
    ],
)
async def test_what_cannot_be_sorted(
    client: httpx2.AsyncClient, prompt: list[Any], expected: str
) -> None:
    answer = await client.post("/v1/completions", json={**ROUTER, "prompt": prompt})
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == expected
    assert answer.json()["error"]["param"] == "prompt"


async def test_it_is_listed_beside_the_models(client: httpx2.AsyncClient) -> None:
    """With its experts; the models are still there for those who ask them by name."""
    listed = (await client.get("/v1/models")).json()["data"]
    assert [card["id"] for card in listed] == ["tiny", "twin", "router"]
    card = (await client.get("/v1/models/router")).json()
    assert card == listed[2]
    assert card["experts"] == ["tiny", "twin"]
    answer = await client.post("/v1/completions", json={**ROUTER, "model": "ruter", "prompt": "a"})
    assert answer.status_code == 404
    assert "there is tiny, twin, router" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("experts_of", "expected"),
    [
        ("", "is not NAME=MODEL"),
        ("router", "is not NAME=MODEL"),
        ("router=tiny", "has 1 models, the gateway 2 clusters"),
        ("router=tiny,other", "'other' is not served; add a --model"),
        ("tiny=tiny,twin", "'tiny' is a model's name"),
    ],
)
def test_wrong_options(experts_of: str, expected: str, sorter: Gateway, tmp_path: Path) -> None:
    save_gateway(sorter, tmp_path / "g.npz")
    with pytest.raises(EngineError, match=expected):
        gateway_model(tmp_path / "g.npz", experts_of, ["tiny", "twin"])


def test_options_that_go_together(sorter: Gateway, tmp_path: Path) -> None:
    save_gateway(sorter, tmp_path / "g.npz")
    made = gateway_model(tmp_path / "g.npz", "router=twin,twin", ["tiny", "twin"])
    assert made is not None
    assert (made.name, made.experts) == ("router", ("twin", "twin"))
    assert gateway_model(None, "", ["tiny"]) is None
    with pytest.raises(EngineError, match="needs a --gateway"):
        gateway_model(None, "router=tiny", ["tiny"])


def test_wrong_options_are_found_before_anything_is_loaded(tmp_path: Path) -> None:
    """The checkpoint is not there either; the gateway is looked at first."""
    setting = Setting(
        models=[f"tiny={tmp_path / 'none'}"],
        hosting=Hosting(),
        bounds=Bounds(),
        host="127.0.0.1",
        port=0,
        api_key="",
        drain_s=1,
        records=None,
        gateway=tmp_path / "none.npz",
        experts_of="router=tiny",
    )
    with pytest.raises(EngineError, match=r"none\.npz: not readable"):
        serve(setting)
