"""Validation: both tables written, interruptions resumed, what does not belong together refused."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from calibration.cli import app
from calibration.host import Host
from calibration.plan import Plan
from calibration.validate import validate
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError, ProfileError, ScenarioError
from moesim.evidence.validation import load_validation
from moesim.scenario import load_scenario, scenario_from
from moesim.serving.policies import POLICIES
from moesim.serving.records import read_records
from moesim.simulation.run import simulate


@pytest.fixture
def plan(workload: Path, profile_file: Path, checkpoint: Path) -> Plan:
    return Plan(
        scenario=load_scenario(workload),
        profile=load_profile(profile_file),
        model=str(checkpoint),
        runs=2,
        seed=0,
        device=torch.device("cpu"),
    )


def silent(fraction: float, doing: str) -> None:
    pass


def test_serves_and_predicts_the_same_requests(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Measured and predicted tables hold the same requests, all completed; nothing else is left."""
    validation = validate(plan, tmp_path / "v", host, silent)
    assert len(validation.measured) == 2
    same = ["request_id", "tenant", "arrival_s", "prompt_tokens", "output_tokens", "outcome"]
    for measured in validation.measured:
        assert measured[same].equals(validation.predicted[same])
        assert (measured["first_token_s"] > measured["arrival_s"]).all()
        assert (measured["finish_s"] > measured["first_token_s"]).all()
    assert {path.name for path in (tmp_path / "v").iterdir()} == {
        "comparison.json",
        "measured-1.parquet",
        "measured-2.parquet",
        "predicted.parquet",
        "validation.json",
    }
    again = load_validation(tmp_path / "v")
    assert again.comparison["metric"].tolist() == validation.comparison["metric"].tolist()
    assert len(again.measured) == 2


def test_predictions_have_intervals(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Around each median, wider the less a profile knows; records are of the profile as it is."""
    verdict = plan.profile.verdict
    wild = verdict.model_copy(update={"iteration_residuals": [-0.5, 0.0, 1.0]})
    vague = replace(plan, profile=plan.profile.model_copy(update={"verdict": wild}), runs=1)
    found = validate(vague, tmp_path / "v", host, silent)
    rows = found.comparison
    assert (rows["low"] <= rows["predicted"]).all()
    assert (rows["predicted"] <= rows["high"]).all()
    tpot = rows[rows["metric"] == "tpot_s"]
    assert (tpot["high"] > 1.5 * tpot["low"]).all()
    alone = simulate(vague.scenario, {"m": vague.profile}, vague.seed)
    assert found.predicted.equals(alone.records)
    assert found.facts["prediction"].startswith(
        "median [low, high] over 19 simulations of the same"
    )
    assert not any("iterations it had not seen" in note for note in found.notes)


@pytest.mark.parametrize(
    ("median_error", "words"),
    [(0.123, "median size alone, 12.3 %"), (None, "never checked on iterations")],
)
def test_what_intervals_rest_on_is_said(
    plan: Plan, host: Host, tmp_path: Path, median_error: float | None, words: str
) -> None:
    """Where it is not the residuals of iterations that were held out."""
    update = {"iteration_residuals": [], "iteration_error_p50": median_error}
    verdict = plan.profile.verdict.model_copy(update=update)
    old = replace(plan, profile=plan.profile.model_copy(update={"verdict": verdict}), runs=1)
    notes = validate(old, tmp_path / "v", host, silent).notes
    assert sum(words in note for note in notes) == 1


def test_interrupted_validation_keeps_finished_runs(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Ctrl-C in the second run: the first is kept as it was, and only the second is run again."""

    def interrupt(fraction: float, doing: str) -> None:
        if "run 2" in doing:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(plan, tmp_path, host, interrupt)
    first = read_records(tmp_path / "measured-1.parquet")
    assert not (tmp_path / "measured-2.parquet").exists()
    told: list[str] = []
    validation = validate(plan, tmp_path, host, lambda _, doing: told.append(doing))
    assert validation.measured[0].equals(first)
    assert not any("run 1" in doing for doing in told)


def test_a_finished_validation_is_not_overwritten(plan: Plan, host: Host, tmp_path: Path) -> None:
    """What was written before is only replaced when asked."""
    validate(replace(plan, runs=1), tmp_path, host, silent)
    with pytest.raises(CalibrationError, match="--overwrite"):
        validate(replace(plan, runs=1), tmp_path, host, silent)
    validate(replace(plan, runs=1), tmp_path, host, silent, overwrite=True)


@pytest.mark.parametrize("damaged", ["", "[1]", "{}", '{"complete": false, "runs_done": "x"}'])
def test_a_folder_that_tells_nothing_is_not_gone_on_with(
    damaged: str, plan: Plan, host: Host, tmp_path: Path
) -> None:
    """What is in it is left alone, in one line."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "validation.json").write_text(damaged)
    with pytest.raises(CalibrationError, match="holds one already; give another --out, or --over"):
        validate(plan, out, host, silent)
    assert [path.name for path in out.iterdir()] == ["validation.json"]


def test_runs_of_a_longer_validation_do_not_stay(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Replacing two runs by one leaves one, so that a report drawn later does not mix them."""
    validate(plan, tmp_path, host, silent)
    validate(replace(plan, runs=1), tmp_path, host, silent, overwrite=True)
    assert len(load_validation(tmp_path).measured) == 1


def test_profile_of_another_host_is_refused(plan: Plan, host: Host, tmp_path: Path) -> None:
    """A prediction for one machine says nothing about another."""
    elsewhere = replace(host, cores=host.cores + 1)
    with pytest.raises(CalibrationError, match="measured on another host"):
        validate(plan, tmp_path, elsewhere, silent)


def test_profile_of_another_device_of_the_host_is_refused(
    plan: Plan, host: Host, tmp_path: Path
) -> None:
    """As of the whole GPU where an instance of its neighbour is to serve."""
    made = plan.profile.provenance.model_copy(update={"device": "NVIDIA H200 MIG 3g.71gb"})
    other = replace(plan, profile=plan.profile.model_copy(update={"provenance": made}))
    with pytest.raises(CalibrationError, match=r"measured on NVIDIA H200 MIG 3g.71gb, this is"):
        validate(other, tmp_path, host, silent)


def test_another_checkpoint_is_refused(plan: Plan, host: Host, tmp_path: Path) -> None:
    """The profile must be of the checkpoint that is served."""
    with pytest.raises(CalibrationError, match="is not the checkpoint that was profiled"):
        validate(replace(plan, model="demo-moe"), tmp_path, host, silent)


def test_a_trace_needs_a_place(plan: Plan) -> None:
    """--trace with a workload that replays none is a mistake, not a wish."""
    with pytest.raises(ScenarioError, match=r"no tenant has arrivals.kind: trace"):
        plan.scenario.with_trace(Path("x.csv"))


def test_incomplete_folder_has_no_report(tmp_path: Path) -> None:
    """`report` says what to run first."""
    with pytest.raises(ScenarioError, match=r"comparison\.json: not readable"):
        load_validation(tmp_path)


def test_a_file_is_no_folder_to_report_on(profile_file: Path) -> None:
    """Nor is what is not there."""
    for place in (profile_file, profile_file / "nowhere"):
        refused = CliRunner().invoke(app, ["report", str(place)])
        line = f"error: {place}: is no folder; give the one that validate wrote\n"
        assert (refused.exit_code, refused.stderr) == (2, line)


def test_any_workload_can_be_served_by_the_profiled_checkpoint(
    plan: Plan, host: Host, tmp_path: Path
) -> None:
    """A scenario written for another model and device lends its traffic."""
    models = {
        name: model.model_copy(update={"architecture": "demo-moe"})
        for name, model in plan.scenario.models.items()
    }
    hardware = plan.scenario.hardware.model_copy(update={"device": "h100-sxm-80gb"})
    other = plan.scenario.model_copy(update={"models": models, "hardware": hardware})
    with pytest.raises(ProfileError, match="measured with hidden_size 16, the model has 384"):
        validate(replace(plan, scenario=other), tmp_path, host, silent)
    here = replace(plan, scenario=other.served_here(plan.model), runs=1)
    assert not validate(here, tmp_path, host, silent).comparison.empty


def scheduled(plan: Plan, traffic: dict[str, Any], **scheduler: Any) -> Plan:
    """Return a plan of one run with other traffic and another scheduler, and little memory."""
    content = plan.scenario.to_content()
    content["tenants"]["t"] |= traffic
    content["deployment"]["scheduler"] |= scheduler
    content["deployment"]["kv_blocks"] = 5
    return replace(plan, scenario=scenario_from(content), runs=1)


BUSY = {
    "arrivals": {"kind": "constant", "rate_per_s": 60},
    "prompt_tokens": {"kind": "fixed", "tokens": 20},
    "output_tokens": {"kind": "fixed", "tokens": 40},
}


@pytest.mark.parametrize("policy", POLICIES)
def test_any_policy_is_served_for_real(plan: Plan, host: Host, tmp_path: Path, policy: str) -> None:
    """And named in the report."""
    # Wide enough for a whole answer that has to be computed again.
    wide = {"max_batched_tokens": 64}
    validation = validate(scheduled(plan, BUSY, policy=policy, **wide), tmp_path, host, silent)
    assert set(validation.measured[0]["outcome"]) == {"completed"}
    assert validation.facts["scheduling"] == f"{policy}, fcfs, preemption by recompute"


def test_swapping_is_served_for_real(plan: Plan, host: Host, tmp_path: Path) -> None:
    """The link's bandwidth is the scenario's word, and the report says so."""
    swap = {"preemption": "swap", "swap_gib": 0.001, "swap_gb_per_s": 5.0}
    # All ask at once, however fast the host: four answers of four blocks in a cache of five.
    at_once = {**BUSY, "arrivals": {"kind": "users", "count": 4, "think_s": 0}}
    validation = validate(scheduled(plan, at_once, **swap), tmp_path, host, silent)
    (measured,) = validation.measured
    assert set(measured["outcome"]) == {"completed"}
    assert measured["preemptions"].sum() > 0
    assert any("5 GB/s" in note for note in validation.notes)


def test_system_prompts_are_cached_for_real(plan: Plan, host: Host, tmp_path: Path) -> None:
    """After the first request its block of 16 tokens need not be computed again."""
    traffic = {**BUSY, "shared_prefix_tokens": 16, "output_tokens": {"kind": "fixed", "tokens": 2}}
    validation = validate(scheduled(plan, traffic, prefix_caching=True), tmp_path, host, silent)
    cached = validation.measured[0]["cached_tokens"].tolist()
    assert cached[0] == 0
    assert set(cached[1:]) <= {0, 16}
    assert cached[-1] == 16


def test_users_are_served_for_real(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Each asks again when it has read its answer: one request a user under way."""
    users = {"kind": "users", "count": 3, "think_s": 0.01}
    validation = validate(scheduled(plan, {"arrivals": users}), tmp_path, host, silent)
    (measured,) = validation.measured
    assert len(measured) > 3
    assert measured["arrival_s"].is_monotonic_increasing
    ends = [(row.arrival_s, 1) for row in measured.itertuples()]
    ends += [(row.finish_s, -1) for row in measured.itertuples()]
    under_way = [sum(step for _, step in sorted(ends)[: n + 1]) for n in range(len(ends))]
    assert max(under_way) <= 3


def test_another_scheduler_is_another_validation(plan: Plan, host: Host, tmp_path: Path) -> None:
    """Runs of one policy are not gone on with under another."""

    def interrupt(fraction: float, doing: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        validate(plan, tmp_path, host, interrupt)
    other = scheduled(plan, {}, policy="no_evict")
    with pytest.raises(CalibrationError, match="unfinished validation of another setting"):
        validate(other, tmp_path, host, silent)
