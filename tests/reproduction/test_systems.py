"""Published experiments: which of their claims come out, and which do not."""

import json
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.facts.catalog import load_model
from moesim.reproduction import beyond, historical
from moesim.reproduction.claims import NOT, REPRODUCED, SHAPE, UNCHECKABLE
from moesim.reproduction.markdown import markdown
from moesim.reproduction.names import NAMES
from moesim.reproduction.outcome import Outcome
from moesim.reproduction.page import page
from moesim.reproduction.picture import Picture
from moesim.reproduction.systems import SYSTEMS, Reproductions
from moesim.reproduction.trials import TRIALS

DOCS = Path(__file__).parents[2] / "docs/reproductions.md"

VERDICTS = {
    "friendli": {
        "dolly": REPRODUCED,
        "dense.operations": REPRODUCED,
        "dense.traffic": REPRODUCED,
        "dense.latency": SHAPE,
        "dense.load": UNCHECKABLE,
        "dense.throughput": SHAPE,
        "dense.slo": UNCHECKABLE,
        "fused.latency": NOT,
        "fused.load": UNCHECKABLE,
        "fused.first": UNCHECKABLE,
        "fused.chunked": UNCHECKABLE,
        "fused.throughput": SHAPE,
        "fused.slo": UNCHECKABLE,
    },
    "nvidia": {
        "online": REPRODUCED,
        "online.any": REPRODUCED,
        "in_flight": REPRODUCED,
        "peak": REPRODUCED,
        "offline": REPRODUCED,
        "offline.any": NOT,
        "offline.step": NOT,
        "offline.batch": UNCHECKABLE,
        "later.fp8": UNCHECKABLE,
        "later.fp16": UNCHECKABLE,
        "formats": NOT,
        "formats.first": UNCHECKABLE,
    },
    "expert-router": {
        "gateway": SHAPE,
        "plateau": SHAPE,
        "experts.plateau": SHAPE,
        "throughput": SHAPE,
        "ttft": SHAPE,
        "tpot": SHAPE,
        "range": SHAPE,
        "large.ttft": SHAPE,
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
        "mig.ttft.by_layer": UNCHECKABLE,
        "mig.ttft.all_layers": UNCHECKABLE,
        "consolidated.saturation": REPRODUCED,
        "mig.saturation": NOT,
        "single.saturation": SHAPE,
        "single.throughput": SHAPE,
        "single.ttft": UNCHECKABLE,
        "time_shared.swap": UNCHECKABLE,
        "swap": UNCHECKABLE,
        "swap.packed": REPRODUCED,
        "copy": REPRODUCED,
        "found": REPRODUCED,
        "token": REPRODUCED,
        "mig.found": REPRODUCED,
        "mig.token": REPRODUCED,
        "prompt": REPRODUCED,
        "mig.prompt": REPRODUCED,
        "prompt.s": REPRODUCED,
        "mig.prompt.s": REPRODUCED,
        "service": REPRODUCED,
        "mig.service": REPRODUCED,
        "mig.tokens.alone": REPRODUCED,
        "mig.contention": SHAPE,
        "wait": SHAPE,
        "md1": REPRODUCED,
        "mig.md1": REPRODUCED,
        "quality.two": UNCHECKABLE,
        "quality.four": SHAPE,
    },
}

SHORT = ("A100", "H200"), ("consolidation ratio on an A100",)
"""Settings and sweeps of the study beyond qos-moe that are run here: the others take longer."""

FEW = (1.0, 2.0, 4.0, 8.0, 15.0, 60.0)
"""Loads that friendli's engines are run at here, the last in place of 90, for the same reason."""


@cache
def outcome(system: str) -> Outcome:
    """Run a system in the middle trial alone: a fifth of the time."""
    settings, sweeps = SHORT
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(historical, "LOADS", FEW)
        patch.setattr(historical, "EDGE_PER_S", FEW[-1])
        patch.setattr(beyond, "SETTINGS", {name: beyond.SETTINGS[name] for name in settings})
        patch.setattr(beyond, "SWEEPS", [each for each in beyond.SWEEPS if each.title in sweeps])
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


def found_pictures(found: Outcome) -> Iterator[Picture]:
    """Yield a system's plots and its annexes'."""
    yield from found.pictures
    for annex in found.annexes:
        yield from annex.pictures


@pytest.mark.parametrize("system", NAMES)
def test_both_pages_hold_every_claim_constant_and_curve(system: str) -> None:
    found = Reproductions(outcomes=(outcome(system),), elapsed_s=0.0)
    html, text = page(found), markdown(found, "moesim reproduce")
    for claim in found.claims:
        assert claim.claim in text
    pictures = [*found_pictures(outcome(system))]
    assert html.count('<div class="chart">') == len(pictures)
    assert all(f"\n{picture.title}, {picture.y_title}\n" in text for picture in pictures)
    for annex in outcome(system).annexes:
        for row in annex.table.rows:
            assert f"| {' | '.join(row)} |" in text
    assert html.count("<script") >= 1
    assert "<script src=" not in html
    for constant in outcome(system).constants:
        assert f"| {constant.name} | {constant.value} |" in text


def test_running_every_expert_is_mixtral_with_eight_of_eight() -> None:
    """The dense baseline differs in nothing else."""
    folder = Path(str(files("moesim.data")))
    efficient = load_model(str(folder / "models/mixtral-8x7b.json"))
    dense = load_model(str(folder / "published/mixtral-8x7b-dense.json"))
    assert dense == replace(efficient, num_experts_per_tok=8)


def test_saturations_are_off_by_more_than_half_a_step_of_the_sweep() -> None:
    """As the notes of qos-moe say of both: rates were swept in steps of 0.01."""
    found = outcome("qos-moe")
    names = dict(zip(found.publication.claims, found.claims, strict=True))
    for name, published in (("consolidated.saturation", 0.06), ("mig.saturation", 0.04)):
        simulated = names[name].simulated
        assert simulated is not None
        assert 0.005 < abs(simulated - published) < 0.01


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
