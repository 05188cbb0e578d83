"""The command: what the GPU host lacks, wrong words, and being killed half-way."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from benchmarks.gpu_queue import kernels, validating
from benchmarks.gpu_queue.__main__ import STEPS, arguments, run
from benchmarks.gpu_queue.ready import PACKAGES, require
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError, ScenarioError

ROOT = Path(__file__).parents[3]
COMMAND = [sys.executable, "-m", "benchmarks.gpu_queue"]
TINY = ["--model", "tiny", "--device", "cpu"]

EVERYWHERE = """
import pkgutil, sys
from importlib import import_module

def load(package):
    for found in pkgutil.walk_packages(import_module(package).__path__, package + "."):
        if not found.name.endswith("__main__"):
            import_module(found.name)

dashboard = ("plotly", "streamlit")
server = ("starlette", "uvicorn", "tokenizers", "openai", "sklearn")
sys.modules.update(dict.fromkeys(dashboard + server))
load("calibration")
load("benchmarks.gpu_queue")
for name in server:
    del sys.modules[name]
load("engine")
"""


def test_imports_of_a_gpu_host() -> None:
    """All loads where the dashboard's libraries are not; what the queue needs, without a server's.

    A name that is None in `sys.modules` cannot be imported.
    """
    done = subprocess.run(
        [sys.executable, "-c", EVERYWHERE], cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")


def test_what_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the package that brings it; an old version of typer is none."""
    monkeypatch.setitem(sys.modules, "annotated_types", None)
    with pytest.raises(CalibrationError, match=r"^not installed here: annotated-types; bring"):
        require(PACKAGES)
    monkeypatch.setitem(sys.modules, "typer.exceptions", None)
    with pytest.raises(CalibrationError, match=r"here: typer 0\.29 or later, annotated-types; "):
        require(PACKAGES)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["profile", "--budget-s", "0"], "--budget-s: 0 must be above zero"),
        (["profile", "--budget-s", "inf"], "--budget-s: inf would never end"),
        (["kernels", "--budget-s", "9"], "--budget-s: kernels are repeated so many times"),
        (["kernels", "--reference", "none.csv"], "--reference: none.csv: no such file"),
        (["all", "--precision", "fp8"], "--precision: is of the step profile alone"),
        (["kernels", "--device", "cpu", "--reference", "x.csv"], "--reference: published layers"),
        (["dance"], "invalid choice: 'dance'"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """One line, and 2."""
    with pytest.raises(SystemExit, match="2"):
        arguments(words)
    assert said in capsys.readouterr().err


def test_every_step_can_be_asked_for() -> None:
    """And several at once."""
    assert arguments([*STEPS]).steps == list(STEPS)
    assert arguments(["all"]).steps == ["all"]


def test_one_that_cannot_be_run_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is one line, and the worst of all is the exit code."""
    monkeypatch.setattr(kernels, "run", lambda begun: True)
    places = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    given = arguments(["validate", "kernels", *TINY, *places])
    assert run(given, "") == 2
    told = capsys.readouterr()
    assert told.err.startswith("error: validate: ")
    assert told.err.count("\n") == 1
    ends = [line.split(",")[0] for line in told.out.splitlines() if line]
    assert ends == ["validate: could not be run", "kernels: done"]


def test_what_nobody_foresaw_leaves_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As a compiler's or the driver's error: where it was is shown, and the queue goes on."""

    def failing(begun: object) -> bool:
        raise RuntimeError("CUDA error: misaligned address")

    monkeypatch.setattr(kernels, "run", failing)
    monkeypatch.setattr(validating, "run", lambda begun: True)
    places = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    assert run(arguments(["kernels", "validate", *TINY, *places]), "") == 2
    told = capsys.readouterr()
    assert "in failing\n" in told.err
    assert told.err.endswith("RuntimeError: CUDA error: misaligned address\n")
    ends = [line.split(",")[0] for line in told.out.splitlines() if line]
    assert ends == ["kernels: could not be run", "validate: done"]


def test_a_place_for_results_is_looked_for_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before anything is measured that could not be written."""
    monkeypatch.setattr(kernels, "run", lambda begun: pytest.fail("was run"))
    (tmp_path / "out").write_text("a file")
    places = ["--out", str(tmp_path / "out"), "--scratch", str(tmp_path)]
    with pytest.raises(ScenarioError, match="cannot be written"):
        run(arguments(["kernels", *TINY, *places]), "")


def test_killed_half_way(tmp_path: Path) -> None:
    """Nothing that is named is half written, and the same command ends what was begun."""
    words = [*COMMAND, "profile", *TINY, "--budget-s", "10", "--out", str(tmp_path / "out")]
    words += ["--scratch", str(tmp_path / "scratch")]
    partial = tmp_path / "out/profile-fp32.json.partial"
    killed = subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        until_s = time.monotonic() + 60
        while not partial.exists() and time.monotonic() < until_s:
            time.sleep(0.05)
    finally:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert [path.name for path in (tmp_path / "out").iterdir() if path.name[0] != "."] == [
        partial.name
    ]
    before = json.loads(partial.read_text())
    words[words.index("--budget-s") + 1] = "1"
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.stdout.splitlines()[-2].startswith("profile: "), done.stderr
    made = load_profile(tmp_path / "out/profile-fp32.json")
    rounds = min(len(samples["iteration"]) for samples in before["samples"].values())
    assert made.operations["head"][0].repeats >= rounds
    assert not partial.exists()
