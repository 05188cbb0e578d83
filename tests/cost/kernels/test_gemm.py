"""Products: exact where measured, by the roofline's shape between."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.expected import Rates
from moesim.cost.kernels.gemm import Gemms, gemm_roofline_s
from moesim.cost.kernels.tables import Gemm
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device

RATES = Rates.of(load_device("h100-sxm-80gb"))
TOKENS = (1, 16, 256, 4096)
GRID = (1024, 4096, 16384)


def _curve(n: int, k: int, factor: float) -> Gemm:
    roof = gemm_roofline_s(RATES, "bf16", n, k, np.array(TOKENS, float))
    return Gemm(format="bf16", n=n, k=k, tokens=TOKENS, us=tuple(factor * roof * 1e6))


def _machine(factor: float = 2.0) -> Gemms:
    return Gemms([_curve(n, k, factor) for n in GRID for k in GRID], RATES)


@pytest.mark.parametrize(("n", "k"), [(4096, 4096), (14336, 4096), (4096, 14336), (3000, 2000)])
def test_a_constant_share_of_the_datasheet_is_found_between(n: int, k: int) -> None:
    """At sizes and shapes that were not measured, knee and all."""
    tokens = np.array([1.0, 3.0, 200.0, 700.0, 4096.0])
    seconds, basis = _machine().seconds("bf16", n, k, tokens)
    assert seconds == pytest.approx(2.0 * gemm_roofline_s(RATES, "bf16", n, k, tokens))
    assert basis == "interpolated"


def test_what_was_measured_is_given_back() -> None:
    """To the last digit that the file has."""
    seconds, basis = _machine().seconds("bf16", 4096, 1024, np.array(TOKENS, float))
    assert seconds * 1e6 == pytest.approx(np.array(_curve(4096, 1024, 2.0).us))
    assert basis == "measured"


def test_shapes_and_sizes_outside_say_so() -> None:
    """Wider and longer ones at the last share; narrower ones are as slow as the narrowest."""
    machine = _machine()
    asked = np.array([16.0])
    wide, basis = machine.seconds("bf16", 128256, 4096, asked)
    assert wide == pytest.approx(2.0 * gemm_roofline_s(RATES, "bf16", 128256, 4096, asked))
    assert basis == "extrapolated"
    narrow, basis = machine.seconds("bf16", 8, 4096, asked)
    assert narrow == pytest.approx(machine.seconds("bf16", 1024, 4096, asked)[0])
    assert basis == "extrapolated"
    assert machine.seconds("bf16", 4096, 4096, np.array([9e4]))[1] == "extrapolated"


@given(st.integers(1024, 16384), st.integers(1024, 16384), st.floats(0.5, 3.0), st.floats(0.5, 3.0))
def test_between_two_shares_lies_a_share_between(n: int, k: int, few: float, many: float) -> None:
    """The ratio of an interpolated shape is within those of the corners."""
    curves = [_curve(a, b, few if a == GRID[0] else many) for a in GRID for b in GRID]
    tokens = np.array([1.0, 50.0, 4096.0])
    seconds, _ = Gemms(curves, RATES).seconds("bf16", n, k, tokens)
    ratio = seconds / gemm_roofline_s(RATES, "bf16", n, k, tokens)
    assert np.all(ratio > min(few, many) * (1 - 1e-9))
    assert np.all(ratio < max(few, many) * (1 + 1e-9))


def test_an_unknown_format_names_those_there_are() -> None:
    """One clear line."""
    with pytest.raises(ProfileError, match=r"no products in fp8 in these kernels, which have bf16"):
        _machine().seconds("fp8", 4096, 4096, np.array([1.0]))
