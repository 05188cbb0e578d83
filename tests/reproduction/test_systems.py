"""Published experiments: which of their claims come out, and which do not."""

import json
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.cost.expected import Rates, expected_s
from moesim.facts.catalog import load_model
from moesim.reproduction.claims import NOT, REPRODUCED, SHAPE, UNCHECKABLE
from moesim.reproduction.markdown import markdown
from moesim.reproduction.names import NAMES
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.page import page
from moesim.reproduction.systems import SYSTEMS, Reproductions
from moesim.reproduction.trials import TRIALS

DOCS = Path(__file__).parents[2] / "docs/reproductions.md"

VERDICTS = {
    "friendli": {
        "dense.latency": SHAPE,
        "dense.load": UNCHECKABLE,
        "dense.throughput": SHAPE,
        "dense.slo": UNCHECKABLE,
        "fused.latency": NOT,
        "fused.load": UNCHECKABLE,
        "fused.throughput": SHAPE,
        "fused.slo": UNCHECKABLE,
    },
    "nvidia": {
        "online": NOT,
        "online.fitted": REPRODUCED,
        "offline": NOT,
        "offline.batch": UNCHECKABLE,
        "formats": NOT,
    },
    "expert-router": {
        "gateway": SHAPE,
        "plateau": SHAPE,
        "experts.plateau": SHAPE,
        "throughput": SHAPE,
        "ttft": SHAPE,
        "tpot": SHAPE,
        "large": SHAPE,
        "configuration": SHAPE,
        "skew": SHAPE,
        "absolute": UNCHECKABLE,
    },
    "qos-moe": {
        "consolidated.turnaround": REPRODUCED,
        "mig.turnaround": UNCHECKABLE,
        "reduction": REPRODUCED,
        "consolidated.ttft": REPRODUCED,
        "mig.ttft": NOT,
        "consolidated.saturation": REPRODUCED,
        "mig.saturation": NOT,
        "single.saturation": SHAPE,
        "time_shared.swap": UNCHECKABLE,
        "quality.two": UNCHECKABLE,
        "quality.four": SHAPE,
    },
}


@cache
def outcome(system: str) -> Outcome:
    """Run a system in the middle trial alone: a fifth of the time."""
    return SYSTEMS[system](lambda _: None, TRIALS[2:3])


@pytest.mark.parametrize("system", NAMES)
def test_the_verdicts(system: str) -> None:
    """In the run with the median error of the kernels, and on the page of all runs."""
    found = outcome(system)
    names = dict(zip(found.publication.claims, found.claims, strict=True))
    assert {name: claim.verdict for name, claim in names.items()} == VERDICTS[system]
    text = DOCS.read_text()
    for claim in found.claims:
        (line,) = (line for line in text.splitlines() if line.startswith(f"| {claim.claim} |"))
        assert line.split(" | ")[5].startswith(claim.verdict), claim.claim


def test_every_system_is_named_and_pinned() -> None:
    assert list(NAMES) == list(SYSTEMS) == list(VERDICTS)


@pytest.mark.parametrize("system", NAMES)
def test_what_is_not_reproduced_or_not_checkable_says_why(system: str) -> None:
    for claim in outcome(system).claims:
        assert bool(claim.why) == (claim.verdict in (NOT, UNCHECKABLE)), claim.claim


@pytest.mark.parametrize("system", NAMES)
def test_both_pages_hold_every_claim_constant_and_curve(system: str) -> None:
    found = Reproductions(outcomes=(outcome(system),), elapsed_s=0.0)
    html, text = page(found), markdown(found, "moesim reproduce")
    for claim in found.claims:
        assert claim.claim in text
    assert html.count('<div class="chart">') == len(outcome(system).pictures)
    assert html.count("<script") >= 1
    assert "<script src=" not in html
    for constant in outcome(system).constants:
        assert f"| {constant.name} | {constant.value} |" in text


def test_running_every_expert_is_four_times_the_operations_and_the_same_bytes() -> None:
    """Of 2 experts a token 8: the dense baseline differs in nothing else."""
    folder = Path(str(files("moesim.data")))
    efficient = load_model(str(folder / "models/mixtral-8x7b.json"))
    dense = load_model(str(folder / "published/mixtral-8x7b-dense.json"))
    assert dense == replace(efficient, num_experts_per_tok=8)
    rates = Rates(flop_per_s=1e12, bytes_per_s=1e30)
    experts = [expected_s(spec, rates)["experts"](512, 8) for spec in (efficient, dense)]
    assert experts[1] == pytest.approx(4 * experts[0])
    rates = Rates(flop_per_s=1e30, bytes_per_s=1e12)
    experts = [expected_s(spec, rates)["experts"](512, 8) for spec in (efficient, dense)]
    assert experts[1] == pytest.approx(experts[0])


def test_the_command_prints_claims(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for system, found in {name: outcome(name) for name in NAMES}.items():
        monkeypatch.setitem(SYSTEMS, system, lambda *_, found=found: found)
    report = tmp_path / "report.html"
    done = CliRunner().invoke(app, ["reproduce", "all", "--json", "--report", str(report)])
    claims = json.loads(done.stdout)
    assert {claim["system"] for claim in claims} == set(NAMES)
    assert {"claim", "published", "simulated", "interval", "evidence", "verdict"} <= set(claims[0])
    assert report.read_text().startswith("<!doctype html>")


def test_an_unknown_system_is_one_line() -> None:
    done = CliRunner().invoke(app, ["reproduce", "nobody"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == f"error: reproduce: 'nobody' is not one of {', '.join(NAMES)} or all\n"
