"""All-reduces: the formula, the figures shipped, and the tables they were fitted to."""

from pathlib import Path
from runpy import run_path
from statistics import median

import numpy as np
import pandas as pd
import pytest

from moesim.cost.collectives import LATENCY_S, RING_SHARE, all_reduce_of, collectives_s
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device, load_model
from moesim.facts.hardware import AllReduce, Line

ROOT = Path(__file__).parents[2]
TABLE = ROOT / "../shared/reference/kernels/comm.parquet"
FIT = run_path(str(ROOT / "benchmarks/fit_collectives.py"))

FITTED = ["a100-sxm-80gb", "h100-sxm-80gb", "h200-sxm-141gb"]
MIXTRAL = load_model("mixtral-8x7b")


def test_two_all_reduces_a_layer() -> None:
    """100 tokens of 4096 values of 2 bytes at 1 GB/s after 1 ms: twice 1.8192 ms.

    Messages that take less in one exchange, 0.1 ms at 0.1 GB/s, are sent so: one token 0.18192 ms.
    """
    quick = Line(latency_s=1e-4, bytes_per_s=1e8)
    steady = Line(latency_s=1e-3, bytes_per_s=1e9)
    device = load_device("h100-sxm-80gb").model_copy(
        update={"all_reduce": {2: AllReduce(short=quick, long=steady, typical_error=0)}}
    )
    seconds = collectives_s(MIXTRAL, device, 2, 2)
    assert seconds(100) == pytest.approx(2 * 1.8192e-3)
    assert seconds(1) == pytest.approx(2 * 0.18192e-3)


def test_between_numbers_of_ranks_the_larger() -> None:
    """Three ranks take what four take, and five to eight what eight do."""
    device = load_device("a100-sxm-80gb")
    assert all_reduce_of(device, 3) == device.all_reduce[4]
    assert all_reduce_of(device, 5) == device.all_reduce[8]


def test_a_device_without_figures_takes_nvlinks() -> None:
    """900 GB/s in both directions: 450 x 0.68 = 306 GB/s, of which 2 ranks use all."""
    bare = load_device("h100-sxm-80gb").model_copy(update={"all_reduce": {}})
    assert all_reduce_of(bare, 2).long.bytes_per_s == pytest.approx(306e9)
    assert all_reduce_of(bare, 4).long.bytes_per_s == pytest.approx(306e9 * 4 / 6)
    with pytest.raises(ProfileError, match="neither all_reduce nor nvlink_bytes_per_s"):
        all_reduce_of(bare.model_copy(update={"nvlink_bytes_per_s": None}), 2)


def test_that_guess_is_the_median_of_the_figures() -> None:
    """Of nine fits: share of the line rate a ring would reach, and shortest latency."""
    devices = [load_device(name) for name in FITTED]
    shares = [
        2 * (ranks - 1) / ranks * reduce.long.bytes_per_s / (device.nvlink_bytes_per_s / 2)
        for device in devices
        if device.nvlink_bytes_per_s
        for ranks, reduce in device.all_reduce.items()
    ]
    latencies = [reduce.short.latency_s for d in devices for reduce in d.all_reduce.values()]
    assert len(shares) == len(latencies) == 9
    assert median(shares) == pytest.approx(RING_SHARE, abs=0.005)
    assert median(latencies) == pytest.approx(LATENCY_S, abs=0.01e-6)


@pytest.mark.parametrize("name", FITTED)
def test_more_bytes_and_more_ranks_never_take_less(name: str) -> None:
    """Bytes strictly; of ranks the fits cross by less than a tenth."""
    sizes = [2**power for power in range(8, 28)]
    by_ranks = [
        [all_reduce_of(load_device(name), ranks).seconds(size) for size in sizes]
        for ranks in (2, 4, 8)
    ]
    assert np.all(np.diff(by_ranks, axis=1) > 0)
    assert np.all(np.diff(by_ranks, axis=0) > -0.1 * np.array(by_ranks[:2]))


def test_the_fit_finds_two_lines_beneath_stray_points() -> None:
    """2 us and 50 GB/s below a megabyte, 12 us and 100 GB/s above; one point is ten times off."""
    sizes = 2.0 ** np.arange(11, 27)
    durations = np.minimum(2e-6 + sizes / 5e10, 12e-6 + sizes / 1e11)
    durations[7] *= 10
    lines, errors = FIT["lines_of"](sizes, durations)
    assert np.allclose(lines, [(2e-6, 5e10), (12e-6, 1e11)])
    assert np.median(errors) < 1e-9


@pytest.mark.skipif(not TABLE.exists(), reason="the measured tables are not beside the project")
@pytest.mark.parametrize("name", FITTED)
def test_the_shipped_figures_are_those_of_the_script(name: str) -> None:
    """To the three digits written, and their typical error as stated."""
    points = FIT["points_of"](pd.read_parquet(TABLE))
    for ranks, reduce in load_device(name).all_reduce.items():
        rows = points[name[:4] + "_sxm", ranks]
        sizes = 2.0 * rows.index.to_numpy()
        (short, long), errors = FIT["lines_of"](sizes, rows.to_numpy() / 1e3)
        assert (reduce.short.latency_s, reduce.short.bytes_per_s) == pytest.approx(short, rel=6e-3)
        assert (reduce.long.latency_s, reduce.long.bytes_per_s) == pytest.approx(long, rel=6e-3)
        assert reduce.typical_error == pytest.approx(np.median(errors), abs=6e-4)
        predicted = np.array([reduce.seconds(size) for size in sizes])
        assert np.abs(predicted / (rows.to_numpy() / 1e3) - 1).max() < 0.3
