"""Public tables: read for some models' shapes, cleaned of their traps, refused in one line."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.importing import from_aiconfigurator
from moesim.cost.kernels.shapes import around, heads_around
from moesim.cost.kernels.sources import Source, version_key
from moesim.cost.kernels.tables import Kernels
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model

REFERENCE = Path(__file__).parents[4] / "shared/reference/kernels"
Writer = Callable[..., Path]


def _imported(folder: Path, **options: Any) -> Kernels:
    options = {"system": "h100_sxm", "backend": "trtllm"} | options
    models = {"mixtral-8x7b": load_model("mixtral-8x7b")}
    return from_aiconfigurator(load_device("h100-sxm-80gb"), models, folder=folder, **options)


def test_the_shapes_of_a_model_are_found(write: Writer) -> None:
    """Those of every group size, in both formats, without what no rank of it computes."""
    kernels = _imported(write())
    shapes = {(curve.format, curve.n, curve.k) for curve in kernels.gemm}
    assert ("bf16", 4096, 4096) in shapes  # the output projection of one rank
    assert ("fp8", 4096, 512) in shapes  # and of one of eight
    assert {(n, k) for _, n, k in shapes if n == 65536} == {(65536, 4096)}  # the head is below
    assert not any(k == 16384 for _, _, k in shapes)
    assert {(c.heads, c.kv_heads) for c in kernels.decode} == {(32, 8), (16, 4), (8, 2), (4, 1)}
    assert {(c.tensor_parallel, c.expert_parallel) for c in kernels.moe} == {
        (1, 1), (2, 1), (1, 2), (4, 1), (8, 1),
    }  # fmt: skip
    assert kernels.origin.software == "TensorRT-LLM 1.0.0"
    assert len(kernels.origin.files) == 5


def test_units_are_ours(write: Writer) -> None:
    """Milliseconds become microseconds, values bytes, and the new token is part of the context."""
    kernels = _imported(write())
    first = next(curve for curve in kernels.collectives if curve.ranks == 2)
    assert first.bytes[0] == 256
    assert first.us[0] == pytest.approx(4.0 + 2 * 128 / 1e11 * 1e6, rel=1e-3)
    assert set(kernels.decode[0].context) == {2, 128, 1024, 8192, 32768}
    assert kernels.decode[0].us[0] > 5.0


def test_curves_of_a_lawful_machine_are_right_where_they_were_not_drawn(write: Writer) -> None:
    """So that what cross-validation finds on real tables is theirs."""
    kernels = _imported(write())
    residuals = kernels.residuals
    assert kernels.products == {"bf16": "roofline", "fp8": "roofline"}
    for family in ("gemm", "gemm_shapes", "decode"):
        assert residuals[family].p90 < 0.03, family
    assert residuals["prefill"].p90 < 0.1
    assert residuals["moe_cuts"].p90 < 0.05


def _spiked(frame: pd.DataFrame) -> pd.DataFrame:
    wrong = (frame["m"] == 128) & (frame["n"] == 4096) & (frame["k"] == 4096)
    return frame.assign(latency=frame["latency"].where(~wrong, 8 * frame["latency"]))


def test_spikes_are_dropped_and_told(write: Writer) -> None:
    """One line each, with the size."""
    kernels = _imported(write(gemm=_spiked))
    assert "gemm bf16 4096x4096: spikes dropped at 128" in kernels.warnings
    curve = next(c for c in kernels.gemm if (c.format, c.n, c.k) == ("bf16", 4096, 4096))
    assert 128 not in curve.tokens
    assert list(curve.us) == sorted(curve.us)


def test_slow_narrow_experts_are_a_fault_of_the_table(write: Writer) -> None:
    """Half the bytes cannot take five times as long."""
    kernels = _imported(
        write(
            moe=lambda frame: frame.assign(
                latency=frame["latency"].where(frame["moe_dtype"] != "fp8", 5 * frame["latency"])
            )
        )
    )
    assert {curve.format for curve in kernels.moe} == {"bf16"}
    assert any("moe fp8: 5.0 times as slow as bf16" in warning for warning in kernels.warnings)


def _beside(folder: Path) -> Path:
    """Lay another framework's table beside: both kinds of visits, in half the time."""
    own = folder / "h100_sxm/moe/trtllm/1.0.0/moe_perf.parquet"
    file = folder / "h100_sxm/moe/sglang/0.5.10/moe_perf.parquet"
    file.parent.mkdir(parents=True)
    frame = pd.read_parquet(own)
    frame.assign(latency=frame["latency"] / 2).to_parquet(file)
    skewed = frame[frame["distribution"] != "balanced"]
    skewed.to_parquet(own)
    return file


def test_balanced_experts_of_another_framework_stand_beside_skewed_ones(write: Writer) -> None:
    """Named in the file, each with its framework; where a table has its own, none is taken."""
    folder = write()
    assert {c.distribution for c in _imported(folder).moe} == {"balanced", "power_law_1.2"}
    _beside(folder)
    kernels = _imported(folder)
    assert {c.distribution for c in kernels.moe} == {"balanced, of sglang 0.5.10", "power_law_1.2"}
    assert "moe: balanced rows of sglang 0.5.10 are taken where faster" in kernels.warnings
    assert "h100_sxm/moe/sglang/0.5.10/moe_perf.parquet" in kernels.origin.files


def test_another_framework_s_broken_table_is_left_aside_and_told(write: Writer) -> None:
    """The own table is enough."""
    folder = write()
    _beside(folder).write_bytes(b"no table")
    kernels = _imported(folder)
    assert {c.distribution for c in kernels.moe} == {"power_law_1.2"}
    assert any("moe: sglang 0.5.10 is left aside" in warning for warning in kernels.warnings)


def test_rows_without_a_size_or_a_duration_are_dropped_and_told(write: Writer) -> None:
    """Real tables have products of no tokens."""
    kernels = _imported(write(gemm=lambda frame: frame.assign(m=frame["m"].replace(1, 0))))
    assert any("rows without a size or a duration" in warning for warning in kernels.warnings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"gemm": lambda f: f.assign(latency=f["latency"] * 1e3)},
         "gemm: latency: .* times the datasheet's time; milliseconds are expected"),
        ({"gemm": lambda f: f.drop(columns="k")}, "no column k; it has"),
        ({"gemm": lambda f: f[:0]}, "no rows; fetch it again"),
        ({"gemm": lambda f: f.assign(m=f["m"].astype(str).replace("1", "one"))},
         "m: 'one' is not a number"),
        ({"moe": lambda f: f[f["hidden_size"] != 4096].reindex(columns=f.columns)}, "no rows"),
        ({"moe": lambda f: f.assign(inter_size=1)}, "moe: no rows of the models' shapes"),
        ({"generation_attention": lambda f: f.assign(head_dim=64)},
         "decode: no rows of the models' shapes"),
    ],
)  # fmt: skip
def test_what_cannot_be_used_is_refused(write: Writer, changed: dict[str, Any], words: str) -> None:
    """One line with the table and the column."""
    with pytest.raises(ProfileError, match=words) as caught:
        _imported(write(**changed))
    assert "\n" not in str(caught.value)


def test_a_broken_file_is_refused(write: Writer) -> None:
    """As half a download is."""
    folder = write()
    file = folder / "h100_sxm/moe/trtllm/1.0.0/moe_perf.parquet"
    file.write_bytes(file.read_bytes()[:100])
    with pytest.raises(ProfileError, match=r"moe_perf\.parquet: not readable as a table") as caught:
        _imported(folder)
    assert "\n" not in str(caught.value)


def test_absent_tables_are_refused(write: Writer, tmp_path: Path) -> None:
    """Another system, framework, version or folder."""
    folder = write()
    with pytest.raises(ProfileError, match="no tables of the system 'b200_sxm'"):
        _imported(folder, system="b200_sxm")
    with pytest.raises(ProfileError, match="no version of vllm has gemm, attention and moe"):
        _imported(folder, backend="vllm")
    with pytest.raises(ProfileError, match=r"9\.9: trtllm has no tables of it .*; it has 1\.0\.0"):
        _imported(folder, version_wanted="9.9")
    with pytest.raises(ProfileError, match="no such folder"):
        _imported(tmp_path / "none")


def test_versions_are_ordered() -> None:
    """Candidates before releases, numbers as numbers."""
    versions = ["1.3.0", "1.10.0", "1.3.0rc5", "1.3.0rc20", "1.2.0rc9"]
    assert sorted(versions, key=version_key) == [
        "1.2.0rc9", "1.3.0rc5", "1.3.0rc20", "1.3.0", "1.10.0",
    ]  # fmt: skip


def test_only_what_lies_around_is_taken() -> None:
    """The nearest on each side, and heads with as many for keys."""
    known = {(n, k) for n in (1, 2, 4, 8) for k in (1, 2, 4, 8)}
    assert around(frozenset({(4, 4)}), known) == {(4, 4)}
    assert around(frozenset({(3, 4)}), known) == {(2, 4), (4, 4)}
    assert around(frozenset({(99, 3)}), known) == {(8, 2), (8, 4)}
    heads = {Heads(h, kv, 128) for h in (32, 64) for kv in (8, 4)}
    assert heads_around(frozenset({Heads(48, 8, 128)}), heads) == {
        Heads(32, 8, 128), Heads(64, 8, 128),
    }  # fmt: skip


@pytest.mark.skipif(not REFERENCE.is_dir(), reason="no reference tables beside the project")
def test_tables_one_after_the_other_are_told_apart() -> None:
    """Files that hold several tables, by their columns `gpu` and `file`."""
    source = Source.at(REFERENCE, "h100_sxm", "trtllm")
    assert source.newest() == "1.3.0rc20"
    frame, file = source.table("moe", "1.3.0rc20")
    assert file == "h100_sxm/moe/trtllm/1.3.0rc20/moe_perf.parquet"
    assert set(frame["gpu"]) == {"h100_sxm"}
    assert set(frame["version"]) == {"1.3.0rc20"}


def _swift(frame: pd.DataFrame) -> pd.DataFrame:
    """Return decoding from a cache: five times as fast as by the law, so beyond the memory."""
    return frame.assign(latency=frame["latency"] / 5)


def _decoding_of(folder: Path, framework: str, frame: pd.DataFrame) -> str:
    """Lay another framework's decoding beside; return the file as profiles name it."""
    name = f"h100_sxm/attention/{framework}/0.1/generation_attention_perf.parquet"
    (folder / name).parent.mkdir(parents=True)
    frame.to_parquet(folder / name)
    return name


def test_decoding_faster_than_the_memory_is_another_framework_s(write: Writer) -> None:
    """Of those that can be, the nearest where all of it fits into a device's own cache."""
    folder = write(generation_attention=_swift)
    swift = pd.read_parquet(next(folder.rglob("generation_attention_perf.parquet")))
    _decoding_of(folder, "far", swift.assign(latency=10 * swift["latency"]))
    near = _decoding_of(folder, "near", swift.assign(latency=5 * swift["latency"]))
    _decoding_of(folder, "swift", swift)
    kernels = _imported(folder)
    longest = max(us for curve in kernels.decode for us in curve.us)
    assert longest == pytest.approx(1e3 * 5 * swift["latency"].max(), rel=1e-3)
    (said,) = [warning for warning in kernels.warnings if warning.startswith("decode:")]
    assert said.endswith("those of near 0.1 are taken instead")
    assert [file for file in kernels.origin.files if "generation" in file] == [near]


def test_decoding_faster_than_the_memory_is_slowed_to_it_where_no_other_is(write: Writer) -> None:
    kernels = _imported(write(generation_attention=_swift))
    peak = load_device("h100-sxm-80gb").memory_bandwidth_bytes_per_s or 0.0
    for curve in kernels.decode:
        for batch, context, us in zip(curve.sequences, curve.context, curve.us, strict=True):
            assert us >= 0.999e6 * batch * context * curve.kv_heads * 128 * 2 * 2 / peak
    assert any("slowed to it" in warning for warning in kernels.warnings)


def test_products_have_a_denser_table_s_sizes_between_their_own(write: Writer) -> None:
    """Only in 16 bits, where they are one library's; the own durations stay."""
    folder = write()
    own = folder / "h100_sxm/gemm/trtllm/1.0.0/gemm_perf.parquet"
    lawful, before = pd.read_parquet(own), _imported(folder)
    lawful[lawful["m"].isin([1, 8, 16, 64, 256, 1024, 2048, 8192])].to_parquet(own)
    file = folder / "h100_sxm/gemm/other/2.0/gemm_perf.parquet"
    file.parent.mkdir(parents=True)
    halfway = lawful[lawful["m"].between(2, 4096)].assign(
        m=lambda frame: frame["m"] * 3 // 2, latency=lambda frame: frame["latency"] * 1.0001
    )
    dense = pd.concat([lawful, halfway])
    dense.assign(latency=dense["latency"] * 0.9).to_parquet(file)
    kernels = _imported(folder)
    for curve, whole in zip(kernels.gemm, before.gemm, strict=True):
        points = dict(zip(curve.tokens, curve.us, strict=True))
        if curve.format == "bf16":
            known = dict(zip(whole.tokens, whole.us, strict=True))
            assert {2, 3, 128, 768} < set(points)
            assert points[128] == pytest.approx(known[128], rel=1e-3)
        else:
            assert set(points) == {1, 8, 16, 64, 256, 1024, 2048, 8192}
    assert any("have sizes of other 2.0 between their own" in said for said in kernels.warnings)
