"""The server as a process: its socket, its signals, outside clients, bodies of any size."""

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx2
import pandas as pd
import pytest
from openai import AsyncOpenAI, AuthenticationError, BadRequestError
from typer.testing import CliRunner

from engine import cli
from engine.server.command import Setting, named, serve
from engine.server.hosting import Hosting
from engine.server.process import bound_socket
from engine.server.scheduling import Scheduling
from engine.server.service import Bounds
from moesim.errors import EngineError, MoesimError, MoesimWarning
from moesim.serving.records import read_records

ROOT = Path(__file__).parents[3]
KEY = "secret"
ASKED = {"model": "tiny", "prompt": [1, 2, 3], "extra_body": {"ignore_eos": True}}


class Running:
    """A server process and where it listens."""

    def __init__(self, process: subprocess.Popen[str], records: Path) -> None:
        assert process.stdout is not None
        self.process = process
        self.records = records
        self.url = process.stdout.readline().split()[-1]

    @property
    def said_wrong(self) -> str:
        """What was written to stderr."""
        return (self.records.parent / "stderr").read_text()

    @property
    def resident_mib(self) -> float:
        """Memory in use [MiB]."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmRSS"))

    def client(self, key: str = KEY) -> AsyncOpenAI:
        """Return an outside client."""
        return AsyncOpenAI(base_url=f"{self.url}/v1", api_key=key, max_retries=0)


@contextmanager
def running(tiny: Path, folder: Path) -> Iterator[Running]:
    """Run `moesim-engine serve` on any free port."""
    records = folder / "records.parquet"
    program = "from engine.cli import main; main()"
    options = ["--model", f"tiny={tiny}", "--port", "0", "--records", str(records)]
    options += ["--drain-s", "300"]
    with (
        (folder / "stderr").open("w") as wrong,
        subprocess.Popen(
            [sys.executable, "-c", program, "serve", *options],
            stdout=subprocess.PIPE,
            stderr=wrong,
            env={**os.environ, "MOESIM_API_KEY": KEY},
            text=True,
        ) as process,
    ):
        try:
            yield Running(process, records)
        finally:
            process.kill()


def test_outside_clients_and_a_hundred_megabytes(tiny: Path, tmp_path: Path) -> None:
    """200 streams by the `openai` package are what the records say; huge bodies leave no trace."""
    with running(tiny, tmp_path) as server:
        asyncio.run(_without_key(server))
        _huge_bodies(server)
        seen = asyncio.run(_streams(server, 200))
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(timeout=60) == 0
        records = read_records(server.records).set_index("tenant")
    assert set(records["outcome"]) == {"completed"}
    assert len(records) == len(seen) == 200
    records = records.loc[seen.index]
    assert (records["output_tokens"] == seen["tokens"]).all()
    # The server's clock runs inside the client's: what it saw is shorter, request by request.
    assert (records["first_token_s"] - records["arrival_s"] < seen["first_s"]).all()
    assert (records["finish_s"] - records["arrival_s"] < seen["last_s"]).all()


async def _without_key(server: Running) -> None:
    async with server.client("wrong") as client:
        with pytest.raises(AuthenticationError):
            await client.models.list()


def _huge_bodies(server: Running) -> None:
    """Send 100 MB, announced or not: an error, and memory stays."""

    def parts() -> Iterator[bytes]:
        for _ in range(100):
            yield b" " * 1_000_000

    headers = {"content-type": "application/json", "authorization": f"Bearer {KEY}"}
    before = server.resident_mib
    with httpx2.Client(base_url=server.url, headers=headers) as client:
        for content in (b" " * 100_000_000, parts()):
            answer = client.post("/v1/completions", content=content)
            assert answer.status_code == 413
            assert answer.json()["error"]["code"] == "request_too_large"
    assert server.resident_mib < before + 40


async def _streams(server: Running, count: int) -> pd.DataFrame:
    """Stream `count` answers, eight at a time; return what the client saw of each."""
    numbers, rows = iter(range(count)), []

    async def user(client: AsyncOpenAI) -> None:
        for number in numbers:
            asked: dict[str, Any] = {**ASKED, "max_tokens": 1 + number % 7, "user": str(number)}
            started, times = time.perf_counter(), []
            async for _ in await client.completions.create(**asked, stream=True):
                times.append(time.perf_counter() - started)
            rows.append((str(number), len(times), times[0], times[-1]))

    async with server.client() as client:
        await asyncio.gather(*(user(client) for _ in range(8)))
        with pytest.raises(BadRequestError, match="n: 2 is not supported"):
            await client.completions.create(model="tiny", prompt="Hi", n=2)
    return pd.DataFrame(rows, columns=["user", "tokens", "first_s", "last_s"]).set_index("user")


def test_sigterm_drains(tiny: Path, tmp_path: Path) -> None:
    """The running stream comes to its end, new requests get 503, the exit code is 0."""
    with running(tiny, tmp_path) as server:
        asyncio.run(_drained(server))
        assert server.process.wait(timeout=60) == 0
        records = read_records(server.records)
    assert records["output_tokens"].tolist() == [400]
    assert records["outcome"].tolist() == ["completed"]


async def _drained(server: Running) -> None:
    body = {"model": "tiny", "prompt": [1], "max_tokens": 400, "ignore_eos": True}
    headers = {"authorization": f"Bearer {KEY}"}
    tokens = 0
    async with (
        httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client,
        client.stream("POST", "/v1/completions", json={**body, "stream": True}) as answer,
    ):
        async for line in answer.aiter_lines():
            if not line.startswith("data: {"):
                continue
            tokens += len(json.loads(line[6:])["choices"])
            if tokens == 10:
                server.process.send_signal(signal.SIGTERM)
                while (await client.get("/health")).status_code == 200:
                    await asyncio.sleep(0.01)
                assert (await client.post("/v1/completions", json=body)).status_code == 503
    assert tokens == 400


def test_a_second_signal_ends_it(tiny: Path, tmp_path: Path) -> None:
    """The running answer ends with 503, without a traceback, and its record is kept."""
    with running(tiny, tmp_path) as server:
        assert asyncio.run(_cut_short(server)) == 503
        assert server.process.wait(timeout=60) == 0
        records = read_records(server.records)
    assert (server.said_wrong, records["detail"].tolist()) == ("", ["cancelled"])


async def _cut_short(server: Running) -> int:
    body = {"model": "tiny", "prompt": [1], "max_tokens": 2000, "ignore_eos": True}
    headers = {"authorization": f"Bearer {KEY}"}
    async with httpx2.AsyncClient(base_url=server.url, headers=headers, timeout=30) as client:
        call = asyncio.create_task(client.post("/v1/completions", json=body))
        while 'running{model_name="tiny"} 1' not in (await client.get("/metrics")).text:
            await asyncio.sleep(0.01)
        for number in (signal.SIGTERM, signal.SIGINT):
            server.process.send_signal(number)
            await asyncio.sleep(0.05)
        return (await call).status_code


def test_many_users_some_of_whom_leave() -> None:
    """The load benchmark at a small size checks every token and what is left at the end."""
    command = [sys.executable, "benchmarks/server_load.py", "--users", "100", "--requests", "300"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    content = json.loads(done.stdout)
    assert (content["answered"], content["left"], content["errors"]) == (270, 30, 0)


def test_small_packets_are_not_held_back() -> None:
    """The event loop turns Nagle's algorithm off only where a socket names its protocol."""
    with bound_socket("127.0.0.1", 0) as taken:
        assert taken.proto == socket.IPPROTO_TCP


def setting(**changes: Any) -> Setting:
    """Return what a command line says."""
    common = {"hosting": Hosting(), "bounds": Bounds(), "api_key": "", "drain_s": 1.0}
    place = {"models": ["a=nowhere"], "host": "127.0.0.1", "port": 0, "records": None}
    return Setting(**{**common, **place, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"models": ["checkpoint/"]}, "--model checkpoint/: is not NAME=FOLDER"),
        ({"models": ["a b=x"]}, "--model a b=x: is not NAME=FOLDER"),
        ({"models": ["a=x", "a=y"]}, "--model a=y: the name 'a' is given twice"),
        ({"records": Path("r.json")}, "--records r.json: give a name ending in .parquet or .csv"),
        (
            {"host": "no.such.host.invalid", "api_key": "k"},
            "--host no.such.host.invalid --port 0: ",
        ),
    ],
)
def test_settings_are_checked_before_anything_is_loaded(
    changes: dict[str, Any], message: str
) -> None:
    """In one line that names the option."""
    with pytest.raises(EngineError) as refusal:
        serve(setting(**changes))
    assert str(refusal.value).startswith(message)


def test_a_taken_port_is_an_error() -> None:
    """Before any weight is read."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(EngineError, match=f"--port {port}: .*in use; choose another"):
            serve(setting(port=port))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda _: None, r": no such file; give a checkpoint folder with a config.json"),
        (lambda f: (f / "config.json").write_text("{"), r"/config.json: not readable as JSON"),
        (
            lambda f: (f / "config.json").write_text('{"model_type": "gpt2"}'),
            r"/config.json: model_type: 'gpt2' is not supported here; give a model of type 'mixtr",
        ),
        (
            lambda f: os.truncate(f / "model.safetensors", 5000),
            r"/model.safetensors: not readable as safetensors \(.*\); download or save it again",
        ),
        (
            lambda f: (f / "model.safetensors").unlink(),
            r": neither model.safetensors nor model.safetensors.index.json; give a checkpoint",
        ),
        (
            lambda f: (f / "tokenizer.json").write_text("{}"),
            r"/tokenizer.json: not a tokeniser \(.*\); save it again",
        ),
    ],
)
def test_a_checkpoint_that_cannot_be_served(
    damage: Callable[[Path], Any], message: str, tiny: Path, tmp_path: Path
) -> None:
    """In one line that names the file, what is wrong with it and what to do."""
    folder = tmp_path / "damaged"
    if "no such file" not in message:
        shutil.copytree(tiny, folder)
    damage(folder)
    with pytest.raises(EngineError, match=message) as refusal:
        serve(setting(models=[f"a={folder}"]))
    assert str(refusal.value).startswith(str(folder))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("hosting", "message"),
    [
        (Hosting(num_blocks=10**10), r"10{10} blocks of 16 .*: [\d.e+]+ GiB do not fit on cpu"),
        (
            Hosting(max_num_seqs=10**9, scheduling=Scheduling(preemption="swap", swap_gib=1e6)),
            r"swap space: \d+ blocks: [\d.e+]+ GiB do not fit on cpu",
        ),
    ],
)
def test_what_does_not_fit_in_memory(hosting: Hosting, message: str, tiny: Path) -> None:
    """How much is needed, how much there is, what to lower."""
    with pytest.raises(EngineError, match=message + r" \([\d.]+ GiB free of [\d.]+ GiB\); lower "):
        serve(setting(models=[f"a={tiny}"], hosting=hosting))


def test_records_that_cannot_be_written(tmp_path: Path) -> None:
    """Known before anything is loaded, not when all is served."""
    (tmp_path / "file").touch()
    with pytest.raises(EngineError, match=r"--records .*: cannot be written \(.*\); choose anoth"):
        serve(setting(records=tmp_path / "file" / "records.csv"))


def test_records_that_are_there(tiny: Path, tmp_path: Path) -> None:
    """The last run's are replaced only where that is told; a folder never."""
    records = tmp_path / "records.csv"
    records.write_text("kept")
    with pytest.raises(EngineError, match=r"exists already; .* or add --overwrite"):
        serve(setting(models=[f"a={tiny}"], records=records))
    with pytest.raises(EngineError, match="nowhere: no such file"):
        serve(setting(records=records, overwrite=True))
    assert records.read_text() == "kept"
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(EngineError, match=r"folder\.csv: is a folder; give a file name"):
        serve(setting(records=tmp_path / "folder.csv", overwrite=True))


def test_a_body_of_any_size() -> None:
    """A limit is a number."""
    done = CliRunner().invoke(cli.app, ["serve", "--model", "a=b", "--max-body-mib", "inf"])
    assert done.exit_code == 2
    assert done.stderr == "error: --max-body-mib inf: give a number, say 4\n"


def test_an_open_address_without_a_key_is_a_warning() -> None:
    """Loopback needs none."""
    with (
        pytest.warns(MoesimWarning, match=r"--host 0\.0\.0\.0 without an API key"),
        pytest.raises(MoesimError),
    ):
        serve(setting(host="0.0.0.0"))  # noqa: S104  # on purpose


def test_a_missing_extra_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    """As everywhere."""
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"uvicorn; pip install 'moesim\[server\]'"):
        cli.serve(model=["a=b"])


def test_names_and_folders() -> None:
    """In the order given."""
    assert list(named(["b=x", "a=y/z"]).items()) == [("b", Path("x")), ("a", Path("y/z"))]
