"""Experts: a machine that reads or multiplies with each expert in turn, and what is made of it."""

import numpy as np
import pytest

from moesim.cost.expected import Rates
from moesim.cost.kernels.experts import BALANCED, BORROWED, Cut, Layer, Moes
from moesim.cost.kernels.tables import Moe
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device

RATES = Rates.of(load_device("h100-sxm-80gb"))
LAYER = Layer(4096, 14336, 8, 2)
TOKENS = (1, 2, 4, 8, 64, 512, 1024, 2048, 4096, 16384)
LAUNCH, READ, VISIT = 20.0, 100.0, 0.5
"""Of the layer, of an expert, and of one visit of a token [us]."""


def _us(visits: float, distinct: float) -> float:
    return LAUNCH + max(READ * distinct, VISIT * visits)


def _hit(tokens: int, experts: int = 8, top_k: int = 2) -> int:
    return min(experts, tokens * top_k)


def _curve(distribution: str = BALANCED, **changed: object) -> Moe:
    return Moe.model_validate(
        {
            **LAYER._asdict(),
            "format": "bf16",
            "distribution": distribution,
            "tokens": TOKENS,
            "us": tuple(_us(2 * tokens, _hit(tokens)) for tokens in TOKENS),
        }
        | changed
    )


@pytest.mark.parametrize("distinct", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("tokens", [1, 4, 64, 8192])
def test_the_time_goes_with_the_experts_read_or_the_visits(tokens: int, distinct: int) -> None:
    """Where few experts are hit, and where arithmetic takes longer."""
    rank = Moes([_curve()], RATES).rank("bf16", LAYER, Cut(1, 1))
    wanted = _us(2 * tokens, distinct)
    assert rank.seconds(2 * tokens, distinct) * 1e6 == pytest.approx(wanted, rel=0.03)
    assert rank.basis_at(2 * TOKENS[-1]) == "interpolated"
    assert rank.basis_at(2 * TOKENS[-1] + 1) == "extrapolated"


def test_measured_points_are_given_back() -> None:
    """Those with few experts hit too."""
    rank = Moes([_curve()], RATES).rank("bf16", LAYER, Cut(1, 1))
    for tokens in TOKENS:
        wanted = _us(2 * tokens, _hit(tokens))
        assert rank.seconds(2 * tokens, _hit(tokens)) * 1e6 == pytest.approx(wanted, rel=1e-9)


def test_dealt_experts_are_part_of_a_rank_with_all() -> None:
    """Where the table has no balanced rank with dealt experts: four of eight, half the visits."""
    skewed = _curve("power_law_1.2", expert_parallel=2)
    rank = Moes([_curve(), skewed], RATES).rank("bf16", LAYER, Cut(1, 2))
    assert rank.seconds(64, 4) * 1e6 == pytest.approx(_us(64, 4), rel=0.05)
    assert rank.seconds(8192, 4) * 1e6 == pytest.approx(_us(8192, 4), rel=0.05)
    assert rank.basis == "interpolated"


def test_tokens_whose_visits_fall_elsewhere_are_passed_over() -> None:
    """Read and written, 4,096 wide, at 0.8 of the bandwidth; a rank's own table has them in it."""
    moes = Moes([_curve(), _curve("power_law_1.2", expert_parallel=2)], RATES)
    wanted = 2 * 4096 * 2 / (0.8 * RATES.bytes_per_s)
    assert moes.rank("bf16", LAYER, Cut(1, 2)).elsewhere_s == pytest.approx(wanted)
    assert moes.rank("bf16", LAYER._replace(inner=7168), Cut(1, 2)).elsewhere_s > 0
    assert moes.rank("bf16", LAYER, Cut(1, 1)).elsewhere_s == 0
    own = Moes([_curve(), _curve(expert_parallel=2)], RATES)
    assert own.rank("bf16", LAYER, Cut(1, 2)).elsewhere_s == 0


def test_a_balanced_rank_with_dealt_experts_is_looked_up() -> None:
    """Whatever the others say."""
    own = _curve(expert_parallel=2, us=tuple(3.0 * us for us in _curve().us))
    rank = Moes([_curve(), own], RATES).rank("bf16", LAYER, Cut(1, 2))
    assert rank.seconds(16384, 4) * 1e6 == pytest.approx(3 * _us(32768, 8))


def test_a_table_without_balanced_rows_is_read_for_what_it_knows() -> None:
    """One token hits two experts however visits fall; eight hit all, or nearly."""
    skewed = [1.0, 4.0, 7.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 1.0]  # two and four tokens tell nothing
    us = [factor * us for factor, us in zip(skewed, _curve().us, strict=True)]
    us[1] = us[2] = 500.0
    rank = Moes([_curve("power_law_1.2", us=us)], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert rank.seconds(2, 2) * 1e6 == pytest.approx(_us(2, 2))
    assert rank.seconds(8, 4) * 1e6 == pytest.approx(_us(8, 4), rel=0.05)


def test_skew_is_taken_off_where_it_is_all_there_is() -> None:
    """Balanced at 1,024 tokens, 256 visits an expert, is a sixth faster; one token has no skew."""
    rank = Moes([_curve("power_law_1.2")], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert rank.seconds(2 * 1024, 8) * 1e6 == pytest.approx(0.84 * _us(2048, 8), rel=0.02)
    assert rank.seconds(2 * 16384, 8) * 1e6 == pytest.approx(0.98 * _us(32768, 8), rel=0.02)
    assert rank.seconds(2, 2) * 1e6 == pytest.approx(_us(2, 2), rel=0.02)


def test_the_faster_of_two_frameworks_counts() -> None:
    """Balanced rows of another, beside skewed ones of its own; alone they are all there is."""
    swift = tuple(0.5 * us for us in _curve().us)
    other = _curve(f"{BORROWED}sglang 0.5.10", us=swift)
    rank = Moes([_curve("power_law_1.2"), other], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert rank.seconds(32768, 8) * 1e6 == pytest.approx(0.5 * _us(32768, 8), rel=1e-6)
    slow = other.model_copy(update={"us": tuple(4 * us for us in swift)})
    rank = Moes([_curve("power_law_1.2"), slow], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert rank.seconds(32768, 8) * 1e6 == pytest.approx(0.98 * _us(32768, 8), rel=1e-6)
    alone = Moes([other], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert alone.seconds(32768, 8) * 1e6 == pytest.approx(0.5 * _us(32768, 8), rel=1e-6)


def test_another_framework_counts_beyond_its_last_size() -> None:
    """As much faster there as it was at that size, so that nothing jumps where its table ends."""
    own, half = _curve("power_law_1.2"), len(_curve().tokens) // 2
    other = _curve(
        f"{BORROWED}sglang 0.5.10",
        tokens=own.tokens[:half],
        us=tuple(0.5 * us for us in own.us[:half]),
    )
    rank = Moes([own, other], RATES).rank("bf16", LAYER, Cut(1, 1))
    alone = Moes([own], RATES).rank("bf16", LAYER, Cut(1, 1))
    visits = [2.0 * own.tokens[half - 1], 2.0 * own.tokens[-1]]
    there, beyond = (rank.seconds(n, 8) / alone.seconds(n, 8) for n in visits)
    assert there < 0.6
    assert beyond == pytest.approx(there, rel=0.02)


def test_counted_experts_are_a_grid() -> None:
    """As profilers write them that set the number of experts hit."""
    points = [(t, d) for t in (16, 64, 512, 4096) for d in (1, 2, 4, 8)]
    counted = _curve(
        "counted",
        tokens=tuple(t for t, _ in points),
        distinct=tuple(d for _, d in points),
        us=tuple(_us(2 * t, d) for t, d in points),
    )
    rank = Moes([counted], RATES).rank("bf16", LAYER, Cut(1, 1))
    assert rank.seconds(128, 4) * 1e6 == pytest.approx(_us(128, 4))
    assert rank.seconds(128, 6) * 1e6 == pytest.approx(_us(128, 6))
    assert rank.seconds(128, 0.5) * 1e6 == pytest.approx(_us(128, 1) / 2)


def test_another_layer_is_scaled_and_says_so() -> None:
    """By the rooflines: an expert half as wide is read in half the time, launch and all."""
    rank = Moes([_curve()], RATES).rank("bf16", LAYER._replace(inner=7168), Cut(1, 1))
    assert rank.seconds(16, 8) * 1e6 == pytest.approx(_us(16, 8) / 2)
    assert rank.basis == "extrapolated"


def test_it_never_falls() -> None:
    """With visits or with experts."""
    rank = Moes([_curve()], RATES).rank("bf16", LAYER, Cut(1, 1))
    visits, hits = np.geomspace(2, 1e5, 30), np.linspace(1, 8, 15)
    table = np.array([[rank.seconds(v, d) for d in hits] for v in visits])
    assert np.all(np.diff(table, axis=0) >= -1e-12)
    assert np.all(np.diff(table, axis=1) >= -1e-12)


def test_unknown_formats_and_hopeless_tables_are_refused() -> None:
    """One clear line each."""
    with pytest.raises(ProfileError, match="no experts in fp8 in these kernels, which have bf16"):
        Moes([_curve()], RATES).rank("fp8", LAYER, Cut(1, 1))
    few = _curve(tokens=(1, 2), us=(220.0, 420.0))
    with pytest.raises(ProfileError, match="no point at which all experts are hit"):
        Moes([few], RATES).rank("bf16", LAYER, Cut(1, 1))
