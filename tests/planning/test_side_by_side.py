"""Deployments side by side: pairing by run, figures, and what does not compare."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from moesim.errors import ScenarioError
from moesim.planning.side_by_side import FIGURES, same_traffic, side_by_side
from moesim.scenario import Quality, Scenario, scenario_from
from moesim.simulation.replications import Replications, replicate
from moesim.views.deployments_terminal import show_deployments


def scenario(name: str, *, replicas: int = 1, rate_per_s: float = 8.0) -> Scenario:
    return scenario_from(
        {
            "name": name,
            "duration_s": 20,
            "models": {"m": {"architecture": "demo-moe", "profile": "demo-cpu"}},
            "tenants": {
                "t": {
                    "model": "m",
                    "arrivals": {"kind": "poisson", "rate_per_s": rate_per_s},
                    "prompt_tokens": {"kind": "fixed", "tokens": 80},
                    "output_tokens": {"kind": "fixed", "tokens": 20},
                    "slo": {"turnaround_s": 0.6},
                }
            },
            "hardware": {"device": "cpu-2core", "count": 2},
            "deployment": {"kind": "dedicated", "replicas": replicas},
        }
    )


@pytest.fixture(scope="module")
def found() -> dict[str, Replications]:
    """One replica and two, nine runs each."""
    return {
        name: replicate(scenario(name, replicas=count), replications=9)
        for name, count in (("one", 1), ("two", 2))
    }


def test_a_row_for_each_figure(found: dict[str, Replications]) -> None:
    """The medians and ends are those of the replications' own metrics."""
    table = side_by_side(found).set_index(["deployment", "metric", "statistic"])
    assert len(table) == 2 * len(FIGURES)
    metrics = found["two"].metrics()
    row = table.loc[("two", "turnaround_s", "mean")]
    assert row["median"] == metrics["overall"]["turnaround_s"]["mean"]
    assert [row["low"], row["high"]] == metrics["intervals"]["overall"]["turnaround_s"]["mean"]
    assert table.loc[("two", "goodput_rps", ""), "median"] == metrics["overall"]["goodput_rps"]


def test_the_first_is_the_measure(found: dict[str, Replications]) -> None:
    """Its own ratios are 1, whatever chance did."""
    table = side_by_side(found)
    own = table[table["deployment"] == "one"]
    assert (own[["ratio", "ratio_low", "ratio_high"]].to_numpy() == 1).all()


def test_pairing_takes_chance_out(found: dict[str, Replications]) -> None:
    """Two replicas answer sooner in every single run, though the intervals overlap."""
    table = side_by_side(found).set_index(["deployment", "metric", "statistic"])
    figure = ("turnaround_s", "mean")
    one, two = table.loc[("one", *figure)], table.loc[("two", *figure)]
    assert two["ratio_high"] < 1
    paired = np.log(two["ratio_high"] / two["ratio_low"])
    unpaired = np.log(two["high"] / two["low"]) + np.log(one["high"] / one["low"])
    assert paired < unpaired


def test_single_runs_have_a_ratio_and_no_interval() -> None:
    """One run each: the ratio of these two."""
    single = {
        name: replicate(scenario(name, replicas=count), replications=1)
        for name, count in (("one", 1), ("two", 2))
    }
    row = side_by_side(single).set_index(["deployment", "metric", "statistic"])
    two = row.loc[("two", "ttft_s", "p50")]
    assert np.isnan(two["low"])
    assert two["ratio"] == two["ratio_low"] < 1


def test_what_is_known_of_quality_stands_beside(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A row a deployment that names a curve, and a line under the table."""
    (tmp_path / "curve.yaml").write_text(
        "{name: c, metric: score, better: higher, axis: ratio, variants: 2, basis: measured, "
        "points: [{at: 0, value: 7.5}], source: here, evidence: V}"
    )
    quality = Quality(curve=str(tmp_path / "curve.yaml"))
    told = scenario("told").model_copy(update={"quality": quality})
    table = side_by_side(
        {
            "told": replicate(told, replications=1),
            "untold": replicate(scenario("untold"), replications=1),
        }
    )
    (row,) = table[table["metric"] == "quality"].to_dict("records")
    assert (row["deployment"], row["statistic"], row["median"]) == ("told", "score", 7.5)
    show_deployments(table.assign(load=1.0))
    out = capsys.readouterr().out
    assert "told: quality: score 7.5 (higher is better) as served alone; measured" in out
    assert "untold: quality" not in out


def test_other_traffic_does_not_compare() -> None:
    """The scenario and the tenant are named."""
    with pytest.raises(ScenarioError, match=r"b: tenants.t: not as in a"):
        same_traffic({"a": scenario("a"), "b": scenario("b", rate_per_s=9.0)})


def test_deployments_of_one_workload_compare() -> None:
    """Replicas and names may differ."""
    same_traffic({"a": scenario("a"), "b": scenario("b", replicas=2)})
    longer = scenario("b").model_copy(update={"duration_s": 30})
    with pytest.raises(ScenarioError, match=r"b: duration_s: 30, in a it is 20"):
        same_traffic({"a": scenario("a"), "b": longer})


def _verdicts(kinds: list[str]) -> Replications:
    """Return a run and some redrawn ones, each with a verdict of its own."""
    whole = replicate(scenario("one"), replications=len(kinds))
    verdicts = [
        {**run, "steady": {"kind": kind, "sentence": f"{kind}: run {index}"}}
        for index, (run, kind) in enumerate(zip(whole.runs, kinds[1:], strict=True))
    ]
    first = replace(whole.first, table=whole.first.table.take(np.arange(40)))
    assert first.metrics()["steady"]["kind"] == kinds[0] == "too short"
    return replace(whole, first=first, runs=tuple(verdicts))


@pytest.mark.parametrize(
    ("redrawn", "told"),
    [
        (["too short"] * 4, "too short to tell: 40 requests completed, it takes 50"),
        (
            ["too short", "too short", "steady", "steady"],
            "too short to tell: 40 requests completed, it takes 50 (so in 50 % of the runs)",
        ),
        (
            ["too short", "above capacity", "above capacity", "above capacity"],
            "above capacity: run 1 (so in 75 % of the runs)",
        ),
    ],
)
def test_a_run_that_is_not_steady_is_said_to_be(redrawn: list[str], told: str) -> None:
    """As `simulate` says it; what most runs are above, the first one is too."""
    table = side_by_side({"a": _verdicts(["too short", *redrawn])})
    notes = table[(table["metric"] == "note") & (table["statistic"] != "warning")]
    assert notes["note"].tolist() == [told]


def test_what_limits_the_figures_is_said(capsys: pytest.CaptureFixture[str]) -> None:
    """Refused requests with the reason, a queue that grows, warnings: once over all loads."""
    crowded = scenario("crowded", rate_per_s=200)
    tenant = crowded.tenants["t"]
    lengths = tenant.prompt_tokens.model_copy(update={"tokens": 2000})
    long = {"t": tenant.model_copy(update={"prompt_tokens": lengths})}
    refused = replicate(crowded.model_copy(update={"tenants": long}), replications=1)
    doubtful = replace(refused.first, warnings=("one thing", "another"))
    found = {
        "crowded": replicate(crowded, replications=1),
        "long": replace(refused, first=doubtful),
    }
    table = side_by_side(found)
    notes = table[table["metric"] == "note"].groupby(["deployment", "statistic"])["note"].first()
    assert "requests refused: " in notes["long", "refused"]
    assert "above capacity" in notes["crowded", "above capacity"]
    show_deployments(pd.concat([table.assign(load=load) for load in (1.0, 2.0)]))
    out = capsys.readouterr().out
    assert out.count("requests refused: ") == 1
    assert out.count("crowded (load x 1, 2): above capacity") == 1
    assert out.count("long: warning: one thing") == out.count("long: warning: another") == 1
