"""Forms of products: counted tile by tile, and found again in a table that follows one."""

from collections.abc import Callable
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.expected import PASS_S, Rates
from moesim.cost.kernels.gemm import Form, Gemms, gemm_moved_s, gemm_roofline_s
from moesim.cost.kernels.tables import Gemm
from moesim.cost.kernels.validation import forms_of, gemm_sizes
from moesim.cost.kernels.waves import form_named, forms_for, rows_s, waves_s
from moesim.errors import ProfileError
from moesim.facts.catalog import load_device

A100 = load_device("a100-sxm-80gb")
RATES = Rates.of(A100)
SMS = 108
SHAPES = [(4096, 4096), (6144, 4096), (4096, 14336), (28672, 4096)]


def _large_tile_s(k: int) -> float:
    """Return the time of one SM for a tile of 256 x 128."""
    return 2 * 256 * 128 * k * SMS / RATES.flop_per_s


def _waves_s(n: int, k: int, tokens: float) -> float:
    return float(waves_s(RATES, "bf16", n, k, np.array([tokens]), sms=SMS)[0])


@pytest.mark.parametrize(
    ("tokens", "turns"),
    [(768, 1), (769, 2), (1280, 2), (1536, 2), (1664, 2), (1665, 3), (2048, 3)],
)
def test_tiles_are_counted_in_waves(tokens: int, turns: int) -> None:
    """4,096 columns are 32 tiles wide: 96 large ones are one wave of 108 SMs, 128 to 192 are two.

    1,664 tokens are 224 large tiles, but 416 small ones, which two waves of 216 take.
    """
    k = 1024
    moved_s = gemm_moved_s(RATES, "bf16", 4096, k, np.array([float(tokens)]))[0]
    wanted = PASS_S + np.hypot(moved_s, turns * _large_tile_s(k))
    assert _waves_s(4096, k, tokens) == pytest.approx(wanted)


def test_few_tiles_are_split() -> None:
    """8 tiles of 128 x 128 leave 100 SMs idle; in four parts they take a quarter, and summing."""
    n, k, tokens = 1024, 32768, 128
    moved_s = gemm_moved_s(RATES, "bf16", n, k, np.array([float(tokens)]))[0]
    summing_s = 2 * 4 * 4 * n * tokens / RATES.bytes_per_s
    wanted = PASS_S + np.hypot(moved_s, _large_tile_s(k) / 2 / 4 + summing_s)
    assert _waves_s(n, k, tokens) == pytest.approx(wanted)


def test_few_tokens_take_low_tiles() -> None:
    """One token computes as 16, not as 128: it is the weights that take the time."""
    n, k = 32768, 4096
    moved_s = gemm_moved_s(RATES, "bf16", n, k, np.array([1.0]))[0]
    assert PASS_S + moved_s < _waves_s(n, k, 1) < PASS_S + 1.03 * moved_s


@pytest.mark.parametrize(("tokens", "rows"), [(1, 16), (17, 32), (64, 64), (65, 128), (150, 192)])
def test_rows_of_tiles_are_computed_in_full(tokens: int, rows: int) -> None:
    """At the 16-bit rate, since weights are widened."""
    n, k = 16384, 4096
    moved_s = gemm_moved_s(RATES, "int8", n, k, np.array([float(tokens)]))[0]
    wanted = PASS_S + np.hypot(moved_s, 2 * n * k * rows / RATES.flop_per_s)
    assert rows_s(RATES, "int8", n, k, np.array([float(tokens)]))[0] == pytest.approx(wanted)


@given(st.sampled_from(SHAPES), st.lists(st.integers(1, 20_000), min_size=2, max_size=20))
def test_more_tokens_never_take_less(shape: tuple[int, int], sizes: list[int]) -> None:
    """In any form, nor do tiles ever take less than the datasheet says."""
    tokens = np.array(sorted(sizes), dtype=float)
    least = gemm_roofline_s(RATES, "bf16", *shape, tokens)
    for form in forms_for(A100).values():
        seconds = form(RATES, "bf16", *shape, tokens)
        assert np.all(np.diff(seconds) >= -1e-15)
        assert np.all(seconds >= least)


def _table(form: Form) -> list[Gemm]:
    """Return products at 0.8 of what a form says, at uneven sizes."""
    tokens = (1, 16, 64, 80, 128, 192, 256, 400, 512, 768, 800, 1024, 1400, 2048, 3000, 4096)
    return [
        Gemm(
            format="bf16",
            n=n,
            k=k,
            tokens=tokens,
            us=tuple(1.25e6 * form(RATES, "bf16", n, k, np.array(tokens, dtype=float))),
        )
        for n, k in SHAPES
    ]


@pytest.mark.parametrize("name", ["roofline", "waves", "rows"])
def test_the_form_of_a_table_is_found(name: str) -> None:
    """And what was left out is predicted to the last digit by it."""
    table = _table(form_named(name, A100))
    assert forms_of(table, RATES, forms_for(A100)) == {"bf16": name}
    errors = gemm_sizes(table, RATES, {"bf16": form_named(name, A100)}).errors
    assert errors == pytest.approx(0.0, abs=1e-9)


def test_the_roofline_stays_where_nothing_is_clearly_nearer() -> None:
    """A table of sizes at the roofline's knee alone, which no fold can tell from others."""
    table = [curve.model_copy(update={"tokens": (1, 2), "us": (5.0, 6.0)}) for curve in _table(
        form_named("rows", A100))]  # fmt: skip
    assert forms_of(table, RATES, forms_for(A100)) == {"bf16": "roofline"}


def test_a_shape_between_is_predicted_by_its_own_waves() -> None:
    """Of a machine in waves, a width that was not measured steps where its own tiles do."""
    forms = {"bf16": form_named("waves", A100)}
    rest = [curve for curve in _table(forms["bf16"]) if (curve.n, curve.k) != (6144, 4096)]
    tokens = np.array([400.0, 512.0, 768.0, 1024.0, 3000.0])
    found, _ = Gemms(rest, RATES, forms).seconds("bf16", 6144, 4096, tokens)
    assert found == pytest.approx(1.25 * forms["bf16"](RATES, "bf16", 6144, 4096, tokens))
    plain, _ = Gemms(rest, RATES).seconds("bf16", 6144, 4096, tokens)
    assert np.abs(plain / found - 1).max() > 0.2


@pytest.mark.parametrize("form", [gemm_roofline_s, rows_s])
def test_between_two_sizes_durations_lie_between(form: Callable[..., np.ndarray]) -> None:
    """However the form goes there: 300 us from 100 to 1,000 tokens, more at 2,000."""
    sizes = (100, 1000, 2000)
    curve = Gemm(format="bf16", n=4096, k=4096, tokens=sizes, us=(300.0, 300.0, 400.0))
    asked = np.array([100.0, 150.0, 500.0, 999.0, 1000.0, 1500.0, 2000.0])
    gemms = Gemms([curve], RATES, {"bf16": form})
    seconds, _ = gemms.seconds("bf16", 4096, 4096, asked)
    assert seconds[:5] * 1e6 == pytest.approx(300.0)
    assert all(low <= high + 1e-15 for low, high in pairwise(seconds))
    assert seconds[-1] * 1e6 == pytest.approx(400.0)


def test_waves_need_the_number_of_sms() -> None:
    """A device of one's own may not say; one clear line."""
    silent = A100.model_copy(update={"sms": None})
    assert list(forms_for(silent)) == ["roofline", "rows"]
    with pytest.raises(ProfileError, match=r"a100-sxm-80gb: no sms, .* add it"):
        form_named("waves", silent)
