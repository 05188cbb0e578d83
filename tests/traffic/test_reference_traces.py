"""The public traces themselves, where they lie beside the checkout."""

from pathlib import Path

import numpy as np
import pytest

from moesim.traffic.servegen import (
    ServeGenArrivals,
    clients_from,
    lengths_from,
    quantiles_of,
    rates_from,
    windows_of,
)
from moesim.traffic.statistics import describe, prefix_facts
from moesim.traffic.tables import read_table
from moesim.traffic.traces import read_trace

REFERENCE = Path(__file__).parents[2] / "../shared/reference"
TRACES = REFERENCE / "traces"
SERVEGEN = TRACES / "servegen"

pytestmark = pytest.mark.skipif(not TRACES.exists(), reason=f"{TRACES.resolve()} is not here")


@pytest.mark.parametrize(
    ("path", "name", "requests", "span_s"),
    [
        ("traces/azure2023/AzureLLMInferenceTrace_code.csv", "azure", 8_819, 3435.948),
        ("traces/azure2023/AzureLLMInferenceTrace_conv.csv", "azure", 19_366, 3501.722),
        ("traces/mooncake/conversation_trace.jsonl.gz", "mooncake", 12_031, 3536.999),
        ("traces/mooncake/synthetic_trace.jsonl.gz", "mooncake", 3_993, None),
        ("traces/sharegpt/sharegpt-llama-3.1-8b-300-sps10.lengths.csv", "sharegpt", 300, 29.137),
        ("traces/sharegpt/sharegpt-qwen3-30b-a3b-300-sps10.lengths.csv", "sharegpt", 300, 29.137),
        ("runs/rtxpro6000_Llama-3.1-8B.requests.jsonl.gz", "server-log", 300, 29.121),
    ],
)
def test_every_request_is_read(path: str, name: str, requests: int, span_s: float | None) -> None:
    """Without a warning, which would be an error here."""
    facts = describe(read_trace(REFERENCE / path))
    assert facts["format"] == name
    assert facts["requests"] == requests
    assert facts["skipped_rows"] == 0
    assert span_s is None or facts["span_s"] == pytest.approx(span_s, abs=5e-4)


def test_mooncake_hashes_every_block_of_a_prompt() -> None:
    """The last block of 512 tokens may be shorter; 36.6 % of the blocks came before."""
    trace = read_trace(TRACES / "mooncake/conversation_trace.jsonl.gz")
    hashed = trace.frame["prefix"].map(len)
    assert (hashed == -(-trace.frame["prompt_tokens"] // 512)).all()
    reuse = prefix_facts(trace.frame["prefix"], 512)
    assert reuse["blocks"] == 288_500
    assert reuse["reused_share"] == pytest.approx(0.366, abs=5e-4)


NAMES = ("language_m-large", "language_m-mid", "language_m-small", "reason_deepseek-r1")


@pytest.mark.parametrize("name", NAMES)
def test_servegen_windows_add_up_to_the_mean_rates(name: str) -> None:
    """A client's windows average to the rate that its row of the rates says."""
    clients = clients_from(read_table(SERVEGEN / f"{name}_top12_trace.csv"))
    rates = rates_from(read_table(SERVEGEN / f"{name}_client_mean_rates.csv"))
    said = rates.set_index("client")["rate_per_s"]
    assert clients["client"].nunique() == 12
    for client, rate in clients.groupby("client")["rate_per_s"].mean().items():
        assert rate == pytest.approx(said[client], abs=1e-5)


@pytest.mark.parametrize("name", NAMES)
def test_servegen_arrivals_are_as_many_as_measured(name: str) -> None:
    """Two hours from the tenth on of the busiest client, family by family and window by window."""
    path = SERVEGEN / f"{name}_top12_trace.csv"
    clients = clients_from(read_table(path))
    client = clients.groupby("client")["rate_per_s"].sum().idxmax()
    windows = windows_of(clients, client, path)
    process = ServeGenArrivals(kind="servegen", path=str(path), client=client, start_s=36_000)
    times = process.times_in(windows, 7200.0, np.random.default_rng(0))
    counts = np.histogram(times, bins=12, range=(0, 7200))[0]
    expected = windows[windows["start_s"].between(36_000, 36_000 + 7199)]["rate_per_s"] * 600
    assert np.all(np.abs(counts - expected.to_numpy()) <= 1)


@pytest.mark.parametrize("name", NAMES)
def test_servegen_lengths_have_64_quantiles(name: str) -> None:
    """Of every client that has lengths at all, and of both lengths."""
    path = SERVEGEN / f"{name}_top12_lengths.jsonl"
    lengths = lengths_from(read_table(path))
    for client in lengths["client"].unique():
        for field in ("prompt_tokens", "output_tokens"):
            assert quantiles_of(lengths, client, field, path).tokens.shape[1] == 64
