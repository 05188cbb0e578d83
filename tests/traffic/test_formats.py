"""Every layout of a trace on a small file of its kind, and files that are none."""

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from moesim.errors import MoesimWarning, ScenarioError
from moesim.serving.records import Record, records_frame, write_records
from moesim.traffic.formats import LAYOUTS, SERVEGEN, recognise
from moesim.traffic.traces import Trace, read_trace

Write = Callable[[str | bytes], Path]

PLAIN = "arrival_s,prompt_tokens,output_tokens\n"


@pytest.fixture
def write(tmp_path: Path) -> Write:
    """Write a file of a name that says nothing."""

    def written(content: str | bytes) -> Path:
        path = tmp_path / "file"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return written


def _lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


def _columns(trace: Trace) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = trace.frame.to_dict("list")
    return found


def test_azure_2024_has_an_offset_and_mixed_fractions(write: Write) -> None:
    """A whole second has no fraction there; 2023 has no offset (tests/traffic/test_traces.py)."""
    trace = read_trace(
        write(
            "TIMESTAMP,ContextTokens,GeneratedTokens\n"
            "2024-05-10 00:00:00.009930+00:00,2162,5\n"
            "2024-05-10 00:00:01+00:00,2399,6\n"
        )
    )
    assert trace.format == "azure"
    assert trace.frame["arrival_s"].tolist() == pytest.approx([0, 0.99007], abs=1e-9)


def test_burstgpt_has_a_tenant_a_model_and_keeps_failures(write: Write) -> None:
    """A failed request has no response; a tenant called NA is called so."""
    trace = read_trace(
        write(
            "Timestamp,Model,Request tokens,Response tokens,Total tokens,Log Type\n"
            "5,ChatGPT,472,18,490,Conversation log\n"
            "45.5,NA,1087,0,1087,API log\n"
        )
    )
    assert trace.format == "burstgpt"
    assert _columns(trace) == {
        "arrival_s": [0, 40.5],
        "prompt_tokens": [472, 1087],
        "output_tokens": [18, 0],
        "tenant": ["ChatGPT", "NA"],
    }


def test_mooncake_counts_milliseconds_and_hashes_512_tokens(write: Write) -> None:
    """1100 tokens are three blocks, the first of them as in the request before."""
    rows = [
        {"timestamp": 27000, "input_length": 700, "output_length": 52, "hash_ids": [46, 47]},
        {"timestamp": 30500, "input_length": 1100, "output_length": 7, "hash_ids": [46, 99, 10]},
    ]
    trace = read_trace(write(_lines(*rows)))
    assert (trace.format, trace.prefix_block) == ("mooncake", 512)
    assert _columns(trace) == {
        "arrival_s": [0, 3.5],
        "prompt_tokens": [700, 1100],
        "output_tokens": [52, 7],
        "prefix": [(46, 47), (46, 99, 10)],
    }


def test_bailian_counts_seconds_and_hashes_16_tokens(write: Write) -> None:
    """Its types are tenants."""
    row = {"chat_id": 159, "parent_chat_id": -1, "timestamp": 61.114, "input_length": 20,
           "output_length": 132, "type": "text", "turn": 1, "hash_ids": [1089, 1090]}  # fmt: skip
    trace = read_trace(write(_lines(row, row | {"timestamp": 62.114, "type": "search"})))
    assert (trace.format, trace.prefix_block) == ("bailian", 16)
    assert trace.frame["arrival_s"].tolist() == pytest.approx([0, 1])
    assert trace.frame["tenant"].tolist() == ["text", "search"]
    assert trace.frame["prefix"].tolist() == [(1089, 1090)] * 2


def test_sharegpt_lengths_count_nanoseconds(write: Write) -> None:
    """301 ms lie between these two."""
    trace = read_trace(
        write("arrival_time_ns,input_toks,output_toks\n46926808,2361,532\n347938951,1128,772\n")
    )
    assert trace.format == "sharegpt"
    assert trace.frame["arrival_s"].tolist() == pytest.approx([0, 0.301012143], abs=1e-12)


def test_a_server_log_counts_from_the_epoch(write: Write) -> None:
    """Its first request is at zero all the same."""
    row = {"request_id": "a", "input_toks": 2358, "output_toks": 531, "arrival_time": 1777142838.25}
    trace = read_trace(write(_lines(row, row | {"arrival_time": 1777142838.75})))
    assert trace.format == "server-log"
    assert trace.frame["arrival_s"].tolist() == [0, 0.5]


RUN = {
    "request_throughput": 2.0,
    "total_input_tokens": 30,
    "input_lens": [10, 20],
    "output_lens": [5, 0],
    "start_times": [1001.5, 1002.0],
}


@pytest.mark.parametrize("indent", [None, 2])
def test_a_benchmark_result_is_an_object_of_arrays(write: Write, indent: int | None) -> None:
    """On one line or over many; a failed request has no output."""
    trace = read_trace(write(json.dumps(RUN, indent=indent)))
    assert trace.format == "vllm-bench"
    assert _columns(trace) == {
        "arrival_s": [0, 0.5],
        "prompt_tokens": [10, 20],
        "output_tokens": [5, 0],
    }


def test_benchmark_results_appended_to_one_file_are_tenants(write: Write) -> None:
    """Each run has a clock of its own, so each begins at zero."""
    later = RUN | {"start_times": [7.0, 7.25]}
    trace = read_trace_quietly(write(_lines(RUN, later)))
    assert trace.frame.sort_values(["tenant", "arrival_s"]).to_dict("list") == {
        "arrival_s": [0, 0.5, 0, 0.25],
        "prompt_tokens": [10, 20, 10, 20],
        "output_tokens": [5, 0, 5, 0],
        "tenant": ["run 1", "run 1", "run 2", "run 2"],
    }


def read_trace_quietly(path: Path) -> Trace:
    with pytest.warns(MoesimWarning, match="out of order"):
        return read_trace(path)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"start_times": None}, "without start_times; repeat it with .*--save-detailed"),
        ({"input_lens": None, "start_times": None}, "without start_times, input_lens"),
        ({"output_lens": [1]}, "arrays of different lengths"),
        ({"output_lens": [1, "x"]}, "request 2: output_lens: 'x' is not a number"),
    ],
)
def test_a_benchmark_result_that_lacks_something(
    write: Write, change: dict[str, Any], words: str
) -> None:
    """What is missing, and the option that writes it."""
    run = {key: value for key, value in (RUN | change).items() if value is not None}
    with pytest.raises(ScenarioError, match=words):
        read_trace(write(json.dumps(run)))


@pytest.mark.parametrize("suffix", [".csv", ".parquet"])
def test_moesim_reads_its_own_records(tmp_path: Path, suffix: str) -> None:
    """Of a run's records, arrivals, lengths and tenants can be replayed."""
    records = [
        Record(request_id=n, tenant=tenant, arrival_s=1.5 * n, prompt_tokens=8, output_tokens=3)
        for n, tenant in enumerate(["chat", "NA"])
    ]
    path = tmp_path / f"records{suffix}"
    write_records(records_frame(records), path)
    trace = read_trace(path)
    assert trace.format == "records"
    assert trace.frame["arrival_s"].tolist() == [0, 1.5]
    assert trace.frame["tenant"].tolist() == ["chat", "NA"]


FRAME = pd.DataFrame(
    {"arrival_s": [1.0, 2.5], "prompt_tokens": [3, 4], "output_tokens": [5, 6], "tenant": ["a", ""]}
)


@pytest.mark.parametrize("kind", ["csv", "json", "parquet"])
@pytest.mark.parametrize("zipped", [False, True])
def test_plain_columns_in_any_kind_of_file(tmp_path: Path, kind: str, zipped: bool) -> None:
    """CSV, JSONL and Parquet hold the same trace, gzipped or not, whatever the file's name."""
    path = tmp_path / "trace"
    {
        "csv": lambda: FRAME.to_csv(path, index=False),
        "json": lambda: FRAME.to_json(path, orient="records", lines=True),
        "parquet": lambda: FRAME.to_parquet(path),
    }[kind]()
    if zipped:
        path.write_bytes(gzip.compress(path.read_bytes()))
    trace = read_trace(path)
    assert trace.format == "plain"
    assert _columns(trace) == FRAME.assign(arrival_s=[0, 1.5]).to_dict("list")


def test_a_byte_order_mark_is_no_part_of_a_name(write: Write) -> None:
    """Spreadsheets write one."""
    assert len(read_trace(write(b"\xef\xbb\xbf" + PLAIN.encode() + b"0,1,1\n"))) == 1


def test_every_layout_is_told_from_the_others() -> None:
    """By just its own columns, and with a column more."""
    known = {name: layout.columns for name, layout in LAYOUTS.items()} | SERVEGEN
    for name, columns in known.items():
        assert recognise(columns) == name
        assert recognise([*columns, "note"]) == name


MOONCAKE = {"timestamp": 0, "input_length": 5, "output_length": 1, "hash_ids": [1]}


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([MOONCAKE, MOONCAKE | {"hash_ids": "1"}], "line 2: hash_ids: '1' is not a list"),
        ([MOONCAKE, MOONCAKE | {"hash_ids": [1, 2.5]}], r"line 2: hash_ids: \[1, 2.5\] is not"),
        ([MOONCAKE, MOONCAKE | {"hash_ids": None}], "line 2: hash_ids: None is not a list"),
        ([MOONCAKE, MOONCAKE | {"input_length": True}], "line 2: input_length: True is not a"),
        ([MOONCAKE | {"input_length": True}] * 2, "line 1: input_length: True is not a number"),
        ([MOONCAKE, MOONCAKE | {"input_length": "5"}], "line 2: input_length: '5' is not a"),
        ([MOONCAKE, MOONCAKE | {"input_length": 10**400}], "line 2: input_length: 1000"),
        ([MOONCAKE, MOONCAKE | {"input_length": 2**70}], "line 2: input_length: 1180"),
        ([MOONCAKE, MOONCAKE | {"timestamp": float("nan")}], "line 2: timestamp: nan is not a"),
        ([MOONCAKE, MOONCAKE | {"timestamp": [1]}], r"line 2: timestamp: \[1\] is not a number"),
        ([MOONCAKE, MOONCAKE | {"output_length": -1}], "line 2: output_length: -1 is not a whole"),
        ([MOONCAKE, {"timestamp": 5}], "line 2: input_length: None is not a number"),
        ([MOONCAKE, [1, 2]], "line 2: not a JSON object"),
        ([MOONCAKE, 7], "line 2: not a JSON object"),
        ([{"a": 1}], "unknown layout with columns a; known: "),
    ],
)
def test_json_of_the_wrong_shape_is_refused_by_its_line(
    write: Write, rows: list[Any], words: str
) -> None:
    """A number is a JSON number: neither true nor text."""
    with pytest.raises(ScenarioError, match=words) as caught:
        read_trace(write(_lines(*rows)))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("broken", "place"),
    [("{", 0), ("nonsense", 0), ("null", 0), ('{"timestamp": 1,}', 1), ("[" * 100_000, 1)],
    ids=["brace", "words", "null", "comma", "deep"],
)
def test_lines_that_are_no_json_are_bad_rows(write: Write, broken: str, place: int) -> None:
    """The first as any other: refused by its number, skipped when asked."""
    lines = [_lines(MOONCAKE), _lines(MOONCAKE)]
    lines.insert(place, broken + "\n")
    path = write("".join(lines))
    with pytest.raises(ScenarioError, match=f"line {place + 1}: not a JSON object"):
        read_trace(path)
    with pytest.warns(MoesimWarning, match="bad rows skipped: 1"):
        assert len(read_trace(path, skip_bad_rows=True)) == 2


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"[1, 2]", "a JSON list; write one object a line"),
        (b"{}", "unknown layout with columns none"),
        (b"{", "line 1: not a JSON object"),
        (b"\xff\xfe\x00a", "line 1: neither UTF-8 text nor Parquet"),
        (PLAIN.encode() + b"0,1,1\n1,\xff,1\n", "line 3: neither UTF-8 text"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "neither UTF-8 text"),
        (bytes(50), "unknown layout"),
        (b"PAR1", "not readable as Parquet"),
        (b"PAR1\xff\xfe\x00" * 20, "not readable as Parquet"),
        (gzip.compress(PLAIN.encode() * 500, mtime=0)[:-20], "broken gzip; is it truncated?"),
        (gzip.compress(PLAIN.encode(), mtime=0)[:5], "broken gzip"),
        (b"\x1f\x8bnonsense", "broken gzip"),
        (gzip.compress(b"", mtime=0), "the file is empty"),
        (PLAIN.encode() + b'0,1,1\n"' + b"x" * 200_000 + b"\n1,2,3,4\n", "not readable as CSV"),
    ],
)
def test_files_that_are_no_table_are_one_line(write: Write, content: bytes, words: str) -> None:
    """It begins with the file and ends in what to do or what is wrong."""
    path = write(content)
    with pytest.raises(ScenarioError, match=words.replace("?", r"\?")) as caught:
        read_trace(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(str(path))


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    """Nor a file that is not there (tests/traffic/test_traces.py)."""
    with pytest.raises(ScenarioError, match="is a folder; give a file"):
        read_trace(tmp_path)


@pytest.mark.parametrize(
    "column",
    [
        pd.Series([1.0, None], dtype="Float64"),
        pd.to_datetime(pd.Series(["2024-01-01", "2024-01-02"])),
        pd.Series([True, False]),
        pd.Series(["1", "x"]),
        pd.Series([[1], [2]]),
    ],
    ids=lambda column: str(column.dtype),
)
def test_parquet_of_other_types_is_refused_by_its_row(tmp_path: Path, column: pd.Series) -> None:
    """A row of a Parquet file has no line."""
    path = tmp_path / "t.parquet"
    FRAME.assign(arrival_s=column).to_parquet(path)
    with pytest.raises(ScenarioError, match=r"row [12]: arrival_s: .* is not a number"):
        read_trace(path)
