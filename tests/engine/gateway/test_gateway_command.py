"""`moesim-engine gateway` as a person runs it, and what it measures as a scenario takes it."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from engine import cli
from engine.gateway.experts import shares_of
from engine.gateway.gateway import Gateway
from engine.gateway.latency import measure
from engine.gateway.prompts import read_prompts
from moesim import deployment
from moesim.errors import EngineError, MoesimWarning


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run `moesim-engine gateway`; return the exit code, what it printed and what it said wrong."""

    def run(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["moesim-engine", "gateway", *map(str, words)])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(ended.value.code or 0), said.out, said.err

    return run


@pytest.fixture
def file(texts: list[str], tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n\n".join(texts) + "\n")
    return path


def test_train_route_measure(command: Any, file: Path, tmp_path: Path) -> None:
    """The three commands one after the other; what is measured is a scenario's gateway."""
    out = tmp_path / "gateway.npz"
    code, said, _ = command("train", file, "--clusters", 3, "--out", out)
    assert code == 0
    assert "36 words in 36 dimensions" in said
    assert "cluster 0:  50.0% of the prompts; " in said
    code, said, _ = command("route", out, "--text", "a rudder", "--text", "an oven")
    assert (code, said) == (0, "0\n1\n")
    code, said, _ = command("measure", out, file, "--experts", "small,large,small", "--json")
    measured = json.loads(said)
    assert measured["shares"] == {"small": 70, "large": 30}
    assert measured["prompts"] == sum(spell["prompts"] for spell in measured["by_length"]) == 100
    section = {key: measured[key] for key in ("classify_s", "shares")}
    gateway = deployment.Gateway.model_validate({"name": "router", **section})
    assert gateway.classify_s == measured["mean_s"] > 0


def test_measured_for_people(command: Any, file: Path, saved: Path) -> None:
    """A table, then the lines for the scenario."""
    _, said, _ = command("measure", saved, file)
    assert said.splitlines()[0].split() == ["characters", "prompts", "median", "us", "p90", "us"]
    assert said.splitlines()[-1] == "  shares: {cluster-0: 50, cluster-1: 30, cluster-2: 20}"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["route", "{file}", "--text", "x"], "not an npz file"),
        (["train", "{file}", "--clusters", "101", "--out", "o.npz"], "fewer than 101 clusters"),
        (["train", "none.txt", "--clusters", "2", "--out", "o.npz"], "none.txt: not readable"),
        (["train", "{file}", "--clusters", "0", "--out", "o.npz"], "--clusters"),
        (["train", "{file}", "--clusters", "2", "--out", "o", "--seed", str(2**32)], "seed: 4294"),
        (["measure", "{saved}", "{file}", "--experts", "a,b"], "has 2 models, the gateway 3"),
        (["measure", "{saved}", "{file}", "--experts", "a,,b"], "is not a list of models"),
    ],
)
def test_wrong_input_is_one_line(
    command: Any, file: Path, saved: Path, words: list[str], expected: str
) -> None:
    code, said, wrong = command(*(word.format(file=file, saved=saved) for word in words))
    assert (code, said, wrong.count("\n")) == (2, "", 1)
    assert wrong.startswith("error: ")
    assert expected in wrong


def test_a_model_without_prompts_is_left_out() -> None:
    """A scenario would refuse a share of nothing."""
    with pytest.warns(MoesimWarning, match="no prompt is for maths;"):
        assert shares_of(["code", "maths"], [3, 0]) == {"code": 3}


def test_lengths_are_sorted_by_powers_of_two(gateway: Gateway) -> None:
    """Every prompt in the row of its length; the overall figures lie between those of the rows."""
    latency = measure(gateway, ["", "a", "ab", "mast" * 2, "mast" * 16, "mast " * 13])
    rows = [(spell.characters, spell.prompts) for spell in latency.by_length]
    assert rows == [(1, 2), (2, 1), (8, 1), (64, 1), (128, 1)]
    medians = [spell.median_s for spell in latency.by_length]
    assert min(medians) <= latency.median_s <= max(medians)
    assert min(medians) <= latency.mean_s <= max(medians)
    assert latency.median_s <= latency.p90_s
    assert sum(latency.counts) == latency.prompts == 6


def test_prompts_from_jsonl(tmp_path: Path) -> None:
    """Other keys do not matter; lines may hold line breaks, escaped."""
    file = tmp_path / "prompts.jsonl"
    file.write_text('{"prompt": "one\\ntwo", "id": 3}\n\n{"prompt": "three\u2028four"}\n')
    assert read_prompts(file) == ["one\ntwo", "three\u2028four"]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ('{"prompt": "one"}\n{"prompt": 3}\n', r"line 2: prompt: not a text"),
        ('{"text": "one"}\n', r"line 1: prompt: not a text"),
        ('["one"]\n', r"line 1: prompt: not a text"),
        ('{"prompt": "one"\n', r"line 1: not JSON"),
        ("\n \n", r"has no prompt"),
    ],
)
def test_a_bad_line_is_named(content: str, expected: str, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(content)
    with pytest.raises(EngineError, match=expected):
        read_prompts(file)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="not readable as text"):
        read_prompts(file)
