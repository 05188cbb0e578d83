"""What is answered: completions, conversations, streams, logprobs, models, metrics."""

import json
import math
from typing import Any

import anyio
import httpx2
import pytest

from engine.server.service import Service

pytestmark = pytest.mark.anyio

PROMPT = [72, 101, 108, 108, 111]
LONG = {"ignore_eos": True, "return_token_ids": True}
GREEDY: dict[str, Any] = {
    "model": "tiny",
    "prompt": PROMPT,
    "temperature": 0,
    "max_tokens": 12,
    **LONG,
}
TALK: dict[str, Any] = {
    "model": "tiny",
    "messages": [{"role": "user", "content": "Hello"}],
    "temperature": 0,
    "max_tokens": 12,
    **LONG,
}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


async def ask(client: httpx2.AsyncClient, path: str = COMPLETIONS, **body: Any) -> Any:
    """Return the answer to a request that must succeed."""
    answer = await client.post(path, json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


async def stream(
    client: httpx2.AsyncClient, path: str = COMPLETIONS, **body: Any
) -> list[dict[str, Any]]:
    """Return the chunks of a streamed answer."""
    answer = await client.post(path, json={**body, "stream": True})
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    *events, done, rest = answer.text.split("\n\n")
    assert (done, rest) == ("data: [DONE]", "")
    return [json.loads(event.removeprefix("data: ")) for event in events]


async def test_a_completion_has_every_field(client: httpx2.AsyncClient) -> None:
    """Whose it is, why it ended, and what it cost."""
    answer = await ask(client, **GREEDY)
    (choice,) = answer["choices"]
    assert answer["object"] == "text_completion"
    assert answer["model"] == "tiny"
    assert answer["id"].startswith("cmpl-")
    assert answer["usage"] == {"prompt_tokens": 5, "completion_tokens": 12, "total_tokens": 17}
    assert choice["finish_reason"] == "length"
    assert choice["prompt_token_ids"] == PROMPT
    assert len(choice["token_ids"]) == 12


async def test_token_ids_are_sent_only_where_asked_for(client: httpx2.AsyncClient) -> None:
    """As vLLM has it."""
    answer = await ask(client, **{**GREEDY, "return_token_ids": False})
    assert not {"token_ids", "prompt_token_ids"} & answer["choices"][0].keys()
    talk = await ask(client, CHAT, **{**TALK, "return_token_ids": None})
    assert "prompt_token_ids" not in talk
    assert "token_ids" not in talk["choices"][0]


async def test_text_and_its_bytes_are_the_same_prompt(client: httpx2.AsyncClient) -> None:
    """The checkpoint has no tokeniser, so a token is a byte."""
    assert (await ask(client, **{**GREEDY, "prompt": "Hello"}))["choices"] == (
        await ask(client, **GREEDY)
    )["choices"]


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 1.2, "seed": 5}])
async def test_streaming_changes_no_token(
    client: httpx2.AsyncClient, options: dict[str, Any]
) -> None:
    """A chunk a token, their texts together the text, the reason in the last."""
    body = {**GREEDY, **options}
    whole = (await ask(client, **body))["choices"][0]
    chunks = [chunk["choices"][0] for chunk in await stream(client, **body)]
    assert [chunk["token_ids"] for chunk in chunks] == [[token] for token in whole["token_ids"]]
    assert "".join(chunk["text"] for chunk in chunks) == whole["text"]
    assert [chunk["finish_reason"] for chunk in chunks] == [None] * 11 + ["length"]
    assert ["prompt_token_ids" in chunk for chunk in chunks] == [True] + [False] * 11


async def test_streamed_conversation(client: httpx2.AsyncClient) -> None:
    """First who speaks, then a chunk a token."""
    whole = await ask(client, CHAT, **TALK)
    first, *chunks = await stream(client, CHAT, **TALK)
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert first["prompt_token_ids"] == whole["prompt_token_ids"]
    deltas = [chunk["choices"][0] for chunk in chunks]
    text = "".join(delta["delta"]["content"] for delta in deltas)
    (choice,) = whole["choices"]
    assert choice["message"] == {"role": "assistant", "content": text}
    assert [token for delta in deltas for token in delta["token_ids"]] == choice["token_ids"]
    assert {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}


async def test_the_template_is_plain(client: httpx2.AsyncClient) -> None:
    """A line a turn; parts of text are joined, empty fields that clients send back ignored."""
    parts = [{"type": "text", "text": "Hel"}, {"type": "text", "text": "lo"}]
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "Yes?", "refusal": None, "tool_calls": []},
        {"role": "user", "content": parts, "name": "Ada"},
    ]
    answer = await ask(client, CHAT, **{**TALK, "messages": messages})
    text = bytes(answer["prompt_token_ids"]).decode()
    assert text == "system: Be brief.\nassistant: Yes?\nuser: Hello\nassistant:"


async def test_usage_is_counted_in_every_chunk(client: httpx2.AsyncClient) -> None:
    """As vLLM has it: one more token a chunk, none where it only says who speaks."""
    options = {"stream_options": {"include_usage": True, "continuous_usage_stats": True}}
    for path, body, first in ((COMPLETIONS, GREEDY, 1), (CHAT, TALK, 0)):
        *chunks, last = await stream(client, path, **body, **options)
        counts = [chunk["usage"]["completion_tokens"] for chunk in chunks]
        assert counts == list(range(first, 13))
        assert chunks[-1]["usage"] == last["usage"]
        assert last["choices"] == []


async def test_usage_is_streamed_where_asked_for(client: httpx2.AsyncClient) -> None:
    """In one chunk without choices, after the tokens."""
    options = {"stream_options": {"include_usage": True}}
    for path, body in ((COMPLETIONS, GREEDY), (CHAT, TALK)):
        *chunks, last = await stream(client, path, **body, **options)
        assert last["choices"] == []
        assert last["usage"]["completion_tokens"] == 12
        assert not any("usage" in chunk for chunk in chunks)
        assert len({chunk["id"] for chunk in [*chunks, last]}) == 1


@pytest.mark.parametrize("prompts", [["Hello", "Hi there"], [PROMPT, [72, 105]]])
async def test_several_prompts(client: httpx2.AsyncClient, prompts: list[Any]) -> None:
    """Each has its choice, streamed or not, as if it were alone."""
    alone = [
        (await ask(client, **{**GREEDY, "prompt": prompt}))["choices"][0]["token_ids"]
        for prompt in prompts
    ]
    answer = await ask(client, **{**GREEDY, "prompt": prompts})
    assert [choice["token_ids"] for choice in answer["choices"]] == alone
    streamed: list[list[int]] = [[], []]
    for chunk in await stream(client, **{**GREEDY, "prompt": prompts}):
        streamed[chunk["choices"][0]["index"]] += chunk["choices"][0]["token_ids"]
    assert streamed == alone


async def test_logprobs_of_a_completion(client: httpx2.AsyncClient) -> None:
    """Greedy takes the likeliest; probabilities of all tokens make one."""
    body = {**GREEDY, "logprobs": 3, "return_tokens_as_token_ids": True}
    choice = (await ask(client, **body))["choices"][0]
    logprobs = choice["logprobs"]
    assert logprobs["tokens"] == [f"token_id:{token}" for token in choice["token_ids"]]
    for token, own, top in zip(
        logprobs["tokens"], logprobs["token_logprobs"], logprobs["top_logprobs"], strict=True
    ):
        assert next(iter(top)) == token
        assert own == top[token] == max(top.values())
        assert len(top) == 3
        assert sum(map(math.exp, top.values())) < 1
    chunks = await stream(client, **body)
    flat = [chunk["choices"][0]["logprobs"]["text_offset"] for chunk in chunks]
    assert [offset for offsets in flat for offset in offsets] == logprobs["text_offset"]


async def test_logprobs_of_a_conversation(client: httpx2.AsyncClient) -> None:
    """With the token's true bytes, of which its text may be half a character."""
    body = {**TALK, "logprobs": True, "top_logprobs": 2}
    choice = (await ask(client, CHAT, **body))["choices"][0]
    content = choice["logprobs"]["content"]
    for token, entry in zip(choice["token_ids"], content, strict=True):
        assert entry["bytes"] == ([token] if token < 256 else list("\ufffd".encode()))
        assert entry["top_logprobs"][0]["logprob"] == entry["logprob"]
        assert len(entry["top_logprobs"]) == 2


async def test_a_seed_repeats_in_any_company(client: httpx2.AsyncClient) -> None:
    """The draws of a request with a seed do not depend on who is served beside it."""
    body = {**GREEDY, "temperature": 1, "top_p": 0.9, "seed": 3}
    alone = (await ask(client, **body))["choices"][0]["token_ids"]
    answers: list[list[int]] = []

    async def beside(changes: dict[str, Any]) -> None:
        answer = await ask(client, **{**body, **changes})
        answers.append(answer["choices"][0]["token_ids"])

    async with anyio.create_task_group() as group:
        for changes in ({"seed": 4}, {"temperature": 0.3}, {"temperature": 0}, {}):
            group.start_soon(beside, changes)
    assert answers.count(alone) == 1
    assert len({tuple(answer) for answer in answers}) == 4


async def test_a_stop_text_ends_the_answer(client: httpx2.AsyncClient) -> None:
    """It is cut off, or kept if asked for; all tokens are counted."""
    whole = (await ask(client, **GREEDY))["choices"][0]
    stop = whole["text"][1:3]
    answer = await ask(client, **GREEDY, stop=stop)
    choice = answer["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole["text"][:1], "stop")
    assert choice["stop_reason"] == stop
    count = answer["usage"]["completion_tokens"]
    assert choice["token_ids"] == whole["token_ids"][:count]
    kept = await ask(client, **GREEDY, stop=[stop], include_stop_str_in_output=True)
    assert kept["choices"][0]["text"] == whole["text"][:3]


async def test_a_stop_token_ends_the_answer(client: httpx2.AsyncClient) -> None:
    """It is among the token ids, not in the text."""
    whole = (await ask(client, **GREEDY))["choices"][0]
    token = whole["token_ids"][4]
    first = whole["token_ids"].index(token)
    choice = (await ask(client, **GREEDY, stop_token_ids=[token]))["choices"][0]
    assert choice["token_ids"] == whole["token_ids"][: first + 1]
    assert (choice["finish_reason"], choice["stop_reason"]) == ("stop", token)


async def test_the_end_token_ends_unless_ignored(
    client: httpx2.AsyncClient, service: Service
) -> None:
    """With what the model generates fourth taken for its end."""
    whole = (await ask(client, **GREEDY))["choices"][0]["token_ids"]
    service.models["tiny"].tokeniser.eos = frozenset({whole[3]})
    ended = (await ask(client, **{**GREEDY, "ignore_eos": False}))["choices"][0]
    assert ended["token_ids"] == whole[: whole.index(whole[3]) + 1]
    assert (ended["finish_reason"], ended["stop_reason"]) == ("stop", None)
    assert (await ask(client, **GREEDY))["choices"][0]["token_ids"] == whole


async def test_default_lengths(client: httpx2.AsyncClient) -> None:
    """16 tokens complete a prompt; a conversation goes on while there is room."""
    short = {key: GREEDY[key] for key in ("model", "prompt", "temperature", "ignore_eos")}
    assert (await ask(client, **short))["usage"]["completion_tokens"] == 16
    talk = {key: TALK[key] for key in ("model", "temperature", "ignore_eos")}
    long = "x" * (2048 - 30)
    answer = await ask(client, CHAT, **talk, messages=[{"role": "user", "content": long}])
    assert answer["usage"]["total_tokens"] == 2048


async def test_fields_without_effect_are_accepted_where_neutral(
    client: httpx2.AsyncClient,
) -> None:
    """What ordinary clients send along."""
    extra: dict[str, Any] = {
        "n": 1,
        "presence_penalty": 0.0,
        "logit_bias": None,
        "top_k": -1,
        "echo": False,
    }
    labels: dict[str, Any] = {"metadata": {"a": "b"}, "store": False, "service_tier": "auto"}
    await ask(client, **GREEDY, **extra, user="ada")
    tools: dict[str, Any] = {
        "tools": [],
        "parallel_tool_calls": True,
        "response_format": {"type": "text"},
    }
    await ask(client, CHAT, **TALK, **labels, **tools)


async def test_models_are_listed(client: httpx2.AsyncClient) -> None:
    """With their tokeniser and how long a text may be."""
    listed = (await client.get("/v1/models")).json()
    assert listed["object"] == "list"
    assert [card["id"] for card in listed["data"]] == ["tiny", "twin"]
    card = (await client.get("/v1/models/tiny")).json()
    assert card == listed["data"][0]
    assert (card["tokenizer"], card["max_model_len"]) == ("bytes", 2048)


async def test_metrics_count_what_was_served(client: httpx2.AsyncClient, service: Service) -> None:
    """Under vLLM's names, and as the records have it."""
    await ask(client, **GREEDY)
    await ask(client, **GREEDY, stop_token_ids=list(range(64)))
    lines = (await client.get("/metrics")).text.splitlines()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    records = service.kept or []
    tokens = sum(record.output_tokens for record in records)
    label = '{model_name="tiny"}'
    assert values[f"vllm:prompt_tokens_total{label}"] == "10"
    assert values[f"vllm:generation_tokens_total{label}"] == str(tokens)
    assert values[f"vllm:num_requests_running{label}"] == "0"
    assert values[f"vllm:kv_cache_usage_perc{label}"] == "0.0"
    ended = 'vllm:request_success_total{model_name="tiny",finished_reason="%s"}'
    assert values[ended % "length"] == "1"
    first_s = sum(record.first_token_s - record.arrival_s for record in records)
    found = float(values[f"vllm:time_to_first_token_seconds_sum{label}"])
    assert found == pytest.approx(first_s)
    assert values[f"vllm:inter_token_latency_seconds_count{label}"] == str(tokens - 2)


async def test_health(client: httpx2.AsyncClient) -> None:
    """Nothing but a status."""
    answer = await client.get("/health")
    assert (answer.status_code, answer.text) == (200, "")


async def test_records_tell_who_asked(client: httpx2.AsyncClient, service: Service) -> None:
    """The field `user` is the tenant."""
    await ask(client, **GREEDY, user="ada")
    (record,) = service.kept or []
    assert (record.tenant, record.model, record.outcome) == ("ada", "tiny", "completed")
    assert record.arrival_s <= record.scheduled_s <= record.first_token_s <= record.finish_s
