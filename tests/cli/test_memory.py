"""`moesim memory` as a person runs it."""

import json
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner, Result

from moesim.cli import app
from moesim.facts.catalog import shipped
from moesim.facts.mig import GEOMETRIES
from moesim.scenario import load_scenario


def _memory(*words: object) -> Result:
    return CliRunner().invoke(app, ["memory", *map(str, words)])


def test_the_published_system() -> None:
    """Two Mixtrals on an A100, all experts shared, one non-expert set, the rest filled up."""
    done = _memory("mixtral-8x7b", "--variants", 2, "--ratio", 1, "--sets", 1, "--resident", "fit")
    assert done.exit_code == 0
    for words in (
        "mixtral-8x7b on a100-sxm-80gb",
        "1 x 2.99 GiB",
        "x 336 MiB;",
        "32,768 tokens in blocks of 16",
        "NNNSSSS",
        "\nfits\n",
    ):
        assert words in done.stdout


def test_what_does_not_fit_names_the_ways_out() -> None:
    """An answer, not a failure."""
    done = _memory("llama-3-70b", "--slice", "3g.40gb", "--precision", "int4")
    assert done.exit_code == 0
    assert "does not fit: needs " in done.stdout
    assert "take 7g.80gb (79 GiB)" in done.stdout


def test_a_format_that_the_device_does_not_compute_with_is_refused() -> None:
    """In the words in which `moesim simulate` refuses it; what is offered instead it has."""
    done = _memory("mixtral-8x7b", "--device", "a100-sxm-80gb", "--precision", "fp8")
    assert done.exit_code == 2
    assert "no fp8_flop_per_s, which weights in fp8 need; take precision bf16, int8" in done.output
    short = _memory("mixtral-8x7b", "--device", "a100-sxm-80gb", "--json")
    assert "store the experts in int8" in json.loads(short.stdout)["remedies"]
    fits = _memory("mixtral-8x7b", "--device", "h100-sxm-80gb", "--precision", "fp8")
    assert "\nfits\n" in fits.stdout


def test_the_same_as_json() -> None:
    """Scripts rely on these names; they are added to, never renamed."""
    done = _memory(
        "switch-base-8", "--variants", 4, "--ratio", 0.5, "--slice", "1g.10gb",
        "--kv-tokens", 50_000, "--kv-precision", "fp8", "--rest-precision", "bf16", "--json",
    )  # fmt: skip
    facts = json.loads(done.stdout)
    assert set(facts) == {
        "model", "where", "demand", "expert_copies", "resident_copies", "slice_bytes",
        "non_expert_bytes", "shared_expert_bytes", "private_expert_bytes", "kv_bytes",
        "activation_bytes", "reserved_bytes", "host_expert_bytes", "host_non_expert_bytes",
        "used_bytes", "free_bytes", "short_by_bytes", "fits", "remedies",
    }  # fmt: skip
    assert facts["where"] == "1g.10gb of a100-sxm-80gb"
    assert facts["demand"]["precision"] == {"experts": "fp32", "rest": "bf16", "kv": "fp8"}
    assert facts["slice_bytes"] == GEOMETRIES["a100-80gb"].by_name["1g.10gb"].memory_bytes
    assert facts["expert_copies"] == 48 + 4 * 48
    assert facts["kv_bytes"] == 50_000 * 2 * 12 * 12 * 64
    assert facts["non_expert_bytes"] == 4 * 2 * 166_354_176
    assert facts["fits"] is True


def test_a_checkpoint_of_ones_own(tmp_path: Path) -> None:
    """By its folder; with the cache of one longest sequence unless told."""
    config = json.loads(Path("data/models/demo-moe.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config))
    facts = json.loads(_memory(tmp_path, "--device", "cpu-2core", "--json").stdout)
    assert facts["demand"]["kv_blocks"] * facts["demand"]["block_size"] == 1024
    assert facts["reserved_bytes"] == 0
    assert facts["non_expert_bytes"] + facts["private_expert_bytes"] == 4 * 62_151_552


def test_a_scenario_slice_by_slice(tmp_path: Path) -> None:
    """By its shipped name or its file, as text and as JSON; slices alike are shown once."""
    done = _memory("mig")
    assert done.exit_code == 0
    assert done.stdout.count("h200-sxm-141gb/3g.71gb: ") == 2
    assert "6,144 x 9 MiB" in done.stdout
    assert done.stdout.rstrip().endswith("everything fits")
    path = _written(tmp_path, replicas=3)
    (deployment,) = json.loads(_memory(path, "--json").stdout)["deployments"]
    (found,) = deployment["slices"]
    assert (found["slice"], found["count"], deployment["fits"]) == ("cpu-2core", 3, True)
    assert set(found) >= {
        "kv_blocks",
        "devices",
        "used_bytes",
        "free_bytes",
        "remedies",
        "kv_bytes",
    }


def test_every_deployment_of_a_scenario(tmp_path: Path) -> None:
    """Its own and the alternatives; the page draws them all."""
    page = tmp_path / "page.html"
    done = _memory("two-variants", "--plot", page)
    names = list(load_scenario("two-variants").side_by_side())
    assert [line for line in done.stdout.splitlines() if line in names] == names
    assert f"drawn in {page}" in done.stdout.replace("\n", "")
    assert all(name in page.read_text() for name in names[1:])


def test_a_slice_that_is_too_small_says_so(tmp_path: Path) -> None:
    """An answer here; of `simulate` the same is an error."""
    path = _written(tmp_path, kv_blocks=10_000_000)
    done = _memory(path)
    assert done.exit_code == 0
    assert "does not fit: needs 916 GiB, has 8 GiB" in done.stdout
    assert "set kv_blocks to " in done.stdout
    _memory(path, "--plot", tmp_path / "page.html")
    assert "set kv_blocks to " in (tmp_path / "page.html").read_text()
    refused = CliRunner().invoke(app, ["simulate", str(path)])
    assert refused.exit_code == 2
    assert "model demo does not fit on cpu-2core: weights " in refused.stderr


def test_a_name_of_two_things_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scenario's file called like a shipped model, and a checkpoint called like a scenario."""
    monkeypatch.chdir(tmp_path)
    Path("mixtral-8x7b").write_text("name: x\n")
    Path("mig").mkdir()
    Path("mig/config.json").write_text(shipped("models")["demo-moe"].read_text())
    for name, other in (("mixtral-8x7b", "models"), ("mig", "scenarios")):
        done = _memory(name)
        assert (done.exit_code, done.stderr.count("\n")) == (2, 1)
        assert f"{name}: both a model and a scenario; give the path" in done.stderr
        assert str(shipped(other)[name]) in done.stderr
        assert str(tmp_path / name) in done.stderr
    assert _memory(tmp_path / "mig", "--device", "cpu-2core").exit_code == 0


def _written(folder: Path, **deployment: int) -> Path:
    """Write the quickstart with a deployment of its own."""
    content = load_scenario("quickstart").to_content()
    content["deployment"] |= deployment
    content["hardware"]["count"] = 8
    path = folder / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def test_the_chart_is_written(tmp_path: Path) -> None:
    """And where it is is said, unless the output is JSON."""
    page = tmp_path / "page.html"
    done = _memory("llama-3-8b", "--plot", page)
    assert f"drawn in {page}" in done.stdout.replace("\n", "")
    assert "What sits on the slice" in page.read_text()
    json.loads(_memory("llama-3-8b", "--plot", page, "--json").stdout)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["nope"], "nope: neither a file nor one of the shipped models: "),
        (["x" * 300], "neither a file nor one of the shipped models: "),
        (["mig", "--device", "h100-sxm-80gb"], "--device: the scenario says that; only --plot"),
        (["llama-3-8b", "--device", "nope"], "the shipped hardware: a100-pcie-80gb, a100-sxm-40gb"),
        (["llama-3-8b", "--slice", "5g"], "no MIG profile '5g'; it has 7g.80gb"),
        (["llama-3-8b", "--device", "cpu-2core", "--slice", "1g.10gb"], "cannot be divided by MIG"),
        (["llama-3-8b", "--precision", "int3"], "'int3' is not one of fp32"),
        (["llama-3-8b", "--resident", "all"], "--resident: 'all' is neither a share from 0 to 1"),
        (["llama-3-8b", "--resident", "1.2"], "resident: 1.2 must be between 0 and 1"),
        (["llama-3-8b", "--variants", "9" * 400], "Invalid value for '--variants'"),
        (["llama-3-8b", "--kv-tokens", "9" * 400], "Invalid value for '--kv-tokens'"),
        (["llama-3-8b", "--max-num-seqs", "9" * 400], "Invalid value for '--max-num-seqs'"),
        (["llama-3-8b", "--precision", ""], "--precision: is empty; give a value or leave it out"),
        (["llama-3-8b", "--slice="], "--slice: is empty; give a value or leave it out"),
        (["mig", "--plot", "."], ".: is a folder; give a file name"),
        (["llama-3-8b", "--sets", "2"], "non_expert_sets: 2 must be between 1 and"),
    ],
    ids=str,
)
def test_a_wrong_word_is_one_line(words: list[str], message: str) -> None:
    """On stderr, with the way out."""
    done = _memory(*words)
    assert done.exit_code == 2
    assert done.stdout == ""
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1
