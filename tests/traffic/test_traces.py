"""Traces: what is read, what is refused by its line, and how a window is cut."""

import warnings
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import MoesimWarning, ScenarioError
from moesim.traffic.traces import Window, cut, read_trace

HEADER = "arrival_s,prompt_tokens,output_tokens\n"
AZURE = "TIMESTAMP,ContextTokens,GeneratedTokens\n"
HERE = Path("trace.csv")

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a trace file."""

    def written(text: str) -> Path:
        path = tmp_path / "trace.csv"
        path.write_text(text)
        return path

    return written


def _frame(*arrivals: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "arrival_s": arrivals,
            "prompt_tokens": range(len(arrivals)),
            "output_tokens": range(len(arrivals)),
        }
    )


def test_plain_columns(write: Write) -> None:
    """Times count from the first request; other columns are left out."""
    trace = read_trace(write("output_tokens,note,arrival_s,prompt_tokens\n5,a,10,3\n6,b,10.5,4\n"))
    assert trace.format == "plain"
    assert trace.frame.to_dict("list") == {
        "arrival_s": [0.0, 0.5],
        "prompt_tokens": [3, 4],
        "output_tokens": [5, 6],
    }


def test_azure_columns_keep_their_100_ns(write: Write) -> None:
    """18:17:03.9799600 to 18:17:04.0319601 is 52.0001 ms."""
    trace = read_trace(
        write(AZURE + "2023-11-16 18:17:03.9799600,4808,10\n2023-11-16 18:17:04.0319601,3180,8\n")
    ).frame
    assert trace["arrival_s"].tolist() == pytest.approx([0, 0.0520001], abs=1e-9)
    assert trace["prompt_tokens"].tolist() == [4808, 3180]
    assert trace["output_tokens"].tolist() == [10, 8]


def test_simultaneous_requests_keep_the_order_of_the_file(write: Write) -> None:
    """Two hundred requests at one instant, before an earlier one that has to be moved up."""
    rows = "".join(f"1,{number},1\n" for number in range(1, 201))
    with pytest.warns(MoesimWarning):
        trace = read_trace(write(f"{HEADER}{rows}0,999,1\n")).frame
    assert trace["prompt_tokens"].tolist() == [999, *range(1, 201)]


def test_rows_out_of_order_are_sorted_with_a_warning(write: Write) -> None:
    """The warning counts the falls and names the first line that is early: the third."""
    path = write(HEADER + "5,1,1\n3,2,1\n4,3,1\n")
    with pytest.warns(MoesimWarning, match=r"1 rows out of order, the first at line 3"):
        trace = read_trace(path).frame
    assert trace["arrival_s"].tolist() == [0, 1, 2]
    assert trace["prompt_tokens"].tolist() == [2, 3, 1]


def test_an_ordered_trace_warns_of_nothing(write: Write) -> None:
    """Ties are in order (a warning would be an error here)."""
    assert len(read_trace(write(HEADER + "0,1,1\n0,1,1\n1,1,1\n"))) == 3


def test_zero_lengths_are_kept(write: Write) -> None:
    """A recorded request without output stays in the trace; the replica will refuse it."""
    trace = read_trace(write(HEADER + "0,5,0\n1,0,5\n")).frame
    assert trace["output_tokens"].tolist() == [0, 5]
    assert trace["prompt_tokens"].tolist() == [5, 0]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "the file is empty"),
        (" \n\n", "the file is empty"),
        (HEADER, "no request in it"),
        ("arrival_s,prompt_tokens\n0,1\n", "for plain, output_tokens is missing"),
        ("a,b\n1,2\n", "unknown layout with columns a, b; known: azure, burstgpt, .*plain"),
        (HEADER + "0,1,1\n1,x,1\n", "line 3: prompt_tokens: 'x' is not a number"),
        (HEADER + "0,1,1\n1,1\n", "line 3: output_tokens: "),
        (HEADER + "0,1,1\n,1,1\n", "line 3: arrival_s: '' is not a number"),
        (HEADER + "inf,1,1\n", "line 2: arrival_s: 'inf' is not a number"),
        (HEADER + "0,-1,1\n", "line 2: prompt_tokens: '-1' is not a whole number"),
        (HEADER + "0,1,2.5\n", r"line 2: output_tokens: '2.5' is not a whole number"),
        (HEADER + "0,1,1\n0,1,1\n1,2,3,4\n", "line 4: more fields than the header"),
        (HEADER + "0,1,1\n1e400,1,1\n", "line 3: arrival_s: '1e400' is not a number"),
        (HEADER + f"0,{10**400},1\n", r"line 2: prompt_tokens: '1000*\.\.\. is not a number"),
        (HEADER + "0,1,1\n1,2\x00,3\n", r"line 3: prompt_tokens: '2\\x00' is not a number"),
        (HEADER + "0,1,1\n1,1_0,1\n", "line 3: prompt_tokens: '1_0' is not a number"),
        (HEADER + "0,True,1\n", "line 2: prompt_tokens: 'True' is not a number"),
        (HEADER + '0,1,1\n1,"2\n', "line 3: "),
        (AZURE + "now,1,1\n", "line 2: TIMESTAMP: 'now' is not a date and time"),
        (AZURE + "2023-02-30 00:00:00,1,1\n", "line 2: TIMESTAMP: '2023-02-30"),
        (AZURE + "2023-11-16 18:17:03,1,1\nlater,1,1\n", "line 3: TIMESTAMP: 'later'"),
    ],
)
def test_what_is_no_trace_is_refused_by_its_line(write: Write, text: str, words: str) -> None:
    """The message begins with the file and is one line."""
    path = write(text)
    with pytest.raises(ScenarioError, match=words) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_bad_rows_are_counted(write: Write) -> None:
    """Three rows, one of them wrong twice; the first is named, and so is the remedy."""
    with pytest.raises(ScenarioError, match=r"line 2: .*\(bad rows in all: 3\); .*skip_bad_rows"):
        read_trace(write(HEADER + "0,a,1\n1,1,1\n2,b,x\n3,1,c\n"))


def test_bad_rows_are_skipped_when_asked(write: Write) -> None:
    """Too long, wrong, blank and wrong again: three are counted, the blank line is nothing."""
    path = write(HEADER + "0,1,1\n1,2,3,4\n2,x,1\n\n3,4,5\nx,1,1\n")
    with pytest.warns(
        MoesimWarning, match=r"bad rows skipped: 3, the first at line 3: more fields"
    ):
        trace = read_trace(path, skip_bad_rows=True)
    assert trace.frame["arrival_s"].tolist() == [0, 3]
    assert trace.skipped == 3


def test_nothing_but_bad_rows_is_refused(write: Write) -> None:
    """Skipping must not end in an empty trace."""
    path = write(HEADER + "0,x,1\n")
    with pytest.warns(MoesimWarning), pytest.raises(ScenarioError, match="no request in it"):
        read_trace(path, skip_bad_rows=True)


def test_a_good_trace_is_the_same_with_skipping(write: Write) -> None:
    """And warns of nothing."""
    path = write(HEADER + "0,1,1\n2,3,4\n")
    careful, careless = read_trace(path), read_trace(path, skip_bad_rows=True)
    pd.testing.assert_frame_equal(careful.frame, careless.frame)
    assert careless.skipped == 0


@given(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=20))
def test_skipping_keeps_just_the_good_rows(rows: list[tuple[int, bool]]) -> None:
    """Wherever the bad rows are, the others come through in order, and the count is right."""
    good = [tokens for tokens, fine in rows if fine]
    lines = [f"{n},{tokens if fine else 'x'},1\n" for n, (tokens, fine) in enumerate(rows)]
    with TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore", MoesimWarning)
        path = Path(folder) / "t.csv"
        path.write_text(HEADER + "".join(lines))
        if good:
            trace = read_trace(path, skip_bad_rows=True)
            assert trace.frame["prompt_tokens"].tolist() == good
            assert trace.skipped == len(rows) - len(good)
        else:
            with pytest.raises(ScenarioError):
                read_trace(path, skip_bad_rows=True)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    """The path is in the message."""
    with pytest.raises(ScenarioError, match=r"gone\.csv: no such trace file"):
        read_trace(tmp_path / "gone.csv")


def test_a_window_is_half_open_and_starts_at_zero() -> None:
    """From 2 s for 3 s: the request at 5 s is outside, the one at 2 s becomes the first."""
    part = cut(_frame(0, 2, 3.5, 5, 9), Window(start_s=2, duration_s=3), HERE)
    assert part["arrival_s"].tolist() == [0, 1.5]
    assert part["prompt_tokens"].tolist() == [1, 2]


def test_a_speedup_halves_the_gaps() -> None:
    """Six seconds of trace in three; the window is in the trace's own time."""
    part = cut(_frame(0, 2, 3, 6), Window(start_s=1, duration_s=5, speedup=2), HERE)
    assert part["arrival_s"].tolist() == [0.5, 1.0]


def test_no_window_is_the_whole_trace() -> None:
    """Every request at its own time."""
    assert cut(_frame(0, 2, 9), Window(), HERE)["arrival_s"].tolist() == [0, 2, 9]


def test_an_empty_window_says_how_long_the_trace_is() -> None:
    """Nobody comes between 3 and 4 s of a trace of 9 s."""
    with pytest.raises(ScenarioError, match=r"no request from 3 s and 4 s; .* is 9 s long"):
        cut(_frame(0, 2, 9), Window(start_s=3, duration_s=1), HERE)


def test_one_tenant_can_be_picked_and_the_first_requests_kept() -> None:
    """Of requests at 0, 1, 2 ... alternating between a and b, from 3 s on: 3 and 5 are b's."""
    trace = _frame(*range(10)).assign(tenant=["a", "b"] * 5)
    part = cut(trace, Window(start_s=3, tenant="b", max_requests=2), HERE)
    assert part["arrival_s"].tolist() == [0, 2]
    assert part["prompt_tokens"].tolist() == [3, 5]


def test_a_tenant_that_is_not_there_is_named_beside_those_that_are() -> None:
    """Or it is said that the trace knows no tenants."""
    trace = _frame(0, 1).assign(tenant=["chat", "code"])
    with pytest.raises(ScenarioError, match=r"tenant 'x'; the trace has 'chat', 'code'"):
        cut(trace, Window(tenant="x"), HERE)
    with pytest.raises(ScenarioError, match="does not tell tenants apart"):
        cut(_frame(0, 1), Window(tenant="x"), HERE)


@given(
    arrivals=st.lists(st.integers(0, 100), min_size=1, max_size=30),
    edges=st.sets(st.integers(1, 99), max_size=4),
    speedup=st.floats(0.1, 10),
)
def test_neighbouring_windows_share_out_the_trace(
    arrivals: list[int], edges: set[int], speedup: float
) -> None:
    """Cut at any edges, every request falls into exactly one window."""
    trace = _frame(*map(float, sorted(arrivals)))
    seen: list[int] = []
    for start, end in pairwise([0, *sorted(edges), 101]):
        window = Window(start_s=start, duration_s=end - start, speedup=speedup)
        if any(start <= arrival < end for arrival in arrivals):
            part = cut(trace, window, HERE)
            assert part["arrival_s"].between(0, (end - start) / speedup).all()
            seen += part["prompt_tokens"].tolist()
    assert seen == list(range(len(arrivals)))
