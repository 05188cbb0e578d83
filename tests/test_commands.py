"""The commands as a person runs them: results, one-line errors, interruptions."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from engine.model.checkpoint import random_decoder, save_decoder
from moesim.facts.catalog import shipped
from moesim.facts.models import ModelSpec

MAINS = {
    "moesim": "moesim.cli",
    "moesim-engine": "engine.cli",
    "moesim-calibrate": "calibration.cli",
}


def command(*words: object) -> list[str]:
    """Return the argument vector of a console script, without relying on PATH."""
    name, *arguments = map(str, words)
    code = f"import sys; sys.argv[0] = {name!r}; from {MAINS[name]} import main; main()"
    return [sys.executable, "-c", code, *arguments]


def run(*words: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*words), capture_output=True, text=True, check=False)


def fails(*words: object) -> str:
    """Run a command that must fail with one line and exit code 2; return the line."""
    done = run(*words)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    return done.stderr


@pytest.fixture
def quickstart() -> dict[str, Any]:
    return dict(yaml.safe_load(shipped("scenarios")["quickstart"].read_text()))


@pytest.fixture(scope="module")
def checkpoint(engine_spec: ModelSpec, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("commands") / "tiny"
    save_decoder(random_decoder(engine_spec, seed=0), folder)
    return folder


def test_simulate_json_has_the_promised_keys(tmp_path: Path) -> None:
    """Scripts rely on these names; they are added to, never renamed."""
    done = run("moesim", "simulate", "quickstart", "--json", "--out", tmp_path)
    assert done.returncode == 0
    metrics = json.loads(done.stdout)
    for group in (metrics["overall"], metrics["tenants"]["chat"]):
        for latency in ("ttft_s", "tpot_s", "turnaround_s"):
            assert set(group[latency]) >= {"mean", "p50", "p90", "p95", "p99"}
        assert group["throughput_rps"] > 0
        assert group["output_tokens_per_s"] > 0
        assert group["goodput_rps"] > 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "records.parquet",
        "metrics.json",
        "scenario.yaml",
    }


def test_written_scenario_gives_the_same_records(tmp_path: Path) -> None:
    """`--out` keeps a scenario that simulates to the same bytes again."""
    run("moesim", "simulate", "quickstart", "--out", tmp_path / "a")
    run("moesim", "simulate", tmp_path / "a" / "scenario.yaml", "--out", tmp_path / "b")
    first, second = ((tmp_path / x / "records.parquet").read_bytes() for x in "ab")
    assert first == second


def test_misspelt_key(quickstart: dict[str, Any], tmp_path: Path) -> None:
    quickstart["tenants"]["chat"]["arrivals"]["rate_per_sec"] = 3
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(quickstart))
    line = fails("moesim", "simulate", file)
    assert "s.yaml: tenants.chat.arrivals.rate_per_sec: unknown key" in line
    assert "rate_per_s" in line


def test_negative_rate(quickstart: dict[str, Any], tmp_path: Path) -> None:
    quickstart["tenants"]["chat"]["arrivals"]["rate_per_s"] = -1
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(quickstart))
    assert "s.yaml: tenants.chat.arrivals.rate_per_s: -1" in fails("moesim", "simulate", file)


def test_unknown_model(quickstart: dict[str, Any], tmp_path: Path) -> None:
    quickstart["tenants"]["chat"]["model"] = "mixtrel"
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(quickstart))
    assert "s.yaml: tenants.chat.model: 'mixtrel'" in fails("moesim", "simulate", file)


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda text: text.replace('"format_version": 1', '"format_version": 9'), "format_version"),
        (lambda text: text[: len(text) // 2], "truncated?"),
        (lambda text: text.replace('"median_s"', '"median"', 1), "median"),
        (lambda _: "{}", "format"),
    ],
)
def test_broken_profile(damage: Any, expected: str, tmp_path: Path) -> None:
    """Another format version, a truncated file, a renamed field: file and field are named."""
    file = tmp_path / "p.json"
    file.write_text(damage(shipped("profiles")["demo-cpu"].read_text()))
    line = fails("moesim", "simulate", "quickstart", "--profile", file)
    assert "p.json" in line
    assert expected in line


def test_checkpoint_with_a_missing_tensor(checkpoint: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(checkpoint / "model.safetensors")
    name = "model.layers.1.block_sparse_moe.experts.2.w3.weight"
    del tensors[name]
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "config.json").write_text((checkpoint / "config.json").read_text())
    save_file(tensors, broken / "model.safetensors")
    line = fails("moesim-calibrate", "profile", "--model", broken, "--out", tmp_path / "p.json")
    assert "model.safetensors" in line
    assert name in line
    assert not (tmp_path / "p.json").exists()


def test_generate_prints_tokens(checkpoint: Path) -> None:
    done = run(
        "moesim-engine", "generate", "--model", checkpoint, "--prompt", "1,2,3", "--prompt", "4",
        "--output-tokens", "5", "--json",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert [len(answer) for answer in json.loads(done.stdout)] == [5, 5]


def test_generate_refuses_what_cannot_run(checkpoint: Path) -> None:
    line = fails("moesim-engine", "generate", "--model", checkpoint, "--prompt", "1,99")
    assert "outside the vocabulary of 64" in line
    line = fails("moesim-engine", "generate", "--model", checkpoint, "--prompt", "hello")
    assert "'hello' is not a list of token ids" in line


def test_interrupted_profile_can_go_on(checkpoint: Path, tmp_path: Path) -> None:
    """Ctrl-C: one line, exit code 130, only the partial file; the same command finishes."""
    out = tmp_path / "p.json"
    partial = tmp_path / "p.json.partial"
    words = ("moesim-calibrate", "profile", "--model", checkpoint, "--out", out,
             "--max-num-seqs", 4, "--max-batched-tokens", 16, "--kv-blocks", 32)  # fmt: skip
    process = subprocess.Popen(
        command(*words, "--budget-s", 600), stderr=subprocess.PIPE, stdout=subprocess.PIPE
    )
    deadline = time.monotonic() + 60
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert b"the same command goes on from there" in stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.json.partial"]
    done = run(*words, "--budget-s", 1)
    assert done.returncode == 0, done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]


def test_detect_as_json() -> None:
    done = run("moesim-calibrate", "detect", "--json")
    assert json.loads(done.stdout)["cores"] >= 1


def test_list_names_what_ships() -> None:
    assert "quickstart" in run("moesim", "list").stdout


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no device that is always full")
@pytest.mark.parametrize("word", ["list", "--help"])
def test_a_full_disk_is_one_line(word: str) -> None:
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            command("moesim", word), stdout=full, stderr=subprocess.PIPE, text=True, check=False
        )
    assert (done.returncode, done.stderr) == (2, "error: No space left on device\n")


@pytest.mark.parametrize("word", ["list", "--help"])
def test_a_reader_that_leaves_is_no_error(word: str) -> None:
    """The same exit code whichever way the text is printed."""
    process = subprocess.Popen(
        command("moesim", word), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait() == 0
    process.stderr.close()


@pytest.mark.parametrize("word", ["reproduce", "simulate"])
def test_an_empty_argument_is_said_to_be_one(word: str) -> None:
    """It is no option that could be left out."""
    assert f"{word}: its argument is empty; give a value" in fails("moesim", word, "")


def test_places_are_checked_before_anything_runs(tmp_path: Path) -> None:
    """Nothing is simulated for a result that has no place."""
    for words in (
        ("reproduce", "all", "--report", tmp_path),
        ("compare", "two-variants", "--replications", 10**6, "--plot", tmp_path),
    ):
        assert "is a folder; give a file name" in fails("moesim", *words)


def test_terminated_in_the_middle_nothing_is_left(tmp_path: Path) -> None:
    """A draft vanishes with whoever wrote it."""
    code = (
        "import os, pathlib, signal, moesim.cli as cli; from moesim.files import atomic_path\n"
        "def half():\n"
        f"    with atomic_path(pathlib.Path({str(tmp_path / 'r.csv')!r})):\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "cli.app = half\n"
        "cli.main()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], check=False)
    assert done.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


def test_compare_prints_deployments_side_by_side(tmp_path: Path) -> None:
    """JSON for scripts, a table for people, a picture; wrong loads and names are one line."""
    few = ("--replications", 3)
    done = run("moesim", "compare", "dedicated", "mig", "--json", *few)
    rows = json.loads(done.stdout)
    assert {row["deployment"] for row in rows} == {"dedicated", "mig"}
    assert all(
        row["ratio"] > 1
        for row in rows
        if row["deployment"] == "mig" and row["metric"].endswith("_s")
    )
    plot = tmp_path / "plot.html"
    shown = run("moesim", "compare", "dedicated", "mig", *few, "--plot", plot)
    assert "times dedicated, run by run" in shown.stdout
    assert "Mean turnaround" in plot.read_text()
    assert "compare deployments of one workload" in fails("moesim", "compare", "mig", "quickstart")
    assert "given twice" in fails("moesim", "compare", "mig", "mig")
    assert "give numbers" in fails("moesim", "compare", "mig", "dedicated", "--loads", "x")
