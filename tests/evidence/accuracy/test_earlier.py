"""Kernels of earlier engines: tiles counted one by one, floors, and who had them."""

from dataclasses import replace

import pytest

from moesim.cost.parallel import Shard
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.earlier import (
    CACHE_BYTES_PER_S,
    NCCL_S,
    TRITON_2024,
    UNTUNED,
    Earlier,
    Tile,
    arithmetic_s,
    as_earlier,
    tiles_s,
)
from moesim.evidence.accuracy.engines import engine_of
from moesim.evidence.accuracy.experiments import System, figure_of
from moesim.evidence.accuracy.names import model_of
from tests.evidence.accuracy.test_understanding import ROW

MIXTRAL = model_of("mixtral-8x7b")
FIGURE = figure_of(replace(ROW, tp=2, precision="FP16"))
SYSTEM = FIGURE.experiment.system


def _read_by_blocks(shard: Shard, tile: Tile, visits: list[int]) -> int:
    """Return the values that the blocks of a layer's products read, block after block."""
    inner, hidden = shard.spec.intermediate_size // shard.tensor_parallel, shard.spec.hidden_size
    read = 0
    for rows_of_expert in visits:
        for columns, depth in ((inner, hidden), (inner, hidden), (hidden, inner)):
            for first in range(0, rows_of_expert, tile.rows):
                rows = min(tile.rows, rows_of_expert - first)
                for _ in range(0, columns, tile.columns):
                    read += depth * (tile.columns + rows)
    return read


@pytest.mark.parametrize("tile", [Tile(rows=64, columns=64), Tile(rows=32, columns=128)])
def test_tiles_read_what_their_blocks_read(tile: Tile) -> None:
    """Visits of each expert as many as fill their last tile by half: 96 or 160 of 8 experts."""
    shard = Shard(spec=MIXTRAL, tensor_parallel=8)
    for each in (tile.rows + tile.rows // 2, 4 * tile.rows + tile.rows // 2):
        values = _read_by_blocks(shard, tile, [each] * 8)
        seconds = tiles_s(shard, tile, 8 * each / 2, 8, "bf16")
        assert seconds * CACHE_BYTES_PER_S == pytest.approx(2 * values, rel=1e-6)


def test_few_visits_read_each_expert_once() -> None:
    """One token visits two experts: their weights, and two rows for every 64 columns of each."""
    shard = Shard(spec=MIXTRAL, tensor_parallel=2)
    values = _read_by_blocks(shard, UNTUNED, [1, 1])
    assert tiles_s(shard, UNTUNED, 1, 2, "bf16") * CACHE_BYTES_PER_S == pytest.approx(2 * values)


def test_dealt_experts_read_their_part() -> None:
    whole, dealt = Shard(spec=MIXTRAL), Shard(spec=MIXTRAL, expert_parallel=4)
    assert tiles_s(dealt, UNTUNED, 4096, 8, "bf16") == pytest.approx(
        tiles_s(whole, UNTUNED, 4096, 8, "bf16") / 4
    )


def test_visits_take_no_less_than_a_rate_allows() -> None:
    """2 x 3 x 4096 x 14336 / 2 FLOP a visit, two a token."""
    shard = Shard(spec=MIXTRAL, tensor_parallel=2)
    assert arithmetic_s(shard, 100, 1e12) == pytest.approx(200 * 4096 * 14336 * 3e-12)


def _of(earlier: Earlier | None, operation: str) -> dict[tuple[float, ...], float]:
    system = replace(SYSTEM, earlier=earlier)
    profile = Costs("roofline")._profiles(system, 4096, 64)
    return {cell.at: cell.median_s for cell in profile.operations[operation]}


def test_floors_lift_what_is_below_and_leave_the_rest() -> None:
    now, then = _of(None, "collectives"), _of(Earlier(nccl=True), "collectives")
    least_s = 2 * NCCL_S["h100-sxm-80gb", 2]
    assert then == {at: max(seconds, least_s) for at, seconds in now.items()}
    assert then[(1.0,)] == least_s < now[(4096.0,)] == then[(4096.0,)]


def test_a_rate_of_another_device_is_none_of_this() -> None:
    elsewhere = Earlier(flop_per_s=(("a100-sxm-80gb", 1e12),))
    assert _of(elsewhere, "experts") == _of(None, "experts")
    here = _of(Earlier(flop_per_s=(("h100-sxm-80gb", 1e12),)), "experts")
    assert here[(4096.0, 8.0)] > 100 * _of(None, "experts")[(4096.0, 8.0)]


def test_what_is_changed_is_extrapolated() -> None:
    system = replace(SYSTEM, earlier=None)
    profile = Costs("roofline")._profiles(system, 4096, 64)
    shard = Shard.of(system.spec, system.part)
    then = as_earlier(profile, Earlier(tile=UNTUNED), shard, system.device, "fp16")
    assert then.rests_on("experts") == "extrapolated"
    assert then.rests_on("projections") == profile.rests_on("projections")


def test_who_had_them() -> None:
    early = Earlier(flop_per_s=TRITON_2024, nccl=True)
    assert engine_of("vLLM 0.2.7", "static_batch").earlier == replace(early, tile=UNTUNED)
    assert engine_of("vLLM 0.3.3, tuned tiles", "static_batch").earlier == early
    for later in ("vLLM", "vLLM 0.4.0", "vllm 0.12.0", "TensorRT-LLM 0.14"):
        assert engine_of(later, "static_batch").earlier is None


def _of_0_9(**but: object) -> System:
    row = replace(
        ROW, software="TensorRT-LLM 0.9.0", scenario="static_batch", load="batch 8", **but
    )
    return figure_of(row).experiment.system


def test_experts_of_0_9_are_in_16_bits() -> None:
    precision = _of_0_9(precision="FP8").precision
    assert (precision.experts, precision.rest, precision.kv) == ("fp16", "fp8", "fp8")
    assert figure_of(ROW).experiment.system.precision.experts == "fp8"


def test_answers_of_0_9_to_long_prompts_are_alike() -> None:
    assert _of_0_9(isl=2048.0).alike
    assert not _of_0_9(isl=128.0).alike
    assert not _of_0_9(isl=2048.0, osl=1.0).alike
    assert _of_0_9(isl=128.0).rare == 0.005
