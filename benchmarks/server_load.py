"""Load on the HTTP server: closed-loop users, some of whom leave half-way, every token checked.

    python benchmarks/server_load.py --users 1000 --requests 5000
    python benchmarks/server_load.py --users 1000 --requests 5000 --leaves-every 0
    python benchmarks/server_load.py --users 16 --requests 200 --client openai

Starts `moesim-engine serve` with a tiny model of random weights on the CPU. Each user asks, reads
the streamed answer to its end, and asks again; one in ten hangs up half-way, or as many as
--leaves-every says. Each answer is compared, token by token, with what the engine generates from
the same prompt alone. At the end the server must be empty, its counts must be the users', most of
those who left must have been noticed, and its memory must not have grown with the requests served.
With `--client openai` the `openai` package asks, and its own timings are laid
beside the server's records. Exit code 1 if anything is not as it must be.
"""

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.serve.generate import generate
from moesim.facts.models import ModelSpec
from moesim.serving.records import read_records

PROMPTS, PROMPT_TOKENS, OUTPUT_TOKENS = 16, 12, 8
LEFT_TOKENS, READ_TOKENS = 800, 25
"""What those ask for who leave, and what they read: a busy client is some hundred tokens late."""
SETTLE_S = 20.0
POOLS_MIB = 32
"""What allocators may take after the first half of the requests, for a busier moment; measured up
to 16 MiB, and no more after four times the requests."""
SPEC = ModelSpec(
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    num_local_experts=4,
    num_experts_per_tok=2,
    vocab_size=300,
    max_position_embeddings=1024,
    dtype="float32",
)


@dataclass(slots=True)
class Seen:
    """What the users saw."""

    answered: int = 0
    left: int = 0
    errors: list[str] = field(default_factory=list)
    timings: list[tuple[int, float, float]] = field(default_factory=list)
    """Request number, seconds to the first token, seconds to the last."""


@dataclass(frozen=True, slots=True)
class Server:
    """A running server, its process and where its records will be."""

    url: str
    process: subprocess.Popen[str]
    records: Path

    def resident_mib(self) -> float:
        """Return the memory that the process has in use [MiB]."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def metrics(self) -> dict[str, float]:
        """Return the samples of `/metrics`."""
        with urllib.request.urlopen(f"{self.url}/metrics") as answer:  # noqa: S310  # our own
            lines = answer.read().decode().splitlines()
        pairs = (line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
        return {name: float(value) for name, value in pairs}


Ask = Callable[[int, list[int], list[int], Seen], Awaitable[None]]
"""Sends request number N with a prompt, checks the answer against the tokens expected."""
Client = Callable[[Server], AbstractAsyncContextManager[Ask]]
"""Opens a way to ask a server."""


def main() -> int:
    """Print what was measured; 1 if a check failed."""
    arguments = _parser().parse_args()
    clients: dict[str, Client] = {
        "plain": partial(plain_client, arguments.leaves_every),
        "openai": openai_client,
    }
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "checkpoint"
        save_decoder(random_decoder(SPEC, seed=0), checkpoint)
        prompts = _prompts()
        decoder = load_decoder(checkpoint)
        answers = [generate(decoder, [one], output_tokens=READ_TOKENS)[0] for one in prompts]
        with serving(checkpoint, Path(folder)) as server:
            content, failed = _loaded(
                server,
                arguments,
                clients[arguments.client],
                list(zip(prompts, answers, strict=True)),
            )
        frame = read_records(server.records)
    content |= _beside_records(frame, content.pop("timings"))
    if content["cancelled"] < content["left"] / 2:
        failed.append(f"{content['left']} left, the server noticed {content['cancelled']} in time")
    print(json.dumps(content, indent=1))
    for line in failed:
        print("failed:", line, file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--users", type=int, default=1000, help="who ask at the same time")
    parser.add_argument("--requests", type=int, default=5000, help="how many they ask together")
    parser.add_argument("--leaves-every", type=int, default=10, help="0: nobody hangs up half-way")
    parser.add_argument("--client", choices=("plain", "openai"), default="plain")
    return parser


def _prompts() -> list[list[int]]:
    rng = np.random.default_rng(1)
    return [rng.integers(SPEC.vocab_size, size=PROMPT_TOKENS).tolist() for _ in range(PROMPTS)]


@contextmanager
def serving(checkpoint: Path, folder: Path) -> Iterator[Server]:
    """Run a server of its own process; at the end it drains."""
    records = folder / "records.parquet"
    command = [
        *(sys.executable, "-c", "from engine.cli import main; main()", "serve"),
        *("--model", f"tiny={checkpoint}", "--port", "0", "--records", str(records)),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:  # noqa: S603
        try:
            said = process.stdout.readline() if process.stdout else ""
            yield Server(said.split()[-1], process, records)
        finally:
            process.terminate()
            code = process.wait(timeout=60)
    if code:
        raise SystemExit(f"the server ended with exit code {code}")


def _loaded(
    server: Server,
    arguments: argparse.Namespace,
    client: Client,
    tasks: list[tuple[list[int], list[int]]],
) -> tuple[dict[str, Any], list[str]]:
    """Drive the server; return what was seen, and what is not as it must be."""
    before = server.resident_mib()
    seen = Seen()
    memory: list[float] = []
    started = time.perf_counter()
    asyncio.run(_drive(server, arguments, client, tasks, seen, memory))
    lasted_s = time.perf_counter() - started
    metrics = _settled(server)
    grown_mib = memory[-1] - memory[len(memory) // 2]
    failed = [*seen.errors[:5], *_left_behind(metrics, seen)]
    if grown_mib > POOLS_MIB:
        failed.append(f"memory has grown by {grown_mib:.0f} MiB in the second half")
    content = {
        **{name: value for name, value in asdict(seen).items() if name != "errors"},
        "errors": len(seen.errors),
        "seconds": round(lasted_s, 2),
        "requests_per_s": round((seen.answered + seen.left) / lasted_s, 1),
        "resident_mib": {
            "idle": round(before),
            "half": round(memory[len(memory) // 2]),
            "end": round(memory[-1]),
        },
    }
    return content, failed


async def _drive(
    server: Server,
    arguments: argparse.Namespace,
    client: Client,
    tasks: list[tuple[list[int], list[int]]],
    seen: Seen,
    memory: list[float],
) -> None:
    """Let all users ask until all requests are sent."""
    numbers = iter(range(arguments.requests))

    async def user(ask: Ask) -> None:
        for number in numbers:
            try:
                await ask(number, *tasks[number % len(tasks)], seen)
            except (OSError, ValueError, asyncio.IncompleteReadError) as wrong:
                seen.errors.append(f"request {number}: {wrong!r}")
            if number % 50 == 0:
                memory.append(server.resident_mib())

    async with client(server) as ask:
        await asyncio.gather(*(user(ask) for _ in range(arguments.users)))
    memory.append(server.resident_mib())


def _body(number: int, prompt: list[int], max_tokens: int = OUTPUT_TOKENS) -> dict[str, Any]:
    return {
        "model": "tiny",
        "prompt": prompt,
        "max_tokens": max_tokens,
        "temperature": 0,
        "stream": True,
        "user": str(number),
    }


async def ask_plainly(
    address: tuple[str, int],
    leaves: bool,
    number: int,
    prompt: list[int],
    expected: list[int],
    seen: Seen,
) -> None:
    """Ask over a bare socket; who `leaves` hangs up half-way."""
    asked = LEFT_TOKENS if leaves else OUTPUT_TOKENS
    wanted = READ_TOKENS if leaves else asked
    more = {"ignore_eos": True, "return_token_ids": True, "stream_options": {"include_usage": True}}
    started = time.perf_counter()
    reader, writer = await asyncio.open_connection(*address)
    try:
        writer.write(_request(json.dumps({**_body(number, prompt, asked), **more})))
        tokens, times, usage = await _read(reader, wanted if leaves else None)
    finally:
        writer.close()
    if tokens != expected[:wanted]:
        raise ValueError(f"tokens {tokens} are not {expected[:wanted]}")
    if leaves:
        seen.left += 1
        return
    if usage != {"prompt_tokens": 12, "completion_tokens": 8, "total_tokens": 20}:
        raise ValueError(f"usage {usage}")
    seen.answered += 1
    seen.timings.append((number, times[0] - started, times[-1] - started))


def _request(body: str) -> bytes:
    head = (
        "POST /v1/completions HTTP/1.1\r\nHost: server\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    return (head + body).encode()


async def _read(
    reader: asyncio.StreamReader, most: int | None
) -> tuple[list[int], list[float], dict[str, int]]:
    """Return tokens, when each came, and the usage; stop early after `most` tokens."""
    tokens: list[int] = []
    times: list[float] = []
    usage: dict[str, int] = {}
    status = await reader.readline()
    if status.split()[1:2] != [b"200"]:
        raise ValueError(f"{status!r} {(await reader.read())[-300:]!r}")
    while most is None or len(tokens) < most:
        line = await reader.readline()
        if not line:
            raise ValueError("the stream ended before [DONE]")
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        chunk = json.loads(line[6:])
        for choice in chunk["choices"]:
            tokens += choice["token_ids"]
            times.append(time.perf_counter())
        usage = chunk.get("usage", usage)
    return tokens, times, usage


@asynccontextmanager
async def plain_client(leaves_every: int, server: Server) -> AsyncIterator[Ask]:
    """Yield what asks over a bare socket, a connection a request; each so-manieth is left."""
    host, port = server.url.removeprefix("http://").split(":")

    async def ask(number: int, prompt: list[int], expected: list[int], seen: Seen) -> None:
        leaves = leaves_every > 0 and number % leaves_every == leaves_every - 1
        await ask_plainly((host, int(port)), leaves, number, prompt, expected, seen)

    yield ask


@asynccontextmanager
async def openai_client(server: Server) -> AsyncIterator[Ask]:
    """Yield what asks through the `openai` package, as its users do."""
    from openai import AsyncOpenAI

    more = {"ignore_eos": True, "return_token_ids": True}
    async with AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:

        async def ask(number: int, prompt: list[int], expected: list[int], seen: Seen) -> None:
            tokens: list[int] = []
            times: list[float] = []
            started = time.perf_counter()
            stream = await client.completions.create(**_body(number, prompt), extra_body=more)
            async for chunk in stream:
                tokens += (chunk.choices[0].model_extra or {})["token_ids"]
                times.append(time.perf_counter())
            if tokens != expected[:OUTPUT_TOKENS]:
                raise ValueError(f"tokens {tokens} are not {expected[:OUTPUT_TOKENS]}")
            seen.answered += 1
            seen.timings.append((number, times[0] - started, times[-1] - started))

        yield ask


def _settled(server: Server) -> dict[str, float]:
    """Return the metrics once nobody is inside; who hung up is noticed a moment later."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        metrics = server.metrics()
        inside = sum(value for name, value in metrics.items() if "num_requests" in name)
        if not inside or time.monotonic() > deadline:
            return metrics
        time.sleep(0.05)


def _left_behind(metrics: dict[str, float], seen: Seen) -> list[str]:
    """Name what the server counts otherwise than its users, or still holds."""
    label = 'model_name="tiny"'
    ended = {
        why: metrics[f'vllm:request_success_total{{{label},finished_reason="{why}"}}']
        for why in ("stop", "length", "abort")
    }
    failed = []
    for gauge in ("num_requests_running", "num_requests_waiting", "kv_cache_usage_perc"):
        if value := metrics[f"vllm:{gauge}{{{label}}}"]:
            failed.append(f"{gauge} is {value} at the end")
    if sum(ended.values()) != seen.answered + seen.left:
        failed.append(f"the server counts {ended}, users {seen.answered} and {seen.left} who left")
    # Who hangs up may find that the rest was sent already.
    if not seen.answered <= ended["length"] <= seen.answered + seen.left:
        failed.append(f"{ended['length']} answers to the end, users had {seen.answered}")
    return failed


def _beside_records(frame: pd.DataFrame, timings: list[tuple[int, float, float]]) -> dict[str, Any]:
    """Lay the users' times beside the server's records of the same requests."""
    seen = pd.DataFrame(timings, columns=["number", "first_s", "last_s"])
    seen.index = pd.Index(seen["number"].astype(str))
    records = frame.set_index("tenant").loc[seen.index]
    content: dict[str, Any] = {}
    for name, own, theirs in (
        ("ttft_ms", seen["first_s"], records["first_token_s"] - records["arrival_s"]),
        ("e2e_ms", seen["last_s"], records["finish_s"] - records["arrival_s"]),
    ):
        content[name] = {
            "client": _quantiles(own),
            "server": _quantiles(theirs),
            "difference": _quantiles(own - theirs),
        }
    content["cancelled"] = int((frame["detail"] == "cancelled").sum())
    return content


def _quantiles(seconds: "pd.Series[float]") -> dict[str, float]:
    return {f"p{q}": round(1e3 * float(seconds.quantile(q / 100)), 2) for q in (0, 50, 90, 99)}


if __name__ == "__main__":
    sys.exit(main())
