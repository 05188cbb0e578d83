"""Each step runs on the CPU, says where its figures are from, and prints a table last."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from benchmarks.gpu_queue import gpu_tests, grounds, kernels, profiling, validating, variants
from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.cells import Cell
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.tables import shown, write_tables
from calibration.host import Host
from moesim.cost.profile import load_profile
from moesim.errors import CalibrationError
from moesim.serving.records import read_records

Begin = Callable[[str], Begun]
CELLS = [
    Cell(variants=2, traffic="many", deployment="packed", load=0.3),
    Cell(variants=2, traffic="published", deployment="per tensor", load=0.3),
    Cell(variants=2, traffic="published", deployment="time-shared", load=0.3),
]


def tables_of(asked: Asked, name: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((asked.out / "tables" / f"{name}.json").read_text())
    return content


def assert_told(content: dict[str, Any], step: str) -> None:
    """Look for the device, what drives it, the versions, the command and the date."""
    found = content["provenance"]
    assert found["step"] == step
    assert found["command"] == "python -m benchmarks.gpu_queue rehearsed"
    assert all(found[key] for key in ("device", "driver", "torch", "python", "date", "host_hash"))


def test_kernels(begun: Begin, asked: Asked, capsys: pytest.CaptureFixture[str]) -> None:
    """Copies beside the link, a layer's styles and whole steps beside their floors."""
    assert kernels.run(begun("kernels"))
    content = tables_of(asked, "kernels")
    assert_told(content, "kernels")
    copies, steps = content["tables"]["copies"], content["tables"]["steps"]
    link = content["conditions"]["link_bytes_per_s"]
    for row in copies:
        assert row["over_link"] == pytest.approx(link / (1e9 * row["GB/s"]))
    assert {row["sequences"] for row in steps} == set(asked.size.sequences)
    assert steps[0]["over_floor"] == pytest.approx(steps[0]["ms"] / steps[0]["floor_ms"])
    written = pd.read_csv(asked.out / "tables/kernels-steps.csv")
    assert written["ms"].tolist() == pytest.approx([row["ms"] for row in steps])
    assert capsys.readouterr().out.splitlines()[-1].startswith("best style over published")


def test_profile(profiled: Path, asked: Asked) -> None:
    """The profile is whole, and its verdict stands in a table with its origin."""
    profile = load_profile(profiled)
    assert profiled.name == "profile-fp32.json"
    assert profile.transfers is not None
    content = tables_of(asked, "profile")
    assert_told(content, "profile")
    (row,) = content["tables"]["verdict"]
    assert row["stable"] == profile.verdict.stable
    assert row["kv_blocks"] == asked.size.num_blocks


def test_a_narrower_profile_is_another(profiled: Path, asked: Asked, this_host: Host) -> None:
    """It says what weights were narrowed to, and leaves the other's tables alone."""
    before = tables_of(asked, "profile")
    narrow = replace(asked, precision="int8")
    profiling.run(Begun(asked=narrow, host=this_host, step="profile", date="today"))
    assert load_profile(narrow.profile).provenance.model_source == "tiny.json, int8"
    assert tables_of(asked, "profile") == before
    assert tables_of(asked, "profile-int8")["provenance"]["date"] == "today"


def test_validate(
    profiled: Path, begun: Begin, asked: Asked, capsys: pytest.CaptureFixture[str]
) -> None:
    """Three loads with every figure; once served, nothing is served again."""
    assert validating.run(begun("validate"))
    content = tables_of(asked, "validate")
    assert_told(content, "validate")
    frame = pd.DataFrame(content["tables"]["figures"])
    assert sorted(frame["load"].unique()) == [0.3, 0.6, 0.9]
    for load, rows in frame.groupby("load"):
        rate = load * content["conditions"]["capacity_rps"]
        assert rows["rate_rps"].to_numpy() == pytest.approx(rate)
        keys = set(zip(rows["metric"], rows["statistic"], strict=True))
        assert {(m, s) for m in ("ttft_s", "turnaround_s") for s in ("mean", "p50", "p99")} <= keys
    assert "intervals hold" in capsys.readouterr().out
    records = asked.out / "validate-30/measured-1.parquet"
    written = records.stat().st_mtime_ns
    validating.run(begun("validate"))
    assert records.stat().st_mtime_ns == written


def test_validate_needs_a_profile(begun: Begin, asked: Asked, tmp_path: Path) -> None:
    """One line that names the file and the step."""
    step = replace(begun("validate"), asked=replace(asked, out=tmp_path))
    with pytest.raises(CalibrationError, match=r"profile-fp32\.json: .* run the step profile"):
        validating.run(step)


def test_variants(
    begun: Begin,
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Cells are served and predicted; what the budget leaves out is named and made next time."""
    monkeypatch.setattr(variants, "cells", lambda loads: CELLS)
    monkeypatch.setattr(grounds, "NAMES", ("a", "b"))
    monkeypatch.setattr(variants, "LONGEST", 100.0)  # a busy host is no reason to serve nothing
    step = begun("variants")
    hasty = replace(step, asked=replace(asked, budget_s=1e-6))
    assert not variants.run(hasty)
    missing = tables_of(asked, "variants")["conditions"]["missing"]
    assert missing == [cell.name for cell in CELLS]
    assert variants.run(step)
    content = tables_of(asked, "variants")
    assert_told(content, "variants")
    rows = pd.DataFrame(content["tables"]["cells"])
    assert content["conditions"]["missing"] == []
    assert "352 expert copies of 256 positions" in content["conditions"]["room"]
    for cell in CELLS:
        own = rows[rows["deployment"] == cell.deployment]
        assert {"ttft_s", "served_ttft_s", "turnaround_s"} <= set(own["metric"]), cell
        records = read_records(asked.out / "variants" / f"{cell.name}.parquet")
        turnaround = own.loc[own["metric"] == "turnaround_s", "measured"].item()
        assert turnaround == pytest.approx((records["finish_s"] - records["arrival_s"]).mean())
    assert "per tensor against time-shared" in capsys.readouterr().out


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    """What cannot be served is settled, what the driver refused is not."""
    file = tmp_path / "cell.json"
    assert not variants.settled(file)
    file.write_text(json.dumps({"not_served": "failed: launch", "again": True}))
    assert not variants.settled(file)
    file.write_text(json.dumps({"not_served": "shares: less than one"}))
    assert variants.settled(file)


WANTED = """
import pytest

@pytest.mark.gpu
def test_good():
    pass

@pytest.mark.gpu
def test_bad():
    assert 1 == 2

@pytest.mark.gpu
def test_out():
    pytest.skip("no CUDA device")

def test_other():
    raise RuntimeError
"""


def test_outcomes_of_tests(
    begun: Begin,
    asked: Asked,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Only marked ones run; a failure is named, with its reason, and the step is not good."""
    file = tmp_path / "test_wanted.py"
    file.write_text(WANTED)
    monkeypatch.setattr(gpu_tests, "marked_files", lambda: [file])
    assert not gpu_tests.run(begun("tests"))
    rows = {
        row["test"].split("::")[1]: row for row in tables_of(asked, "tests")["tables"]["outcomes"]
    }
    assert {name: row["outcome"] for name, row in rows.items()} == {
        "test_good": "passed",
        "test_bad": "failed",
        "test_out": "skipped",
    }
    assert "no CUDA device" in rows["test_out"]["why"]
    assert "assert 1 == 2" in rows["test_bad"]["why"]
    assert "1 failed, 1 passed, 1 skipped" in capsys.readouterr().out


def test_tests_that_take_too_long(asked: Asked, tmp_path: Path) -> None:
    """What ended before is known, and how the run ended."""
    file = tmp_path / "test_slow.py"
    file.write_text(
        WANTED + "\n@pytest.mark.gpu\ndef test_slow():\n    __import__('time').sleep(60)\n"
    )
    rows, ended = gpu_tests.outcomes(replace(asked, budget_s=6.0), [file])
    assert [row["outcome"] for row in rows] == ["passed", "failed", "skipped"]
    assert ended == "not finished within 6 s"


def test_every_file_with_a_mark_is_found() -> None:
    """The queue runs what is marked, as pytest would find it."""
    found = {path.name for path in gpu_tests.marked_files()}
    assert {"test_green.py", "test_graphs.py", "test_paged_decode.py"} <= found


def test_no_table_without_its_origin(begun: Begin, asked: Asked, tmp_path: Path) -> None:
    """Numbers that are none become null, and numpy's plain ones."""
    step = replace(begun("kernels"), asked=replace(asked, out=tmp_path))
    rows = pd.DataFrame([{"x": 1.5, "y": float("nan")}]).to_dict("records")
    write_tables(step, {"part": [{str(k): v for k, v in row.items()} for row in rows]}, of=2)
    content = json.loads((tmp_path / "tables/kernels.json").read_text())
    assert content["tables"]["part"] == [{"x": 1.5, "y": None}]
    assert content["conditions"] == {"of": 2}
    assert shown([]) == "(nothing)"
