"""Variants of one model behind HTTP: each answers as it would alone, and every answer says who."""

import asyncio
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from typing import Any

import httpx2
import pytest
from openai import AsyncOpenAI, NotFoundError
from typer.testing import CliRunner

from engine.cli import app as command
from engine.model.checkpoint import load_decoder, random_decoder, save_decoder
from engine.model.decoder import Decoder
from engine.serve.generate import generate
from engine.server.app import application
from engine.server.hosting import Hosting
from engine.server.service import Bounds, Service
from engine.variants.assemble import assemble
from engine.variants.command import consolidate
from engine.variants.family import Sharing
from engine.variants.hosting import Together, service_together
from engine.variants.layout import Layout
from engine.variants.layout_file import write_layout
from engine.variants.serving import Turns
from engine.variants.store import Residency
from moesim.errors import EngineError
from moesim.serving.records import COMPLETED, UNFINISHED, read_records

NAMES = ("base", "chat", "code")
PROMPTS = ([72, 105], [1, 2, 3, 4, 5], [200, 100, 50, 25])
ASKED: dict[str, Any] = {"max_tokens": 6, "temperature": 0, "ignore_eos": True}
PROGRAM = "from engine.cli import main; main()"
HOSTING = Hosting(max_num_seqs=8, num_blocks=60, max_model_len=256)


@pytest.fixture(scope="module")
def folders(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return three random checkpoints of the shape of `tiny`."""
    spec, folder = load_decoder(tiny).spec, tmp_path_factory.mktemp("variants")
    for seed, name in enumerate(NAMES):
        save_decoder(random_decoder(spec, seed=seed), folder / name)
    return {name: folder / name for name in NAMES}


@pytest.fixture(scope="module")
def layout(folders: dict[str, Path]) -> Layout:
    return consolidate(folders, 0.5, lambda done, what: None)


@pytest.fixture(scope="module")
def layout_file(layout: Layout, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("layout") / "layout.json"
    write_layout(path, layout)
    return path


@pytest.fixture(scope="module")
def expected(folders: dict[str, Path], layout: Layout) -> dict[tuple[str, int], list[int]]:
    """Return what models that were assembled offline answer to each prompt."""
    return answers_of({name: assemble(layout, folders, name) for name in NAMES})


def answers_of(models: Mapping[str, Decoder]) -> dict[tuple[str, int], list[int]]:
    return {
        (name, number): answer
        for name, model in models.items()
        for number, answer in enumerate(generate(model, PROMPTS, output_tokens=6))
    }


@pytest.fixture
async def service(folders: dict[str, Path], layout_file: Path) -> AsyncIterator[Service]:
    """Run three variants that change all the time, half of their experts absent."""
    together = Together(
        folders=folders,
        sharing=Sharing(residency=Residency(resident=0.5)),
        turns=Turns(policy="quantum", quantum_s=1e-4),
        layout=layout_file,
    )
    service = service_together(together, HOSTING, bounds=Bounds(queue=64), keep_records=True)
    async with service.running():
        yield service


@pytest.fixture
async def client(service: Service) -> AsyncIterator[httpx2.AsyncClient]:
    transport = httpx2.ASGITransport(app=application(service))
    async with httpx2.AsyncClient(transport=transport, base_url="http://server") as client:
        yield client


@pytest.mark.anyio
async def test_interleaved_answers_are_those_of_assembled_models(
    service: Service, client: httpx2.AsyncClient, expected: dict[tuple[str, int], list[int]]
) -> None:
    """All at once, each its own; answers and records say which variant it was."""

    async def ask(name: str, number: int) -> None:
        body = {**ASKED, "model": name, "prompt": PROMPTS[number], "return_token_ids": True}
        answer = (await client.post("/v1/completions", json=body)).json()
        assert answer["model"] == name
        assert answer["choices"][0]["token_ids"] == expected[name, number]

    await asyncio.gather(*(ask(*key) for key in list(expected) * 5))
    records = service.kept or []
    assert sorted(record.model for record in records) == sorted(NAMES * 15)
    assert {record.outcome for record in records} == {COMPLETED}
    assert max(record.expert_misses for record in records) > 0
    text = (await client.get("/metrics")).text
    for name in ("reconfigurations", "expert_hits", "expert_misses"):
        label = '{model_name="chat"}'
        (line,) = [ln for ln in text.splitlines() if ln.startswith(f"moesim:{name}_total{label}")]
        assert float(line.split()[-1]) > 0


@pytest.mark.anyio
async def test_every_chunk_names_its_variant(client: httpx2.AsyncClient) -> None:
    body = {**ASKED, "model": "chat", "stream": True}
    messages = [{"role": "user", "content": "Hi"}]
    for path, more in (
        ("completions", {"prompt": "Hi"}),
        ("chat/completions", {"messages": messages}),
    ):
        answer = await client.post(f"/v1/{path}", json={**body, **more})
        chunks = [line for line in answer.text.splitlines() if '"id"' in line]
        assert len(chunks) >= 6
        assert all('"model":"chat"' in chunk for chunk in chunks)


@pytest.mark.anyio
async def test_an_unknown_variant_is_not_found(client: httpx2.AsyncClient) -> None:
    """In OpenAI's shape, saying which there are."""
    answer = await client.post("/v1/completions", json={**ASKED, "model": "poet", "prompt": "Hi"})
    assert answer.status_code == 404
    assert answer.json()["error"] == {
        "message": "model: 'poet' is not served here; there is base, chat, code",
        "type": "invalid_request_error",
        "param": "model",
        "code": "model_not_found",
    }


@pytest.mark.anyio
async def test_a_client_that_leaves_is_let_go(service: Service, client: httpx2.AsyncClient) -> None:
    """The others go on; nothing of it stays behind but its record."""
    body = {**ASKED, "model": "code", "prompt": "Hi", "max_tokens": 200}
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.post("/v1/completions", json=body), 0.1)
    answer = await client.post("/v1/completions", json={**body, "model": "base", "max_tokens": 2})
    assert answer.json()["usage"]["completion_tokens"] == 2
    outcomes = {record.model: record.outcome for record in service.kept or []}
    assert outcomes == {"code": UNFINISHED, "base": COMPLETED}
    for model in service.models.values():
        assert model.worker.engine.scheduler.idle
        assert model.worker.engine.runner.free_blocks == 60
        assert model.worker.engine.ledger.records == {}


@pytest.mark.anyio
async def test_logits_that_are_no_numbers(
    service: Service, client: httpx2.AsyncClient, expected: dict[tuple[str, int], list[int]]
) -> None:
    """They end the request that they are of; the others and the next get their answers."""
    runner = service.models["chat"].worker.engine.runner
    sound = runner._logits
    counted = iter([1.0, 1.0, float("nan")])
    runner._logits = lambda *step: next(counted, 1.0) * sound(*step)  # type: ignore[method-assign]

    async def ask(name: str) -> dict[str, Any]:
        body = {**ASKED, "model": name, "prompt": PROMPTS[0], "return_token_ids": True}
        return dict((await client.post("/v1/completions", json=body)).json())

    spoiled, *others = await asyncio.gather(*(ask(name) for name in ("chat", "base", "code")))
    assert "logits are not finite numbers" in spoiled["error"]["message"]
    found = [answer["choices"][0]["token_ids"] for answer in (*others, await ask("chat"))]
    assert found == [expected[name, 0] for name in ("base", "code", "chat")]


def test_the_command_serves_variants(
    folders: dict[str, Path],
    layout_file: Path,
    expected: dict[tuple[str, int], list[int]],
    tmp_path: Path,
) -> None:
    """By an outside client; the records it leaves say what was waited for."""
    records, listed = tmp_path / "records.csv", ",".join(f"{n}={p}" for n, p in folders.items())
    options = ["--variants", listed, "--layout", str(layout_file), "--resident", "0.5"]
    options += ["--port", "0", "--num-blocks", "60", "--records", str(records)]
    with (
        (tmp_path / "stderr").open("w") as wrong,
        subprocess.Popen(
            [sys.executable, "-c", PROGRAM, "serve", *options],
            stdout=subprocess.PIPE,
            stderr=wrong,
            text=True,
        ) as process,
    ):
        try:
            assert process.stdout is not None
            asyncio.run(_ask_all(process.stdout.readline().split()[-1], expected))
            process.send_signal(signal.SIGTERM)
            assert process.wait(timeout=20) == 0
        finally:
            process.kill()
    frame = read_records(records)
    assert sorted(frame["model"]) == sorted(NAMES * 3)
    assert (frame["expert_misses"] > 0).any()
    assert ((frame["expert_wait_s"] > 0) == (frame["expert_misses"] > 0)).all()
    first = frame[frame["model"] == "chat"].iloc[0]
    assert first["reconfigurations"] > 0
    assert first["reconfiguration_s"] > 0


async def _ask_all(url: str, expected: dict[tuple[str, int], list[int]]) -> None:
    more = {"ignore_eos": True, "return_token_ids": True}
    async with AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        assert [model.id async for model in await client.models.list()] == list(NAMES)
        for (name, number), tokens in expected.items():
            answer: Any = await client.completions.create(
                model=name, prompt=PROMPTS[number], max_tokens=6, temperature=0, extra_body=more
            )
            assert answer.model == name
            assert answer.choices[0].token_ids == tokens
        with pytest.raises(NotFoundError, match="'poet' is not served here"):
            await client.completions.create(model="poet", prompt="Hi")


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--model", "a={base}", "--variants", "b={chat}"], "--model or --variants"),
        (["--model", "a={base}", "--resident", "0.5"], "are for --variants; give some"),
        (["--variants", "{base}"], "is not NAME=FOLDER"),
        (["--variants", "a={base},a={chat}"], "the name 'a' is given twice"),
        (["--variants", "a={base}", "--ratio", "0.5"], "--ratio: says how much of a layout"),
        (["--variants", "a={base}", "--turns", "lifo"], "turns: 'lifo' is none of fcfs"),
        (["--variants", "a={base}", "--swap", "slow"], "swap: 'slow' is not packed or ahead"),
        (["--variants", "a={base}", "--expert-cache", "mru"], "cache: 'mru' is none of pinned"),
        (["--variants", "a={base}", "--precision", "fp8"], "--precision: variants keep"),
        (["--variants", "a={base}", "--layout", "{none}"], "no such file"),
        (["--variants", "a={base},b={chat}", "--layout", "{layout}"], "no folder is given for"),
        (["--variants", "a={none}"], "config.json"),
        (
            ["--variants", "base={chat},chat={base},code={code}", "--layout", "{layout}"],
            "give that checkpoint, or make the layout again",
        ),
    ],
)
def test_what_cannot_be_served(
    options: list[str], expected: str, folders: dict[str, Path], layout_file: Path, tmp_path: Path
) -> None:
    """One line, before a port is said to listen."""
    places = {**folders, "layout": layout_file, "none": tmp_path / "none"}
    given = [option.format(**places) for option in options]
    result = CliRunner().invoke(command, ["serve", "--port", "0", *given])
    wrong = result.exception
    text = str(wrong) if isinstance(wrong, EngineError) else result.output
    assert result.exit_code != 0
    assert expected in text
    assert text.strip().count("\n") == 0
