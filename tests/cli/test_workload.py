"""`moesim workload inspect` as a person runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.traffic.formats import LAYOUTS, SERVEGEN

HEADER = "arrival_s,prompt_tokens,output_tokens,tenant\n"
ROWS = "0,10,5,chat\n1,20,6,code\n3,30,0,chat\n"


def _inspect(*words: object) -> Result:
    return CliRunner().invoke(app, ["workload", "inspect", *map(str, words)])


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Write a trace of two tenants."""
    path = tmp_path / "trace.csv"
    path.write_text(HEADER + ROWS)
    return path


def test_a_trace_is_shown(trace: Path) -> None:
    """Its layout, its lengths, its tenants, its rate over time."""
    done = _inspect(trace)
    assert done.exit_code == 0
    for words in (
        "trace.csv: plain, 3 requests in 3 s",
        "0.667 requests/s",
        "p99",
        "66.7 %",
        "└──",
    ):
        assert words in done.stdout


def test_the_same_facts_as_json(trace: Path) -> None:
    """Scripts rely on these names; they are added to, never renamed."""
    facts = json.loads(_inspect(trace, "--json").stdout)
    assert set(facts) == {
        "file", "format", "requests", "skipped_rows", "span_s", "rate_per_s", "cv", "dispersion",
        "peak", "course", "prompt_tokens", "output_tokens", "tenants", "prefix",
    }  # fmt: skip
    assert facts["file"] == str(trace)
    assert facts["output_tokens"]["zeros"] == 1
    assert set(facts["prompt_tokens"]) >= {"mean", "min", "p1", "p50", "p99", "max"}
    assert facts["tenants"]["chat"]["requests"] == 2


def test_the_charts_are_written(trace: Path, tmp_path: Path) -> None:
    """And where they are is said, unless the output is JSON."""
    page = tmp_path / "page.html"
    assert f"drawn in {page}" in _inspect(trace, "--plot", page).stdout.replace("\n", "")
    assert "Rate over time" in page.read_text()
    json.loads(_inspect(trace, "--plot", page, "--json").stdout)


def test_bad_rows_end_it_unless_they_are_skipped(trace: Path) -> None:
    """One line that names the option; with it, a warning and a count."""
    trace.write_text(HEADER + "0,x,5,chat\n" + ROWS)
    refused = _inspect(trace)
    assert refused.exit_code == 2
    assert refused.stdout == ""
    assert refused.stderr.startswith(f"error: {trace}: line 2: prompt_tokens: 'x' is not a number")
    assert "--skip-bad-rows" in refused.stderr
    assert refused.stderr.count("\n") == 1
    skipped = _inspect(trace, "--skip-bad-rows")
    assert skipped.exit_code == 0
    assert "bad rows skipped: 1, the first at line 2" in skipped.stderr
    assert "1 skipped" in skipped.stdout


@pytest.mark.parametrize("content", [b"", b"a,b\n1,2\n", b"\x1f\x8b", b"{", b"\xff\xfe"])
def test_what_is_no_trace_is_one_line(tmp_path: Path, content: bytes) -> None:
    """Whatever the file."""
    path = tmp_path / "file"
    path.write_bytes(content)
    done = _inspect(path)
    assert done.exit_code == 2
    assert done.stderr.startswith(f"error: {path}: ")
    assert done.stderr.count("\n") == 1


def test_servegen_files_are_shown(tmp_path: Path) -> None:
    """Windows, lengths and rates, each by its columns."""
    windows = (
        "client_id,window_start_s,rate_req_s,cv,arrival_family,param1,param2\n3,0,2,1,Gamma,1,1\n"
    )
    lengths = {"client_id": 3, "window_start_s": 0, "input_tokens_quantiles": [1, 2],
               "output_tokens_quantiles": [3, 4]}  # fmt: skip
    path = tmp_path / "file"
    for text, name in (
        (windows, "servegen-trace"),
        (json.dumps(lengths), "servegen-lengths"),
        ("client_id,mean_rate_req_s\n3,2\n", "servegen-rates"),
    ):
        path.write_text(text)
        done = _inspect(path, "--plot", tmp_path / "page.html")
        assert done.exit_code == 0, done.stderr
        assert f"file: {name}, " in done.stdout
        assert list(json.loads(_inspect(path, "--json").stdout)["clients"]) == ["3"]


def test_the_help_lists_every_layout_and_its_columns() -> None:
    """The message for an unknown layout sends people here."""
    text = " ".join(_inspect("--help").stdout.split())
    known = {name: layout.columns for name, layout in LAYOUTS.items()} | SERVEGEN
    for name, columns in known.items():
        assert f"{name}: {', '.join(columns)}" in text
