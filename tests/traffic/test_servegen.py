"""ServeGen: clients' windows and quantiles as they are read, and the requests drawn from them."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimWarning, ScenarioError
from moesim.traffic.servegen import (
    QuantileWindows,
    ServeGenArrivals,
    ServeGenLengths,
    clients_from,
    lengths_from,
    quantiles_of,
    rates_from,
    windows_of,
)
from moesim.traffic.tables import Table, read_table
from moesim.traffic.traces import read_trace

HEADER = "client_id,window_start_s,rate_req_s,cv,arrival_family,param1,param2\n"
CLIENTS = (
    HEADER + "3,0,10,1.5,Gamma,0.44,0.2\n3,600,0.0,0.0,,0.0,0.0\n3,1200,20,3,Weibull,0.4,0.01\n"
    "7,0,1,1,Gamma,1,1\n"
)
LENGTHS = [
    {"client_id": 3, "window_start_s": 0, "input_tokens_quantiles": [10, 20],
     "output_tokens_quantiles": [1, 3, 5]},
    {"client_id": 3, "window_start_s": 21600, "input_tokens_quantiles": [100, 300],
     "output_tokens_quantiles": [7, 7, 7]},
]  # fmt: skip


def _table(tmp_path: Path, text: str) -> Table:
    path = tmp_path / "file"
    path.write_text(text)
    return read_table(path)


@pytest.fixture
def clients(tmp_path: Path) -> pd.DataFrame:
    """Return the windows of two clients, the first of them silent for a window."""
    return clients_from(_table(tmp_path, CLIENTS))


def _arrivals(**fields: object) -> ServeGenArrivals:
    given = {"kind": "servegen", "path": "trace.csv", "client": "3"} | fields
    return ServeGenArrivals.model_validate(given)


def _times(clients: pd.DataFrame, duration_s: float, seed: int = 0, **fields: object) -> np.ndarray:
    windows = windows_of(clients, "3", Path("trace.csv"))
    return _arrivals(**fields).times_in(windows, duration_s, np.random.default_rng(seed))


def test_windows_are_read_and_last_until_the_next(clients: pd.DataFrame) -> None:
    """The silent window has no family, which is no mistake."""
    mine = windows_of(clients, "3", Path("trace.csv"))
    assert mine["start_s"].tolist() == [0, 600, 1200]
    assert mine["end_s"].tolist() == [600, 1200, 1800]
    assert mine["rate_per_s"].tolist() == [10, 0, 20]


def test_every_window_has_its_own_rate(clients: pd.DataFrame) -> None:
    """10 a second, none, 20 a second: just the requests that were counted."""
    times = _times(clients, 1800.0)
    assert np.histogram(times, bins=3, range=(0, 1800))[0].tolist() == [6000, 0, 12_000]
    assert np.all(np.diff(times) >= 0)


@pytest.mark.parametrize(("window", "cv"), [(0, 1.5), (2, 3.0)])
def test_gaps_vary_as_in_the_window(clients: pd.DataFrame, window: int, cv: float) -> None:
    """The cv of 6,000 gamma and of 12,000 Weibull gaps, within four standard errors of 40 draws.

    That the gaps fill the window takes less than a thousandth off it.
    """
    found = []
    for seed in range(40):
        times = _times(clients, 600.0, seed, start_s=600.0 * window)
        found.append(np.std(np.diff(times)) / np.mean(np.diff(times)))
    standard_error = np.std(found, ddof=1) / np.sqrt(len(found))
    # A sample of a long tail shows less of it on average.
    assert abs(np.mean(found) - cv) < 4 * standard_error + 0.02 * cv


def test_a_start_and_a_speedup(clients: pd.DataFrame) -> None:
    """From 1100 s at twice the speed: 50 s of silence, then 40 a second."""
    times = _times(clients, 100.0, start_s=1100, speedup=2)
    assert times[0] >= 50
    assert len(times) / 50 == pytest.approx(40, rel=0.2)


def test_beyond_the_file_nobody_comes(clients: pd.DataFrame) -> None:
    """The file ends at 1800 s."""
    assert _times(clients, 100.0, start_s=1800).size == 0
    assert _times(clients, 10_000.0).max() < 1800


def test_a_share_of_the_requests_is_drawn_by_chance(clients: pd.DataFrame) -> None:
    """A tenth of 18,000, within four binomial standard errors."""
    count = _times(clients, 1800.0, share=0.1).size
    assert abs(count - 1800) < 4 * np.sqrt(18_000 * 0.1 * 0.9)


def test_a_rate_below_one_a_window_comes_to_its_mean(tmp_path: Path) -> None:
    """0.4 requests a window of 600 s, over 500 windows: 200 within four standard errors."""
    rows = "".join(f"3,{600 * n},{0.4 / 600},2,Gamma,1,1\n" for n in range(500))
    count = _times(clients_from(_table(tmp_path, HEADER + rows)), 300_000.0).size
    assert abs(count - 200) < 4 * np.sqrt(500 * 0.4 * 0.6)


@pytest.mark.parametrize("family", ["Gamma", "Weibull"])
@pytest.mark.parametrize("cv", [0.001, 1, 100, 1e5])
def test_even_absurd_burstiness_keeps_the_rate(tmp_path: Path, family: str, cv: float) -> None:
    """As in windows of which nearly all requests came at once: a cv of 1,038 is in the files."""
    table = _table(tmp_path, f"{HEADER}3,0,2,{cv},{family},1,1\n")
    times = _times(clients_from(table), 600.0)
    assert 1199 <= times.size <= 1200
    assert np.all((times >= 0) & (times < 600))
    assert np.all(np.isfinite(times))


def _lengths(tmp_path: Path) -> pd.DataFrame:
    return lengths_from(_table(tmp_path, "".join(json.dumps(row) + "\n" for row in LENGTHS)))


def test_lengths_follow_the_window_in_force(tmp_path: Path) -> None:
    """Before 21,600 s between 10 and 20, from then on between 100 and 300."""
    table = quantiles_of(_lengths(tmp_path), "3", "prompt_tokens", Path("lengths"))
    lengths = ServeGenLengths(kind="servegen", path="lengths", client="3")
    times = np.array([0.0] * 500 + [21_599.0] * 500 + [21_600.0] * 500 + [1e9] * 500)
    drawn = lengths.draw_at(times, table, np.random.default_rng(0))
    assert drawn.dtype == np.int64
    assert (drawn[:1000].min(), drawn[:1000].max()) == (10, 20)
    assert (drawn[1000:].min(), drawn[1000:].max()) == (100, 300)


def test_quantiles_are_inverted_at_the_middle_of_their_shares() -> None:
    """Of 1, 3, 5 a third each: below 1/6 it is 1, at 1/3 it is 2, beyond 5/6 it is 5."""
    table = QuantileWindows(starts_s=np.zeros(1), tokens=np.array([[1.0, 3.0, 5.0]]))
    levels = np.array([0, 1 / 6, 1 / 3, 1 / 2, 5 / 6, 0.999])
    found = table.inverted(np.zeros(6, dtype=np.int64), levels)
    assert found.tolist() == pytest.approx([1, 1, 2, 3, 5, 5])


@given(st.lists(st.floats(0, 1e5), min_size=2, max_size=64))
def test_the_mean_drawn_is_the_mean_of_the_quantiles(values: list[float]) -> None:
    """Integrated over a fine grid of levels."""
    table = QuantileWindows(starts_s=np.zeros(1), tokens=np.sort(values)[None])
    levels = (np.arange(20_000) + 0.5) / 20_000
    found = table.inverted(np.zeros(levels.size, dtype=np.int64), levels)
    assert found.mean() == pytest.approx(np.mean(values), rel=1e-3, abs=1e-6)


def test_lengths_are_scaled_and_clipped(tmp_path: Path) -> None:
    """At a tenth 1 to 2; clipped to one, and never below one."""
    table = quantiles_of(_lengths(tmp_path), "3", "prompt_tokens", Path("lengths"))
    given = {"kind": "servegen", "path": "lengths", "client": 3}
    times = np.zeros(100)
    scaled = ServeGenLengths.model_validate(given | {"scale": 0.1})
    assert set(scaled.draw_at(times, table, np.random.default_rng(0))) == {1, 2}
    clipped = ServeGenLengths.model_validate(given | {"scale": 0.001, "max": 1})
    assert set(clipped.draw_at(times, table, np.random.default_rng(0))) == {1}


def test_a_client_that_is_not_there_is_named_beside_those_that_are(
    clients: pd.DataFrame, tmp_path: Path
) -> None:
    """ServeGen has no lengths of a few clients."""
    with pytest.raises(ScenarioError, match=r"trace\.csv: client '9' is not in it; .* 3, 7"):
        windows_of(clients, "9", Path("trace.csv"))
    with pytest.raises(ScenarioError, match=r"no lengths of client '7' \(a few .* there: 3"):
        quantiles_of(_lengths(tmp_path), "7", "prompt_tokens", Path("lengths"))


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ("3,0,1,1,Pareto,1,1", "line 2: arrival_family: 'Pareto' is not one of Gamma, Weibull"),
        ("3,0,1,1,,1,1", "line 2: arrival_family: '' is not one of"),
        ("3,0,1,0,Gamma,1,1", "line 2: cv: '0' is not a coefficient"),
        ("3,0,-1,1,Gamma,1,1", "line 2: rate_req_s: '-1' is not a rate"),
        ("3,x,1,1,Gamma,1,1", "line 2: window_start_s: 'x' is not a number"),
        ("3,0,1,1,Gamma,1,1\n3,0,2,1,Gamma,1,1", "client '3': the window from 0 s is given twice"),
        ("", "no window in it"),
    ],
)
def test_windows_that_are_none_are_refused(tmp_path: Path, row: str, words: str) -> None:
    """By their line."""
    with pytest.raises(ScenarioError, match=words):
        clients_from(_table(tmp_path, HEADER + row + "\n"))


@pytest.mark.parametrize(
    "value", [[1], [2, 1], [1, None], [-1, 2], [1, float("nan")], [1, 10**400], [1, 1e300], "12", 7]
)
def test_quantiles_that_are_none_are_refused_or_skipped(tmp_path: Path, value: object) -> None:
    """At least two numbers that do not fall and are not negative."""
    rows = [LENGTHS[0], LENGTHS[1] | {"input_tokens_quantiles": value}]
    table = _table(tmp_path, "".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(ScenarioError, match=r"line 2: input_tokens_quantiles: .* is not a list of"):
        lengths_from(table)
    with pytest.warns(MoesimWarning, match="bad rows skipped: 1"):
        assert len(lengths_from(table, skip_bad_rows=True)) == 1


def test_rates_are_sorted_and_not_negative(tmp_path: Path) -> None:
    """The busiest first."""
    header = "client_id,mean_rate_req_s\n"
    rates = rates_from(_table(tmp_path, header + "1,2\n2,5\n"))
    assert rates.to_dict("list") == {"client": ["2", "1"], "rate_per_s": [5, 2]}
    with pytest.raises(ScenarioError, match="line 2: mean_rate_req_s: '-2' is not a rate"):
        rates_from(_table(tmp_path, header + "1,-2\n"))


def test_a_client_file_is_no_trace(tmp_path: Path) -> None:
    """Nor one of the other client files; the message says what it is."""
    table = _table(tmp_path, CLIENTS)
    with pytest.raises(ScenarioError, match=r"servegen-trace describes clients.* kind: servegen"):
        read_trace(table.path)
    with pytest.raises(ScenarioError, match="servegen-trace, expected servegen-lengths"):
        lengths_from(table)
