"""Profiling: complete, judged, interruptible, resumable."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration.calibrate import Settings, calibrate, check_budget, engine_for, predicted_s
from calibration.grid import Grid, Part, Point, held_out
from calibration.host import Host
from calibration.operations import cells_of, measure
from calibration.partial import Partial
from calibration.router import observe_router
from calibration.timing import median_and_spread
from moesim.cost.profile import COORDINATES, load_profile
from moesim.errors import CalibrationError, ProfileError
from moesim.facts.catalog import load_model
from moesim.scenario import load_scenario
from moesim.serving.scheduling import Limits
from moesim.simulation.inputs import load_inputs


def test_profile_covers_every_operation(profile_file: Path) -> None:
    """Each operation has cells over a range of sizes, all positive, with repeats and spread."""
    profile = load_profile(profile_file)
    for name in COORDINATES:
        cells = profile.operations[name]
        assert len({cell.at[0] for cell in cells}) >= 3
        assert all(cell.median_s > 0 and cell.repeats >= 5 for cell in cells)
    assert profile.verdict.iteration_error_p50 is not None
    assert not profile_file.with_name(profile_file.name + ".partial").exists()


def test_residuals_are_what_the_errors_are_of(profile_file: Path) -> None:
    """Measured over predicted, minus 1: their inverse is what the error's median is of."""
    verdict = load_profile(profile_file).verdict
    assert len(verdict.iteration_residuals) == 8
    errors = [abs(1 / (1 + residual) - 1) for residual in verdict.iteration_residuals]
    assert np.median(errors) == pytest.approx(verdict.iteration_error_p50, abs=1e-3)
    assert np.percentile(errors, 90) == pytest.approx(verdict.iteration_error_p90, abs=1e-3)


def test_popularity_rows_sum_to_top_k(profile_file: Path) -> None:
    """Every token visits exactly two experts of each layer."""
    router = load_profile(profile_file).router
    assert np.allclose(np.sum(router.popularity, axis=1), 2.0, atol=1e-4)
    assert all(2 <= distinct <= 4 for _, distinct in router.distinct)


class _InterruptAt:
    """Raises what Ctrl-C raises once a round has been measured."""

    def __init__(self, word: str) -> None:
        self.word = word

    def __call__(self, fraction: float, doing: str) -> None:
        if self.word in doing:
            raise KeyboardInterrupt


def test_interrupted_profile_resumes(settings: Settings, host: Host, tmp_path: Path) -> None:
    """Ctrl-C leaves no profile, only samples that the next call goes on from."""
    out = tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(settings, out, host, _InterruptAt("round 3"))
    assert [path.name for path in tmp_path.iterdir()] == ["p.json.partial"]
    kept = json.loads((tmp_path / "p.json.partial").read_text())["samples"]
    rounds = {len(samples["iteration"]) for samples in kept.values()}
    assert rounds == {2}
    calibrate(replace(settings, budget_s=0.01), out, host)
    assert [path.name for path in tmp_path.iterdir()] == ["p.json"]
    profile = load_profile(out)
    assert min(c.repeats for c in profile.operations["attention_prefill"]) == 5


def test_samples_of_another_setting_are_not_mixed(
    settings: Settings, host: Host, tmp_path: Path
) -> None:
    """Other limits mean another measurement: the partial file is not taken up."""
    out = tmp_path / "p.json"
    with pytest.raises(KeyboardInterrupt):
        calibrate(settings, out, host, _InterruptAt("round 4"))
    calibrate(replace(settings, max_num_seqs=3, budget_s=0.01), out, host)
    cells = load_profile(out).operations["attention_prefill"]
    assert {cell.repeats for cell in cells} == {5}


def test_measured_laps_cover_the_iteration(settings: Settings) -> None:
    """A mixed batch runs through the engine's own step; its blocks are free again afterwards."""
    engine = engine_for(settings)
    point = Point((Part(1, 9), Part(1, 30), Part(7, 4)), distinct=3)
    durations = measure(engine, point, np.random.default_rng(0))
    assert set(durations) == {*COORDINATES, "iteration"}
    assert all(seconds > 0 for seconds in durations.values())
    assert engine.scheduler.idle
    assert engine.runner.free_blocks == engine.config.num_blocks


def test_cells_of_a_mixed_batch() -> None:
    """Two decodes and a chunk: 9 tokens, 3 sequences, summed context counts the new tokens."""
    cells = cells_of(Point((Part(1, 9), Part(1, 30), Part(7, 4)), distinct=3))
    assert cells["projections"] == (9.0,)
    assert cells["experts"] == (9.0, 3.0)
    assert cells["head"] == (3.0,)
    assert cells["attention_decode"] == (2.0, 41.0)
    assert cells["attention_prefill"] == (7.0, 4.0)


@pytest.mark.parametrize("max_num_seqs", [16, 10**9])
@pytest.mark.parametrize("kv_tokens", [32, 64, 400, 100_000])
def test_grid_fits_the_replica(kv_tokens: int, max_num_seqs: int) -> None:
    """No point of the grid asks for more than the limits, the cache or the experts allow."""
    spec = load_model("demo-moe")
    limits = Limits(max_num_seqs=max_num_seqs, max_batched_tokens=48, max_model_len=300)
    grid = Grid(spec=spec, limits=limits, kv_tokens=kv_tokens, block_size=16).points()
    for point in [*grid, *held_out(limits, kv_tokens)]:
        blocks = sum(-(-(part.context + part.new_tokens) // 16) for part in point.parts)
        assert blocks * 16 <= kv_tokens
        assert point.tokens <= 48
        assert all(part.context + part.new_tokens <= 300 for part in point.parts)
        if point.distinct is not None:
            assert 2 <= point.distinct <= min(8, 2 * point.tokens)


def test_a_cache_too_small_to_measure_with(settings: Settings, host: Host, tmp_path: Path) -> None:
    """The probe's decodes would preempt each other."""
    for blocks in (1, 7):
        with pytest.raises(CalibrationError, match=f"--kv-blocks: {blocks} is too few"):
            calibrate(replace(settings, num_blocks=blocks), tmp_path / "p.json", host)
    kept = replace(settings, num_blocks=8, budget_s=0.01)
    assert calibrate(kept, tmp_path / "p.json", host).kv.num_blocks == 8


def test_another_number_format(settings: Settings, host: Host, tmp_path: Path) -> None:
    """The checkpoint is of float32: it runs in bfloat16, and its profile serves who says so."""
    narrow = replace(settings, dtype="bfloat16", budget_s=0.01)
    assert engine_for(narrow).runner.decoder.embed.dtype == torch.bfloat16
    assert engine_for(settings).runner.decoder.embed.dtype == torch.float32
    profile = calibrate(narrow, tmp_path / "p.json", host)
    assert profile.spec.dtype == "bfloat16"
    demo = load_scenario("quickstart")
    with pytest.raises(ProfileError, match=r"precision: fp32, the profile was measured in bf16"):
        load_inputs(demo.served_here(settings.model), dict.fromkeys(demo.models, profile))
    here = demo.served_here(settings.model, "bf16")
    assert set(load_inputs(here, dict.fromkeys(demo.models, profile)).profiles) == set(demo.models)


def test_a_folder_is_no_profile(settings: Settings, host: Host, tmp_path: Path) -> None:
    """Known before anything is loaded."""
    nothing = replace(settings, model="nowhere")
    with pytest.raises(CalibrationError, match="is a folder; give a file name"):
        calibrate(nothing, tmp_path, host)


def test_prediction_of_a_point_uses_all_its_parts(profile_file: Path) -> None:
    """A batch with one more chunk is predicted to take longer."""
    profile = load_profile(profile_file)
    decodes = (Part(1, 8), Part(1, 8))
    assert predicted_s(profile, Point((*decodes, Part(10, 0)))) > predicted_s(
        profile, Point(decodes)
    )


def test_router_is_observed_on_every_token(settings: Settings) -> None:
    """Prompt and generated tokens are all counted: 3 prompts of 8, and 1 + 2 + 3 answers."""
    engine = engine_for(settings)
    router = observe_router(engine, sequences=3, prompt=8, output=2, seed=0)
    # The last token of an answer is sampled but never enters the model.
    assert router.tokens == 3 * 8 + (0 + 1 + 2)


def test_median_and_spread_by_hand() -> None:
    """Of 1..5 the median is 3 and the quartiles 2 and 4."""
    assert median_and_spread([5.0, 1.0, 2.0, 4.0, 3.0]) == (3.0, pytest.approx(2 / 3))


@pytest.mark.parametrize(
    "damaged",
    [
        [],
        None,
        {},
        {"samples": {"garbage": {"iteration": [1.0]}}},
        {"samples": {"1@5/2": {"iteration": "x"}}},
        {"samples": {"1@5/2": {"iteration": [math.nan]}}},
        {"samples": {"1@5/2": {"iteration": [-1.0]}}},
        {"samples": {"1@5/2": {"iteration": []}}},
        {"samples": {"1@5/2": {"projections": [1.0]}}},
        {"spent_s": "x"},
        {"spent_s": math.nan},
    ],
)
def test_damaged_samples_are_measured_anew(damaged: object, tmp_path: Path) -> None:
    """Whatever lies in the place of a partial file, of this very setting too."""
    whole = {"setting": {"a": 1}, "samples": {"1@5/2": {"iteration": [1.0]}}, "spent_s": 2.0}
    file = tmp_path / "p.json.partial"
    file.write_text(json.dumps(whole))
    assert Partial.open(tmp_path / "p.json", {"a": 1}).spent_s == 2.0
    file.write_text(json.dumps({**whole, **damaged} if damaged else damaged))
    found = Partial.open(tmp_path / "p.json", {"a": 1})
    assert (found.samples, found.spent_s) == ({}, 0.0)


@pytest.mark.parametrize("budget_s", [0.0, -1.0, math.nan, math.inf])
def test_budgets_that_cannot_be_kept(budget_s: float) -> None:
    """None at all, and one that never ends."""
    with pytest.raises(CalibrationError, match=r"^--budget-s: "):
        check_budget(budget_s)
