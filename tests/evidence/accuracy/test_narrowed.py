"""Experts of narrow weights, against rooflines of such, and against the tables at both ends."""

from dataclasses import replace

import pytest

from moesim.cost.expected import Rates
from moesim.cost.parallel import Shard
from moesim.cost.profile import Profile
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.experiments import System, figure_of
from moesim.evidence.accuracy.names import shipped_device
from moesim.evidence.accuracy.narrowed import arithmetic_share, as_many_bytes, narrowed
from moesim.facts.precision import Precision
from tests.evidence.accuracy.test_understanding import ROW

SYSTEM = figure_of(replace(ROW, gpu="A100-SXM4-80GB", precision="FP16")).experiment.system
SHARD = Shard.of(SYSTEM.spec, SYSTEM.part)
RATES = Rates.of(shipped_device(SYSTEM.device))


def _experts(profile: Profile) -> dict[tuple[float, ...], float]:
    return {cell.at: cell.median_s for cell in profile.operations["experts"]}


def _in(name: str) -> System:
    return replace(SYSTEM, precision=Precision.uniform(name))


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_rooflines_are_met(name: str) -> None:
    """The roofline of narrow weights needs no help: reading fewer bytes, the same arithmetic."""
    costs = Costs("roofline")
    sixteen = costs._profiles(SYSTEM, 4096, 64)
    spec = as_many_bytes(SYSTEM.spec, name, SHARD.tensor_parallel)
    shorter = costs._profiles(replace(SYSTEM, spec=spec), 4096, 64)
    found = _experts(narrowed(sixteen, shorter, SHARD, RATES))
    known = _experts(costs._profiles(_in(name), 4096, 64))
    assert found == pytest.approx(known, rel=1e-3)


def test_experts_of_as_many_bytes() -> None:
    """Half the inner width for 8 bits; for 4 bits and their scales 0.26 of it, cut evenly."""
    assert as_many_bytes(SYSTEM.spec, "int8", 2).intermediate_size == 7168
    four = as_many_bytes(SYSTEM.spec, "int4", 8).intermediate_size
    assert four % 8 == 0
    assert four == pytest.approx(14336 * (4 + 20 / 128) / 16, abs=4)


def test_one_token_reads_and_many_multiply() -> None:
    assert arithmetic_share(SHARD, RATES, 1, 2) < 0.02
    assert arithmetic_share(SHARD, RATES, 4096, 8) == 1.0


def test_tables_have_both_ends() -> None:
    """A100's: one token takes as long as on twice the ranks, 4,096 tokens as long as in 16 bits."""
    costs = Costs("a100-sxm-80gb")
    sixteen, eight = (costs._profiles(_in(name), 4096, 64) for name in ("bf16", "int8"))
    assert _experts(eight)[1.0, 2.0] == pytest.approx(0.52 * _experts(sixteen)[1.0, 2.0], rel=0.03)
    assert _experts(eight)[4096.0, 8.0] == _experts(sixteen)[4096.0, 8.0]
    assert eight.rests_on("experts") == "extrapolated"
