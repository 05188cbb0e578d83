"""What `serve` is told of scheduling: checked before anything is loaded, followed afterwards."""

from collections.abc import Callable
from threading import Event
from typing import Any

import anyio
import httpx2
import pytest

from engine.server.app import application
from engine.server.hosting import Hosting
from engine.server.scheduling import Scheduling, by_tenant, weight
from engine.server.service import Service
from moesim.errors import EngineError
from moesim.facts.models import ModelSpec
from moesim.serving.policies import POLICIES
from moesim.serving.queues import FairShare

Starting = Callable[..., Service]
ASKED = {"model": "tiny", "temperature": 0, "ignore_eos": True, "return_token_ids": True}


def hold(service: Service) -> Event:
    """Let the engine run one iteration; it goes on with the next once the event is set."""
    engine = service.models["tiny"].worker.engine
    everybody = Event()
    step = engine.step

    def held() -> bool:
        if engine.scheduler.running:
            everybody.wait(60)
        return step()

    engine.step = held  # type: ignore[method-assign]
    return everybody


async def answers(service: Service, bodies: list[dict[str, Any]]) -> list[list[int]]:
    """Return the tokens of requests sent in this order: the first runs when the others come."""
    found: list[list[int]] = [[] for _ in bodies]
    transport = httpx2.ASGITransport(app=application(service))
    everybody = hold(service)

    async def ask(place: int, client: httpx2.AsyncClient) -> None:
        answer = await client.post("/v1/completions", json={**ASKED, **bodies[place]})
        assert answer.status_code == 200, answer.text
        found[place] = answer.json()["choices"][0]["token_ids"]

    async with (
        service.running(),
        httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
        anyio.create_task_group() as tasks,
    ):
        for place in range(len(bodies)):
            tasks.start_soon(ask, place, client)
            while len(service.open) <= place:
                await anyio.sleep(0.001)
        everybody.set()
    return found


@pytest.mark.anyio
@pytest.mark.parametrize("policy", POLICIES)
async def test_policies_change_no_token(loaded: Starting, policy: str) -> None:
    """Nor does swapping, where blocks run out."""
    bodies = [{"prompt": list(range(1, length)), "max_tokens": 40} for length in (9, 30, 70)]
    expected = await answers(loaded(), bodies)
    swaps = POLICIES[policy].preempts
    scheduling = Scheduling(policy=policy, preemption="swap" if swaps else "recompute")
    service = loaded(num_blocks=8, scheduling=scheduling)
    assert await answers(service, bodies) == expected
    preempted = sum(record.preemptions for record in service.kept or [])
    assert bool(preempted) is swaps


@pytest.mark.anyio
async def test_the_urgent_go_first(loaded: Starting) -> None:
    """A request's user is its tenant; one runs, the next two are asked in the other order."""
    scheduling = Scheduling(order="priority", priorities={"urgent": -1})
    service = loaded(max_num_seqs=1, scheduling=scheduling)
    bodies = [
        {"prompt": [1], "max_tokens": length, "user": user}
        for user, length in (("first", 400), ("patient", 5), ("urgent", 5))
    ]
    await answers(service, bodies)
    records = sorted(service.kept or [], key=lambda record: record.scheduled_s)
    assert [record.tenant for record in records] == ["first", "urgent", "patient"]


def test_weights_reach_the_queue(loaded: Starting) -> None:
    """And swap space is no larger than what all sequences could use."""
    scheduling = Scheduling(order="fair", weights={"chat": 3.0}, preemption="swap", swap_gib=1e3)
    engine = loaded(scheduling=scheduling).models["tiny"].worker.engine
    assert isinstance(engine.scheduler.waiting, FairShare)
    assert engine.scheduler.waiting.weights == {"chat": 3.0}
    assert engine.scheduler.free_swap_blocks == 8 * 2048 // 16


@pytest.mark.anyio
async def test_what_a_policy_computes_at_once_bounds_an_answer(loaded: Starting) -> None:
    """A conversation goes on as long as may be computed again at once, and is not refused."""
    service = loaded(max_batched_tokens=64, scheduling=Scheduling(policy="max_utilisation"))
    assert service.models["tiny"].max_model_len == 65
    transport = httpx2.ASGITransport(app=application(service))
    async with (
        service.running(),
        httpx2.AsyncClient(transport=transport, base_url="http://server") as client,
    ):
        talk = {"messages": [{"role": "user", "content": "Hi"}]}
        answer = await client.post("/v1/chat/completions", json={**ASKED, **talk})
    assert answer.json()["usage"]["total_tokens"] == 65


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"policy": "fifo"}, "--policy: 'fifo' is none of chunked_prefill, "),
        ({"order": "random"}, "--order: 'random' is none of fcfs, priority, fair"),
        ({"preemption": "drop"}, "--preemption: 'drop' is none of recompute, swap"),
        ({"policy": "static", "preemption": "swap"}, "--preemption swap: policy static never"),
        ({"priorities": {"a": 1}}, "--priority: does nothing under --order fcfs; add --order pri"),
        ({"weights": {"a": 1.0}, "order": "priority"}, "--weight: does nothing under --order pri"),
    ],
)
def test_what_cannot_be(changes: dict[str, Any], message: str) -> None:
    """One line each that names the option."""
    with pytest.raises(EngineError) as refusal:
        Scheduling(**changes)
    assert str(refusal.value).startswith(message)


def test_swapping_and_sharing_do_not_go_together() -> None:
    """Said before anything is loaded."""
    with pytest.raises(EngineError, match="--preemption swap: does not go with --prefix-caching"):
        Hosting(scheduling=Scheduling(preemption="swap"), prefix_caching=True)


def test_too_little_room_to_swap() -> None:
    """Not one block."""
    spec = ModelSpec.from_config(
        {
            "model_type": "mixtral", "hidden_size": 8, "intermediate_size": 8,
            "num_hidden_layers": 1, "num_attention_heads": 1, "num_local_experts": 2,
            "num_experts_per_tok": 1, "vocab_size": 8, "max_position_embeddings": 64,
        }
    )  # fmt: skip
    with pytest.raises(EngineError, match="--swap-gib 0: no room for one KV block"):
        Scheduling(preemption="swap", swap_gib=0).swap_blocks(spec, 16, 100)
    with pytest.raises(EngineError, match="--swap-gib inf: give a number"):
        Scheduling(preemption="swap", swap_gib=float("inf")).swap_blocks(spec, 16, 100)


@pytest.mark.parametrize("text", ["chat", "chat=", "=1", "chat=x", "chat=0", "chat=nan"])
def test_a_malformed_weight(text: str) -> None:
    """Shares are numbers above zero."""
    with pytest.raises(EngineError, match=f"--weight {text}: is not TENANT=NUMBER"):
        by_tenant("--weight", [text], weight)
