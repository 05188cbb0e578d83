"""Calibrate from a server's own log, and predict the part that was not looked at.

    python benchmarks/server_log.py run.requests.jsonl.gz run.meta.json

LOG holds one JSON object a request, as vLLM's request statistics have them (input_toks,
output_toks, arrival_time, queued_ts, scheduled_ts, first_token_ts, last_token_ts); META is a JSON
object with vllm_version and engine_kwargs (max_num_seqs, max_num_batched_tokens). The cost of an
iteration is fitted to what the server showed before it began with the second half of the requests;
the second half is predicted from that. docs/server-log.md tells how to read the result.
"""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd

from moesim.cost.affine import BOUNDS
from moesim.errors import MoesimError
from moesim.evidence.server_log import (
    Fit,
    ServerLog,
    fit,
    judge,
    load_server_log,
    predict,
    typical_errors,
)

SHOWN = ("mean", "p50", "p90", "p99")


def main() -> int:
    """Print fitted parameters and the comparison; 2 for a log that cannot be used."""
    arguments = _parser().parse_args()
    try:
        log = load_server_log(arguments.log, arguments.meta, arguments.kv_blocks)
        content = _content(log, len(log.records) // 2)
    except MoesimError as wrong:
        print("error:", *str(wrong).split(), file=sys.stderr)
        return 2
    print(json.dumps(content, indent=1) if arguments.json else _text(content))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("log", metavar="LOG.jsonl.gz", type=Path, help="a request a line")
    parser.add_argument("meta", metavar="META.json", type=Path, help="how the server was run")
    parser.add_argument("--kv-blocks", type=_count, help="KV blocks of 16 tokens (default: plenty)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def _content(log: ServerLog, half: int) -> dict[str, Any]:
    """Return all that is shown, as plain data."""
    found = fit(log, half)
    predicted = predict(log, found.parameters)
    first, rest = slice(half), slice(half, None)
    return {
        "requests": len(log.records),
        "fitted_on": half,
        "until_s": found.until_s,
        "schedules_ahead": log.ahead,
        "parameters": _parameters(found),
        "stretches": found.stretches,
        "scatter": found.scatter,
        "rest": _rows(judge(log, predicted, half)),
        "typical_error": {
            "in sample": typical_errors(log.records[first], predicted[first]),
            "rest": typical_errors(log.records[rest], predicted[rest]),
        },
    }


def _parameters(found: Fit) -> dict[str, dict[str, Any]]:
    return {
        name: {"value": value, "bounds": BOUNDS[name], "at_bound": name in found.at_bound}
        for name, value in asdict(found.parameters).items()
    }


def _rows(table: pd.DataFrame) -> list[dict[str, Any]]:
    return [
        {str(key): value for key, value in row.items()}
        for row in table[table["statistic"].isin(SHOWN)].to_dict("records")
    ]


def _text(content: dict[str, Any]) -> str:
    lines = [
        f"{content['requests']} requests, fitted on the first {content['fitted_on']} "
        f"until {content['until_s']:.1f} s"
        + (", server schedules ahead" if content["schedules_ahead"] else ""),
        *(
            f"  {count} stretches {kind}, median error {content['scatter'][kind]:.1%}"
            for kind, count in content["stretches"].items()
        ),
        "",
        f"{'parameter':<12} {'value [s]':>11}   bounds [s]",
    ]
    for name, one in content["parameters"].items():
        least, most = one["bounds"]
        note = "   at its bound" if one["at_bound"] else ""
        lines.append(f"{name:<12} {one['value']:>11.4g}   {least:g} to {most:g}{note}")
    header = f"{'the rest':<26} {'measured':>10} {'predicted':>10} {'error':>7}"
    lines += ["", f"{header}   {'the first half again':>20}"]
    for row in content["rest"]:
        lines.append(
            f"{row['metric']:<20} {row['statistic']:<5} {row['measured']:>10.4g} "
            f"{row['predicted']:>10.4g} {row['error']:>+7.1%}   "
            f"{row['persistence']:>10.4g} {row['persistence_error']:>+9.1%}"
        )
    lines += ["", "median error of one request"]
    for part, errors in content["typical_error"].items():
        shown = ", ".join(f"{name} {value:.1%}" for name, value in errors.items())
        lines.append(f"  {part:<10} {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    raise SystemExit(main())
