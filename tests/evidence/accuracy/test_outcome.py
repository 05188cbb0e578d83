"""A whole table: factors that never see what they judge, intervals, summaries, reports."""

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from moesim.cli import app
from moesim.errors import ScenarioError
from moesim.evidence.accuracy.assumed import assumptions
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.course import of_course
from moesim.evidence.accuracy.experiments import figure_of
from moesim.evidence.accuracy.factors import factorless, with_factors
from moesim.evidence.accuracy.outcome import Choice, accuracy, family_of, is_seen
from moesim.evidence.accuracy.paces import Setting, simulated_with
from moesim.evidence.accuracy.predictions import quantile
from moesim.evidence.accuracy.summary import BY_MODEL, factors_of, like_entries, summaries
from moesim.evidence.accuracy.table import COLUMNS, read_table
from moesim.evidence.accuracy.wording import basis_words, like_words, summary_row
from tests.evidence.accuracy.test_understanding import ROW

LENGTHS = ((5000, 500), (20000, 2000), (2048, 2048), (128, 4096), (3000, 600), (3000, 300))


def _table(path: Path, slower: float = 1.0, gpu: str = "H100-SXM-80GB") -> Path:
    """Write a table of what moesim itself predicts by the roofline, made slower by a factor."""
    rows = [_row(gpu, prompt, output, 1.0) for prompt, output in LENGTHS]
    _written(path, rows)
    found = accuracy(path, Choice(), profile="roofline").rows
    values = found["predicted"] / slower
    _written(
        path,
        [
            _row(gpu, prompt, output, value)
            for (prompt, output), value in zip(LENGTHS, values, strict=True)
        ],
    )
    return path


def _row(gpu: str, prompt: int, output: int, value: float) -> dict[str, str]:
    return {
        "source": "somebody", "model": "Mixtral-8x7B", "gpu": gpu, "tp": "4", "ep": "1",
        "precision": "FP16", "isl": str(prompt), "osl": str(output), "load": "inf",
        "scenario": "offline_max_load", "metric": "output_tokens_per_s", "value": str(value),
        "software": "TensorRT-LLM 0.99", "note": "",
    }  # fmt: skip


def _written(path: Path, rows: list[dict[str, str]]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def test_what_is_predicted_is_found_again(tmp_path: Path) -> None:
    found = accuracy(_table(tmp_path / "t.csv"), Choice(), profile="roofline")
    assert np.allclose(found.rows["error"], 0, atol=1e-9)
    assert found.rows["inside"].all()
    assert (found.rows["low"] < found.rows["predicted"]).all()


def test_one_factor_is_recovered_on_rows_it_has_not_seen(tmp_path: Path) -> None:
    """All rows slower by a third: off by a third as is, right with the others' factor.

    The factor is on what the profile says alone, before its own errors' median.
    """
    found = accuracy(_table(tmp_path / "t.csv", slower=4 / 3), Choice(), profile="roofline")
    assert np.allclose(found.rows["error"], 1 / 3)
    beside = found.rows["bare"] / found.rows["predicted"]
    assert np.allclose(found.rows["factor"], 4 / 3 * beside)
    assert np.allclose(found.rows["fitted_error"], 0, atol=1e-9)


def _rows(measured: list[float]) -> pd.DataFrame:
    count = len(measured)
    return pd.DataFrame(
        {
            "software": "e",
            "device": "g",
            "isl": range(count),
            "osl": 1,
            "kind": "rate",
            "figure": "rate",
            "measured": measured,
            "bare": 100.0,
            "scales": True,
        }
    )


def test_a_row_has_no_say_in_its_own_factor() -> None:
    """The last row is far off; its factor is that of the others, and theirs is hardly moved."""
    rows = with_factors(_rows([50.0] * 8 + [1.0]))
    assert rows["factor"].tolist()[-1] == pytest.approx(2.0)
    assert rows["fitted"].tolist()[-1] == pytest.approx(50.0)


def test_rows_of_the_same_lengths_are_judged_together() -> None:
    """Twice and four times as long: the median of as many of both lies between, by logarithms."""
    measured = [50.0] * 8 + [25.0] * 16
    rows = with_factors(_rows(measured).assign(isl=[1] * 8 + [2] * 8 + [3] * 8))
    assert rows["factor"].tolist() == pytest.approx([4.0] * 8 + [8**0.5] * 16)


def test_latencies_scale_the_other_way() -> None:
    rows = with_factors(_rows([200.0] * 9).assign(kind="latency"))
    assert rows["factor"].tolist() == pytest.approx([2.0] * 9)
    assert rows["fitted"].tolist() == pytest.approx([200.0] * 9)


def test_first_tokens_have_no_say_but_an_interval_of_their_own() -> None:
    """Rates are half of what was predicted, times to first tokens from once to thirty times."""
    rates = _rows([50.0] * 30)
    first = _rows([100.0 * n for n in range(1, 31)]).assign(kind="latency", figure="TTFT")
    rows = with_factors(pd.concat([rates, first], ignore_index=True))
    assert rows["factor"].tolist() == pytest.approx([2.0] * 60)
    assert rows["fitted_high"].tolist()[:30] == pytest.approx([50.0] * 30)
    assert (rows["fitted_high"] > 10 * rows["fitted_low"]).tolist()[30:] == [True] * 30


def test_few_rows_have_no_factor() -> None:
    assert with_factors(_rows([50.0] * 5))["factor"].isna().all()


def test_two_pairs_of_lengths_have_no_factor_and_that_is_said() -> None:
    rows = with_factors(_rows([50.0] * 16).assign(isl=[1] * 8 + [2] * 8))
    assert rows["factor"].isna().all()
    (said,) = factorless(rows)
    assert said.startswith("e on g has 16 rates or times per token, of 2 pairs")
    assert "needs 3 pairs, and beside the rows of each pair 5 of others" in said
    assert factorless(with_factors(_rows([50.0] * 8))) == []


def test_one_device_has_one_factor_whatever_it_is_called(tmp_path: Path) -> None:
    """Three pairs of lengths under each of two names: neither alone has five rows beside a pair."""
    path = tmp_path / "t.csv"
    names = ["H100-SXM-80GB", "NVIDIA H100 80GB HBM3"]
    _written(path, [_row(names[n % 2], *lengths, 1.0) for n, lengths in enumerate(LENGTHS)])
    found = accuracy(path, Choice(), profile="roofline")
    assert found.rows["factor"].notna().all()
    assert list(factors_of(found.rows)["device"]) == ["h100-sxm-80gb"]


def test_what_does_not_judge_has_its_say_in_factors_alone() -> None:
    """All are half as fast; every other was found on."""
    rows = with_factors(_rows([50.0] * 10)).assign(judged=[True, False] * 5)
    for way in ("", "roofline_", "fitted_"):
        rows = rows.assign(**{f"{way}error": 0.0, f"{way}inside": True})
    (factor,) = factors_of(rows).to_dict("records")
    assert (factor["rows"], factor["folds"], factor["factor"]) == (5, 10, pytest.approx(2.0))
    assert factors_of(rows.assign(judged=False)).empty


def test_it_is_said_of_how_many_rows_a_factor_is() -> None:
    ways = ("", "roofline_", "fitted_")
    rows = pd.DataFrame(
        {
            **dict.fromkeys(BY_MODEL, "f"),
            **{f"{way}error": [0.1, -0.3] for way in ways},
            **{f"{way}inside": [True, False] for way in ways},
            "fitted_error": [0.1, np.nan],
        },
        index=[0, 1],
    )
    (row,) = summaries(rows, BY_MODEL).to_dict("records")
    assert "10.0 % (of 1)" in summary_row(row)


def test_intervals_of_factors_hold_nine_in_ten() -> None:
    """Rows that are off by chance alone, 200 of them."""
    rng = np.random.default_rng(0)
    rows = with_factors(_rows((50 * np.exp(0.1 * rng.standard_normal(200))).tolist()))
    inside = rows["measured"].between(rows["fitted_low"], rows["fitted_high"])
    assert inside.mean() == pytest.approx(0.9, abs=0.05)


def test_quantiles_are_at_places_by_which_a_further_one_falls_inside() -> None:
    assert quantile([float(n) for n in range(1, 20)], 0.05) == 1.0
    assert quantile([float(n) for n in range(1, 20)], 0.95) == 19.0


def test_summaries_by_hand() -> None:
    rows = pd.DataFrame(
        {
            "family": "f",
            **{f"{way}error": [0.1, -0.3] for way in ("", "roofline_", "fitted_")},
            **{f"{way}inside": [True, False] for way in ("", "roofline_", "fitted_")},
        }
    )
    (row,) = summaries(rows, ["family"]).to_dict("records")
    assert row["mape"] == pytest.approx(0.2)
    assert row["bias"] == pytest.approx(-0.1)
    assert (row["rows"], row["hit"]) == (2, 0.5)


def test_how_far_apart_like_entries_are_by_hand() -> None:
    """Three of the same load, two of another, and one of another benchmark."""
    rows = pd.DataFrame(
        {
            "source": ["a/x", "b/x", "c/x", "a/y", "b/y", "d"],
            "model": "m",
            "gpu": "G",
            "n_gpus": 8.0,
            "load": ["9 req/s"] * 3 + ["8 req/s"] * 2 + ["9 req/s"],
            "scenario": ["mlperf_server_closed"] * 5 + ["online_serving"],
            "metric": "ttft_mean_ms",
            "measured": [100.0, 125.0, 110.0, 1.0, 2.0, 1000.0],
            "error": [0.1, -0.2, 0.0, 0.5, 0.5, 0.5],
        }
    )
    (row,) = like_entries(rows).to_dict("records")
    assert (row["entries"], row["least"], row["most"]) == (3, 100.0, 125.0)
    assert row["apart"] == pytest.approx(0.25)
    assert row["mape"] == pytest.approx(0.1)
    (text,) = like_words(rows)
    assert "3 with 8 G, 9 req/s: ttft_mean_ms 100 to 125, 25.0 % apart, 10.0 % off." in text
    assert like_words(rows.head(2)) == []


def test_rooflines_of_paced_rows_have_a_pace_too(tmp_path: Path) -> None:
    """One entry, half as slow again as its roofline: by kernels it is off, by that it is not."""
    path = tmp_path / "t.csv"
    entry = {
        "model": "Mixtral-8x7B", "gpu": "H100-SXM-80GB", "tp": "1", "ep": "1",
        "precision": "FP8", "isl": "", "osl": "", "note": "", "software": "TensorRT 10.2.0",
    }  # fmt: skip
    runs = [
        entry | {
            "source": "logs/one/Offline", "load": "all-at-once", "value": "1",
            "scenario": "mlperf_offline_closed", "metric": "output_tokens_per_s",
        },
        entry | {
            "source": "logs/one/Server", "load": "50 req/s target", "value": "1",
            "scenario": "mlperf_server_closed", "metric": "tpot_mean_ms",
        },
    ]  # fmt: skip
    _written(path, runs)
    for run, row in zip(runs, read_table(path), strict=True):
        figure = figure_of(row)
        setting = Setting(figure.experiment.workload.prompt_tokens, 1.5)
        course = simulated_with(figure.experiment, setting, Costs("roofline"))
        run["value"] = str(of_course(figure, course))
    _written(path, runs)
    found = accuracy(path, Choice())
    offline, server = found.rows.to_dict("records")
    assert (offline["judged"], server["judged"]) == (False, True)
    assert offline["error"] == pytest.approx(0, abs=1e-9)
    assert offline["roofline_error"] == pytest.approx(0, abs=1e-9)
    assert server["roofline_error"] == pytest.approx(0, abs=1e-9)
    assert abs(server["error"]) > 0.05


def test_families() -> None:
    assert family_of("TensorRT-LLM v0.14 perf-overview.md (a@b)") == (
        "TensorRT-LLM v0.14 perf-overview.md"
    )
    assert family_of("org/repo@1a2b:file.csv#7") == "org/repo"


def test_nothing_chosen_is_said(tmp_path: Path) -> None:
    with pytest.raises(ScenarioError, match="no row with --gpu 'b300'"):
        accuracy(_table(tmp_path / "t.csv"), Choice(gpu="B300"))


def test_the_command(tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv", slower=1.1)
    rows = list(csv.DictReader(path.read_text().splitlines()))
    _written(path, [*rows, _row("L4-24GB", 128, 128, 1.0), _row("L4-24GB", 128, 256, 1.0)])
    runner = CliRunner()
    report = tmp_path / "a.md"
    told = runner.invoke(
        app, ["accuracy", str(path), "--profile", "roofline", "--report", str(report)]
    )
    assert told.exit_code == 0
    assert "6 of 8 rows predicted" in told.output
    assert "Datasheet rooflines, nothing measured" in told.output
    assert "2  gpu L4-24GB is not known" in told.output
    text = report.read_text()
    assert "| 2 | gpu L4-24GB is not known" in text
    assert text.count("| Mixtral-8x7B |") == 6 + 6 + 1  # the worst, all, and their sum
    printed = runner.invoke(app, ["accuracy", str(path), "--profile", "roofline", "--json"])
    content = json.loads(printed.output)
    assert len(content["rows"]) == 6
    assert list(content["left_out"].values()) == [2]


def test_every_row_is_predicted_or_left_out_for_a_reason(tmp_path: Path) -> None:
    """Answers of one token have no time per token."""
    path = tmp_path / "t.csv"
    _written(path, [_row("H100-SXM-80GB", 128, 1, 1.0) | {"metric": "tpot_mean_ms"}])
    found = accuracy(path, Choice(), profile="roofline")
    assert len(found.rows) == 0
    assert found.left_out == {"answers of one token have no time per token": 1}


def test_the_page_has_every_row(tmp_path: Path) -> None:
    path = _table(tmp_path / "t.csv")
    report = tmp_path / "a.html"
    told = CliRunner().invoke(
        app,
        ["accuracy", str(path), "--profile", "roofline", "--report", str(report), "--limit", "3"],
    )
    assert told.exit_code == 0
    assert report.read_text().count("<td>output_tokens_per_s</td>") == 3 + 3


def test_a_broken_table_is_one_line_and_two(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    _written(path, [_row("H100-SXM-80GB", 1, 1, 1.0) | {"value": "quick"}])
    told = CliRunner().invoke(app, ["accuracy", str(path)])
    assert told.exit_code == 2
    assert "t.csv: line 2, column value: 'quick'" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_nothing_predicted_is_one_line_and_two(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    _written(path, [_row("B9000", 128, 128, 1.0), _row("L4-24GB", 128, 128, 1.0)])
    told = CliRunner().invoke(app, ["accuracy", str(path)])
    assert told.exit_code == 2
    assert "none of 2 rows could be predicted: gpu B9000 is not known" in told.stderr
    assert "(and 1 other reasons)" in told.stderr
    assert len(told.stderr.strip().splitlines()) == 1


def test_reports_are_pages_or_markdown(tmp_path: Path) -> None:
    """Anything else is refused before any work, even before the table is read."""
    report = tmp_path / "a.pdf"
    told = CliRunner().invoke(app, ["accuracy", str(tmp_path / "no.csv"), "--report", str(report)])
    assert told.exit_code == 2
    assert "ends in neither .html nor .md" in told.stderr


def test_only_what_concerns_its_rows_is_said(tmp_path: Path) -> None:
    found = accuracy(_table(tmp_path / "t.csv"), Choice(), profile="roofline")
    said = " ".join(assumptions(found.rows))
    assert "published maximum loads" in said
    for other in ("MLPerf", "InferenceMAX", "Argonne", "over PCIe", "vLLM", "Closed", "Kernels"):
        assert other not in said
    rows = found.rows.assign(scenario="mlperf_server_closed", device="l40s-48gb")
    said = " ".join(assumptions(rows))
    assert "MLPerf" in said
    assert "over PCIe" in said


def test_reckoned_experts_are_said(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    batch = {"scenario": "static_batch", "load": "batch 4", "metric": "mean_e2e_s"}
    row = _row("A100-SXM4-80GB", 128, 32, 1.0) | batch | {"software": "vLLM 0.11"}
    _written(path, [row | {"precision": "AWQ"}, row])
    words = "a100-sxm-80gb: kernels (a100-sxm-80gb)"
    assert basis_words(accuracy(path, Choice())) == f"{words}, experts in int4 reckoned"
    assert basis_words(accuracy(path, Choice(), profile="roofline")).endswith("(roofline)")
    _written(path, [row])
    assert basis_words(accuracy(path, Choice())) == words


def test_a_figure_given_twice_counts_once(tmp_path: Path) -> None:
    """Of one source, under another note and file; another source's is another measurement."""
    path = tmp_path / "t.csv"
    row = _row("H100-SXM-80GB", 128, 128, 1.0)
    twice = row | {"source": "somebody: other.csv", "note": "again"}
    _written(path, [row, twice, row | {"source": "else"}, row | {"value": "2"}])
    found = accuracy(path, Choice(), profile="roofline")
    assert list(found.rows["line"]) == [2, 4, 5]
    assert found.left_out == {"given twice by one source": 1}


def test_servers_without_an_offline_run_are_left_out(tmp_path: Path) -> None:
    """Nothing tells their pace: kernels alone are several times too fast."""
    path = tmp_path / "t.csv"
    server = {
        "tp": "1", "precision": "FP8", "isl": "", "osl": "", "load": "50 req/s target",
        "scenario": "mlperf_server_closed", "metric": "tpot_mean_ms", "software": "TensorRT 10.2.0",
    }  # fmt: skip
    _written(path, [_row("H100-SXM-80GB", 1, 1, 100.0) | server])
    found = accuracy(path, Choice())
    assert found.rows.empty
    assert list(found.left_out) == ["no offline run of this entry or its kin tells its pace"]


def test_rows_with_which_collectives_were_chosen_do_not_judge() -> None:
    row = replace(ROW, gpu="L40S-48GB", tp=4, precision="FP16", note="")
    assert is_seen(figure_of(row))
    assert not is_seen(figure_of(replace(row, tp=2)))
    assert not is_seen(figure_of(replace(row, gpu="A100-SXM4-80GB")))
