"""Each step runs on the CPU, says where its figures are from, and prints a table last."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest

from benchmarks.gpu_queue import gpu_tests, grounds, kernels, profiling, validating, variants
from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.cells import Cell, Ground
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.room import room_on
from benchmarks.gpu_queue.sizes import TINY
from benchmarks.gpu_queue.tables import shown, write_tables
from calibration.host import Host
from moesim.cost.profile import Profile, load_profile, save_profile
from moesim.errors import CalibrationError, EngineError
from moesim.files import write_text
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


def test_kernels_without_copies(
    begun: Begin, asked: Asked, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A host that pins nothing has no figures of its link, and what is measured is on file."""

    def refused(*_: object) -> float:
        raise EngineError("the host refuses to pin")

    def broken(*_: object) -> Any:
        raise RuntimeError("no kernel image")

    monkeypatch.setattr(kernels, "link_bytes_per_s", refused)
    monkeypatch.setattr(kernels.bench, "steps", broken)
    step = replace(begun("kernels"), asked=replace(asked, out=tmp_path))
    with pytest.raises(RuntimeError, match="no kernel image"):
        kernels.run(step)
    content = tables_of(step.asked, "kernels")
    assert content["conditions"]["link_bytes_per_s"] is None
    assert content["tables"]["copies"] == []
    assert {row["tokens"] for row in content["tables"]["layer"]} == set(asked.size.tokens)


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


def test_variants_of_another_host_or_shape_are_not_mixed(
    profiled: Path, begun: Begin, this_host: Host
) -> None:
    """What lies in `--out` of another machine, or of a rehearsal, is refused in one line."""
    step = begun("variants")
    assert grounds.own_profile(step, profiled).spec == step.asked.size.variant
    with pytest.raises(CalibrationError, match="was measured on another host; give another --out"):
        grounds.own_profile(replace(step, host=replace(this_host, cores=1000)), profiled)
    other = replace(step.asked, size=replace(step.asked.size, variant=TINY.variant))
    with pytest.raises(CalibrationError, match="variants of another shape; give another --out"):
        grounds.own_profile(replace(step, asked=other), profiled)


def test_a_profile_that_failed_half_way_is_made_whole(
    profiled: Path, begun: Begin, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What sharing costs is measured again where it ended the command before; once is enough."""
    step = replace(begun("variants"), asked=replace(asked, out=tmp_path))
    whole = load_profile(profiled)
    file = tmp_path / "variants/profile.json"
    save_profile(whole.model_copy(update={"transfers": None}), file)
    made: list[Path] = []

    def remade(_: object, out: Path, host: Host) -> None:
        made.append(out)
        save_profile(whole, out)

    monkeypatch.setattr(grounds, "calibrate", remade)
    monkeypatch.setattr(grounds, "checkpoints", lambda _: {"a": tmp_path, "b": tmp_path})
    assert grounds.ground_for(step).profile.transfers is not None
    grounds.ground_for(step)
    assert made == [file]


def test_checkpoints_without_room(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They are refused before the first is made; those that are there need none."""
    monkeypatch.setattr(grounds, "disk_usage", lambda folder: SimpleNamespace(free=1))
    empty = replace(asked, scratch=tmp_path / "new")
    with pytest.raises(CalibrationError, match=r"3 checkpoints are .* 1 B are free there; give"):
        grounds.checkpoints(empty)
    assert not list(empty.scratch.iterdir())
    shape = f"cpu-{asked.size.variant.num_hidden_layers}x{asked.size.variant.hidden_size}"
    for name in grounds.NAMES:
        (empty.scratch / shape / name).mkdir(parents=True)
    assert list(grounds.checkpoints(empty)) == list(grounds.NAMES)


def test_a_share_is_profiled_in_its_cell_s_time(
    begun: Begin, asked: Asked, tmp_path: Path, tiny_profile: Profile
) -> None:
    """The first cell on shares takes longer by that than any before it; the next does not."""
    step = replace(begun("variants"), asked=replace(asked, out=tmp_path))
    ground = Ground(
        size=asked.size,
        folders={},
        profile_file=tmp_path,
        profile=tiny_profile,
        device="",
        room=room_on(1),
    )
    bench = variants.Bench(step, ground)
    bench.longest_s = 5.0
    cell = Cell(variants=2, traffic="many", deployment="slices", load=0.3)
    assert bench.expected_s(CELLS[0]) == 5.0
    assert bench.expected_s(cell) == 5.0 + asked.size.variant_profile_s
    write_text(grounds.share_file(step.asked, 2), "{}")
    assert bench.expected_s(cell) == 5.0


def test_what_failed_is_tried_again(tmp_path: Path) -> None:
    """What cannot be served is settled, what the driver refused is not."""
    file = tmp_path / "cell.json"
    assert not variants.settled(file)
    file.write_text(json.dumps({"not_served": "failed: launch", "again": True}))
    assert not variants.settled(file)
    file.write_text(json.dumps({"not_served": "shares: less than one"}))
    assert variants.settled(file)


def test_a_kernel_that_does_not_compile_is_told(
    begun: Begin, asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Triton's own errors, which may have no text, end a cell and not the step."""

    def failing(*_: object) -> Any:
        raise AssertionError

    monkeypatch.setattr(variants.Bench, "_rate", lambda *_: 1.0)
    monkeypatch.setattr(variants.Bench, "_served", failing)
    step = replace(begun("variants"), asked=replace(asked, out=tmp_path))
    bench = variants.Bench(step, SimpleNamespace())  # type: ignore[arg-type]
    bench.serve(CELLS[0])
    content = json.loads(bench.file(CELLS[0]).read_text())
    assert content["not_served"] == "failed: AssertionError"
    assert not variants.settled(bench.file(CELLS[0]))


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
    assert {"test_green.py", "test_graphs.py", "test_paged_decode.py", "test_replays.py"} <= found


def test_no_table_without_its_origin(begun: Begin, asked: Asked, tmp_path: Path) -> None:
    """Numbers that are none become null, and numpy's plain ones."""
    step = replace(begun("kernels"), asked=replace(asked, out=tmp_path))
    rows = pd.DataFrame([{"x": 1.5, "y": float("nan")}]).to_dict("records")
    write_tables(step, {"part": [{str(k): v for k, v in row.items()} for row in rows]}, of=2)
    content = json.loads((tmp_path / "tables/kernels.json").read_text())
    assert content["tables"]["part"] == [{"x": 1.5, "y": None}]
    assert content["conditions"] == {"of": 2}
    assert shown([]) == "(nothing)"
