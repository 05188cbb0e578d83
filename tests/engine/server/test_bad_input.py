"""What a client may get wrong: a clear error each, and the server goes on."""

from typing import Any

import anyio
import httpx2
import pytest

pytestmark = pytest.mark.anyio

GOOD = {"model": "tiny", "prompt": [1, 2, 3], "temperature": 0, "max_tokens": 2}
TALK = {"model": "tiny", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
JSON = {"content-type": "application/json"}
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"


async def refused(
    client: httpx2.AsyncClient, path: str, status: int, content: Any = None, **more: Any
) -> dict[str, Any]:
    """Return the error of a request that must fail; the next one succeeds."""
    if content is not None:
        more = {"content": content, "headers": JSON} | more
    answer = await client.post(path, **more)
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (await client.post(COMPLETIONS, json=GOOD)).status_code == 200
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model": "huge"}, "model: 'huge' is not served here; there is tiny, twin"),
        ({"model": None}, "model: field required"),
        ({"prompt": None}, "prompt: field required"),
        ({"prompt": ""}, "prompt: empty prompt"),
        ({"prompt": []}, "prompt: empty prompt"),
        ({"prompt": [1, "a"]}, 'prompt.1: input should be a valid integer, not "a"'),
        ({"prompt": [[1], 2]}, "prompt.1: input should be a valid list, not 2"),
        ({"prompt": {"text": "a"}}, "prompt: input should be a valid list"),
        ({"prompt": [-1]}, "prompt.0: input should be greater than or equal to 0, not -1"),
        ({"prompt": [300]}, "prompt: a prompt token is outside the vocabulary of 300"),
        ({"prompt": [1] * 2047}, "prompt: prompt 2047 + output 2 tokens exceed the model's max"),
        ({"prompt": ["a"] * 80}, "prompt: 80 prompts at once, at most 72"),
        ({"prompt": ["a"] * 1025}, "prompt: list should have at most 1024 items"),
        ({"max_tokens": 0}, "max_tokens: input should be greater than or equal to 1, not 0"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "12"}, 'max_tokens: input should be a valid integer, not "12"'),
        ({"max_tokens": 1.5}, "max_tokens: input should be a valid integer, not 1.5"),
        ({"temperature": -1}, "temperature: input should be greater than or equal to 0, not -1"),
        ({"temperature": "hot"}, "temperature: input should be a valid number"),
        ({"top_p": 0}, "top_p: input should be greater than 0, not 0"),
        ({"seed": 2**63}, "seed"),
        ({"stop": ""}, "stop.0: string should have at least 1 character"),
        ({"stop": ["a"] * 17}, "stop: tuple should have at most 16 items"),
        ({"logprobs": 21}, "logprobs: input should be less than or equal to 20, not 21"),
        ({"logprobs": True}, "logprobs: input should be a valid integer, not true"),
        ({"n": 2}, "n: 2 is not supported, only 1 or null; leave it out"),
        ({"n": True}, "n: true is not supported"),
        ({"echo": True}, "echo: true is not supported, only false or null"),
        ({"frequency_penalty": 0.5}, "frequency_penalty: 0.5 is not supported, only 0 or null"),
        ({"prompt_logprobs": 1}, "prompt_logprobs: 1 is not supported, only null"),
        ({"stream_options": {"include_usage": True}}, "stream_options: only with stream true"),
        ({"stream": "yes"}, 'stream: input should be a valid boolean, not "yes"'),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x: unknown key"),
        ({"temprature": 1}, "temprature: unknown key; did you mean 'temperature'?"),
        ({"messages": []}, "messages: unknown key"),
    ],
)
async def test_bad_completions(
    client: httpx2.AsyncClient, change: dict[str, Any], message: str
) -> None:
    """The message names field and value."""
    status = 404 if change.get("model") else 400
    error = await refused(client, COMPLETIONS, status, json={**GOOD, **change})
    assert error["message"].startswith(message)
    assert error["param"] == message.split(":")[0].split(".")[0]
    assert len(error["message"]) < 200


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"messages": []}, "messages: list should have at least 1 item"),
        ({"messages": "Hi"}, "messages: input should be a valid list"),
        ({"messages": ["Hi"]}, "messages.0: input should be a valid dictionary"),
        ({"messages": [{"content": "Hi"}]}, "messages.0.role: field required"),
        ({"messages": [{"role": "tool", "content": "Hi"}]}, "messages.0.role: input should be"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
            "messages.0.content",
        ),
        ({"messages": [{"role": "user", "content": "x" * 3000}]}, "messages: prompt 3017 + "),
        ({"tools": [{"type": "function"}]}, "tools: "),
        ({"response_format": {"type": "json_object"}}, "response_format: "),
        ({"top_logprobs": 2}, "top_logprobs: only with logprobs true"),
        ({"max_completion_tokens": 5}, "max_tokens: differs from max_completion_tokens"),
        ({"prompt": "Hi"}, "prompt: unknown key"),
    ],
)
async def test_bad_conversations(
    client: httpx2.AsyncClient, change: dict[str, Any], message: str
) -> None:
    """The same of conversations."""
    error = await refused(client, CHAT, 400, json={**TALK, **change})
    assert error["message"].startswith(message)
    assert error["param"] == message.split(":")[0].split(".")[0]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{bad",
        b'{"model": "tiny"',
        b"\xff\xfe",
        b'{"model": "\xff"}',
        b'{"temperature": NaN}',
        b'{"model": "\\ud800"}',
        b"[" * 9000,
    ],
)
async def test_malformed_json(client: httpx2.AsyncClient, content: bytes) -> None:
    """Cut short, not UTF-8, not numbers, too deep."""
    error = await refused(client, COMPLETIONS, 400, content)
    assert error["message"].startswith("the body is not JSON: ")


@pytest.mark.parametrize("content", [b"[]", b"3", b'"text"', b"null"])
async def test_json_that_is_no_object(client: httpx2.AsyncClient, content: bytes) -> None:
    """The message says so."""
    error = await refused(client, COMPLETIONS, 400, content)
    assert error["message"] == "the body is not a JSON object"


async def test_a_body_declared_too_large_is_not_read(client: httpx2.AsyncClient) -> None:
    """The limit of this server is 10,000 bytes."""
    error = await refused(client, COMPLETIONS, 413, b" " * 10_001)
    assert error["message"] == "the body exceeds 10000 bytes"


async def test_a_body_that_grows_too_large_is_left(client: httpx2.AsyncClient) -> None:
    """Of a body of unknown length no more is read than is allowed."""
    read = 0

    async def parts() -> Any:
        nonlocal read
        for _ in range(1000):
            read += 5000
            yield b" " * 5000

    await refused(client, COMPLETIONS, 413, parts())
    assert read <= 20_000


async def test_a_body_that_never_comes(client: httpx2.AsyncClient) -> None:
    """A client that opens a request and sends nothing is not waited for."""

    async def silence() -> Any:
        yield b"{"
        await anyio.sleep_forever()

    error = await refused(client, COMPLETIONS, 408, silence())
    assert error["message"] == "the body did not arrive within 0.2 s"


@pytest.mark.parametrize("kind", ["text/plain", "application/x-www-form-urlencoded"])
async def test_only_json_is_taken(client: httpx2.AsyncClient, kind: str) -> None:
    """What a web page may send without asking is refused."""
    headers = {"content-type": kind}
    error = await refused(client, COMPLETIONS, 415, content=b"{}", headers=headers)
    assert error["message"] == f"content type {kind!r} is not 'application/json'"


async def test_unknown_paths_and_methods(client: httpx2.AsyncClient) -> None:
    """In the same shape."""
    await refused(client, "/v1/edits", 404, json={})
    await refused(client, "/nowhere", 404, json={})
    answer = await client.get(COMPLETIONS)
    assert answer.status_code == 405
    assert answer.json()["error"]["message"] == "GET /v1/completions: Method Not Allowed"
    answer = await client.get("/v1/models/huge")
    assert answer.json()["error"]["code"] == "model_not_found"


async def test_too_long_has_openais_code(client: httpx2.AsyncClient) -> None:
    """By which programs tell it from other errors."""
    error = await refused(client, COMPLETIONS, 400, json={**GOOD, "max_tokens": 5000})
    assert error["code"] == "context_length_exceeded"
