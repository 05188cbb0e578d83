"""A public load generator on the HTTP server: its own report beside the engine's own records.

    python3 -m venv /tmp/guidellm && /tmp/guidellm/bin/pip install guidellm
    python benchmarks/outside_client.py --guidellm /tmp/guidellm/bin/guidellm

Starts `moesim-engine serve` with a small model of random weights and a tokeniser of one character a
token, lets guidellm ask it for streamed completions without reaching for anything on the network,
and lays what guidellm reports beside what the server wrote down. Requests and tokens must be the
same. guidellm's stamps lie outside the server's, so that its mean times may not be shorter, and by
no more than one iteration longer: tokens come an iteration at a time, and a client that is a whole
one late has not seen them as they came. Exit code 1 if anything is not as it must be.

guidellm (0.8 at least) brings its own torch, so give it a virtual environment of its own.
"""

import argparse
import json
import os
import string
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from server_load import Server, serving
from tokenizers import Tokenizer
from tokenizers.decoders import Fuse
from tokenizers.models import BPE

from engine.model.loading import random_model, save_model
from moesim.facts.models import ModelSpec
from moesim.serving.records import read_records

LETTERS = sorted(string.printable)
"""Every token is seen as it comes; a byte of a longer character would be held back."""
SPEC = ModelSpec(
    hidden_size=256,
    intermediate_size=512,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=4,
    head_dim=32,
    num_local_experts=8,
    num_experts_per_tok=2,
    vocab_size=len(LETTERS),
    max_position_embeddings=1024,
    dtype="float32",
)
STATISTICS = ("mean", "p50", "p90", "p95", "p99")
TIMES = {
    "TTFT": ("time_to_first_token_ms", 1.0),
    "ITL": ("inter_token_latency_ms", 1.0),
    "latency": ("request_latency", 1e3),
}
"""What is compared: guidellm's name and the factor that makes it milliseconds."""
COUNTS = {
    "requests": "time_to_first_token_ms",
    "prompt tokens": "prompt_token_count",
    "output tokens": "output_token_count",
}
OFFLINE = {"HF_HUB_OFFLINE": "1", "GUIDELLM__MAX_WORKER_PROCESSES": "1"}
"""One process: more of them would take the cores that the server measures on."""


def main() -> int:
    """Print both side by side; 1 if they do not agree."""
    arguments = _parser().parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_checkpoint(folder / "checkpoint")
        with serving(folder / "checkpoint", folder) as server:
            report = _reported(arguments, server, folder)
        records = read_records(server.records)
    table = beside(report, records)
    print(table.to_string(float_format="{:.2f}".format))
    failed = disagreements(table)
    for line in failed:
        print("failed:", line, file=sys.stderr)
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--guidellm", default="guidellm", help="the program, if not on the PATH")
    parser.add_argument("--requests", type=int, default=200, help="how many are sent")
    parser.add_argument("--streams", type=int, default=4, help="how many at the same time")
    return parser


def make_checkpoint(folder: Path) -> None:
    """Write a model of random weights, and the tokeniser that client and server both read."""
    save_model(random_model(SPEC, seed=0), folder)
    tokeniser = Tokenizer(BPE(vocab={one: n for n, one in enumerate(LETTERS)}, merges=[]))
    tokeniser.decoder = Fuse()
    tokeniser.save(str(folder / "tokenizer.json"))
    kind = {"tokenizer_class": "PreTrainedTokenizerFast"}
    (folder / "tokenizer_config.json").write_text(json.dumps(kind))


def _reported(arguments: argparse.Namespace, server: Server, folder: Path) -> dict[str, Any]:
    """Let guidellm ask; return what it reports of the answers that it counts as successful."""
    file = folder / "report.json"
    backend = f"kind=openai_http,target={server.url},model=tiny,request_format=/v1/completions"
    command = [
        *(arguments.guidellm, "run", "--disable-console", "--backend", backend),
        *("--profile", f"kind=concurrent,streams={arguments.streams}"),
        *("--constraint", f"kind=max_requests,count={arguments.requests}"),
        *("--tokenizer", f"kind=huggingface_auto,model={folder / 'checkpoint'}"),
        *("--data", "kind=synthetic_text,prompt_tokens=64,output_tokens=24,output_tokens_stdev=8"),
        *("--output", f"kind=json,path={file}"),
    ]
    try:
        done = subprocess.run(  # noqa: S603  # the program that the user named
            command, env=os.environ | OFFLINE, capture_output=True, text=True, check=False
        )
    except FileNotFoundError:
        raise SystemExit(f"{arguments.guidellm}: not found; see --help") from None
    if done.returncode:
        raise SystemExit(f"guidellm ended with {done.returncode}: {done.stderr[-2000:]}")
    metrics = json.loads(file.read_text())["benchmarks"][0]["metrics"]
    wanted = {*COUNTS.values(), *(key for key, _ in TIMES.values())}
    return {name: metrics[name]["successful"] for name in wanted}


def beside(report: Mapping[str, Any], records: pd.DataFrame) -> pd.DataFrame:
    """Return a row a figure: guidellm's, the engine's, and what guidellm has more [ms].

    guidellm weighs a request's mean gap by its gaps, and takes percentiles that have occurred; so
    do we here.
    """
    rows = {name: (_count(report, name), value) for name, value in _counted(records).items()}
    for name, (key, factor) in TIMES.items():
        ours = _statistics(_times(records, name))
        for statistic in STATISTICS:
            theirs = factor * _figure(report[key], statistic)
            rows[f"{name} {statistic} [ms]"] = (theirs, ours[statistic])
    table = pd.DataFrame.from_dict(rows, orient="index", columns=["guidellm", "engine"])
    table["difference"] = table["guidellm"] - table["engine"]
    return table


def disagreements(table: pd.DataFrame) -> list[str]:
    """Name what cannot be: other counts, or means that are off by more than an iteration."""
    failed = [f"{name} differ" for name in COUNTS if table.loc[name, "difference"]]
    iteration_ms = table.loc["ITL mean [ms]", "engine"]
    for name in TIMES:
        late_ms = table.loc[f"{name} mean [ms]", "difference"]
        earliest_ms = -iteration_ms if name == "ITL" else 0.0
        if not earliest_ms <= late_ms <= iteration_ms:
            failed.append(f"{name} is off by {late_ms:.2f} ms, an iteration is {iteration_ms:.2f}")
    return failed


def _count(report: Mapping[str, Any], name: str) -> int:
    part = report[COUNTS[name]]
    return round(part["count"] if name == "requests" else part["total_sum"])


def _counted(records: pd.DataFrame) -> dict[str, int]:
    return {
        "requests": int((records["outcome"] == "completed").sum()),
        "prompt tokens": int(records["prompt_tokens"].sum()),
        "output tokens": int(records["output_tokens"].sum()),
    }


def _times(records: pd.DataFrame, name: str) -> NDArray[np.float64]:
    """Return the engine's own figures [ms]: one a request, of gaps one a gap."""
    columns = ("arrival_s", "first_token_s", "finish_s", "output_tokens")
    arrival, first, last, tokens = (records[column].to_numpy() for column in columns)
    if name == "ITL":
        gaps = tokens - 1
        several = gaps > 0
        means = (last - first)[several] / gaps[several]
        return np.repeat(1e3 * means, gaps[several])
    found: NDArray[np.float64] = 1e3 * ((first if name == "TTFT" else last) - arrival)
    return found


def _statistics(values: NDArray[np.float64]) -> dict[str, float]:
    found = {name: _percentile(values, float(name[1:])) for name in STATISTICS if name != "mean"}
    return {"mean": float(values.mean()), **found}


def _percentile(values: NDArray[np.float64], percent: float) -> float:
    return float(np.percentile(values, percent, method="inverted_cdf"))


def _figure(part: Mapping[str, Any], statistic: str) -> float:
    return float(part["mean"] if statistic == "mean" else part["percentiles"][statistic])


if __name__ == "__main__":
    sys.exit(main())
