"""`moesim profile` as a person runs it."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.cost.kernels.tables import load_kernels
from moesim.facts.catalog import shipped


def _profile(*words: object) -> Result:
    return CliRunner().invoke(app, ["profile", *map(str, words)])


def test_a_shipped_file_of_kernels_is_shown() -> None:
    """Its origin, its families, and how far off each is."""
    done = _profile("show", "h100-sxm-80gb")
    assert done.exit_code == 0
    for words in ("TensorRT-LLM 1.3.0rc20", "mixtral-8x7b", "bf16, fp8", "gemm_shapes", "p90"):
        assert words in done.stdout


def test_the_same_as_json() -> None:
    """Scripts rely on these names; they are added to, never renamed."""
    facts = json.loads(_profile("show", "a100-sxm-80gb", "--json").stdout)
    assert set(facts) == {
        "format", "format_version", "device", "origin", "models", "warnings", "residuals",
        "families", "formats",
    }  # fmt: skip
    assert facts["formats"]["moe"] == ["bf16"]
    assert facts["families"]["decode"]["curves"] == len(load_kernels("a100-sxm-80gb").decode)
    assert set(facts["residuals"]["gemm"]) == {"left_out", "points", "p50", "p90", "quantiles"}


def test_a_profile_of_one_model_is_shown() -> None:
    """Its operations, what they rest on, and its own verdict."""
    done = _profile("show", "demo-cpu")
    assert done.exit_code == 0
    for words in ("attention_decode", "measured", "whole iterations: error p50"):
        assert words in done.stdout
    facts = json.loads(_profile("show", "demo-cpu", "--json").stdout)
    assert facts["operations"]["experts"]["basis"] == "measured"


@pytest.mark.parametrize("name", ["a100-sxm-80gb", "demo-cpu"])
def test_curves_are_drawn(name: str, tmp_path: Path) -> None:
    """A chart a family, or an operation."""
    done = _profile("show", name, "--plot", tmp_path / "p.html")
    assert done.exit_code == 0
    page = (tmp_path / "p.html").read_text()
    titles = ("Products", "Experts hit") if name != "demo-cpu" else ("projections", "sampling")
    for title in titles:
        assert title in page


def test_two_files_are_compared() -> None:
    """More bandwidth reads experts faster."""
    rows = json.loads(_profile("diff", "h100-sxm-80gb", "h200-sxm-141gb", "--json").stdout)
    moe = [row["median_ratio"] for row in rows if row["family"] == "moe"]
    assert 0.65 < sorted(moe)[len(moe) // 2] < 1
    assert "moe" in _profile("diff", "h100-sxm-80gb", "h200-sxm-141gb").stdout
    same = json.loads(_profile("diff", "demo-cpu", "demo-cpu", "--json").stdout)
    assert {row["median_ratio"] for row in same} == {1.0}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("show", "no-such"), "neither a file nor one of the shipped profiles"),
        (("diff", "h100-sxm-80gb", "demo-cpu"), "not of the kind of h100-sxm-80gb"),
        (("import", "aiconfigurator", "--system", "x100", "--out", "k.json"),
         "--system: x100: no shipped device; give --device"),
        (("import", "aiconfigurator", "--system", "h100_sxm", "--from", "none", "--out", "k.json"),
         "none: no such folder"),
        (("import", "vidur", "none", "--device", "h100-sxm-80gb", "--model", "llama-3-8b",
          "--out", "k.json"), "none: no such folder"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_line(
    words: tuple[str, ...], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And nothing is written."""
    monkeypatch.chdir(tmp_path)
    done = _profile(*words)
    assert done.exit_code == 2
    assert said in done.stderr
    assert done.stderr.count("\n") == 1
    assert not list(tmp_path.iterdir())


def test_a_broken_file_is_one_line(tmp_path: Path) -> None:
    """With the place."""
    path = tmp_path / "k.json"
    path.write_text(shipped("profiles")["a100-sxm-80gb"].read_text()[:4000])
    done = _profile("show", path)
    assert done.exit_code == 2
    assert "broken at line" in done.stderr


def test_what_is_wrong_with_a_table_comes_before_its_spikes(tmp_path: Path) -> None:
    """Of dozens of single sizes there is one line; formats that were dropped are not hidden."""
    content = json.loads(shipped("profiles")["h100-sxm-80gb"].read_text())
    assert sum("spikes dropped" in line for line in content["warnings"]) > 20
    content["warnings"].append("moe fp8: 2.1 times as slow as bf16, all dropped")
    (tmp_path / "k.json").write_text(json.dumps(content))
    shown = _profile("show", tmp_path / "k.json").stdout
    assert "warning: moe fp8: 2.1 times as slow as bf16, all dropped\n" in shown
    assert shown.count("spikes dropped") == 1


def test_a_profile_stands_beside_its_datasheet(tmp_path: Path) -> None:
    """Where the device is a shipped one: shares of what is possible; a CPU has no datasheet."""
    text = shipped("profiles")["demo-cpu"].read_text()
    (tmp_path / "p.json").write_text(text.replace("AMD EPYC", "NVIDIA H100 80GB HBM3"))
    beside, alone = (
        _profile("show", tmp_path / "p.json").stdout,
        _profile("show", "demo-cpu").stdout,
    )
    (line,) = (line for line in beside.splitlines() if line.strip().startswith("experts"))
    assert line.split()[-2].endswith("%")
    (line,) = (line for line in alone.splitlines() if line.strip().startswith("experts"))
    assert line.split()[-2] == "-"
