"""Step `tests`: those that need a GPU, each with its outcome."""

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd

from benchmarks.gpu_queue import outcomes as plugin
from benchmarks.gpu_queue.asked import Asked
from benchmarks.gpu_queue.provenance import Begun
from benchmarks.gpu_queue.ready import FOR_TESTS, require
from benchmarks.gpu_queue.tables import shown, write_tables

ROOT = Path(__file__).parents[2]
MARK = "mark.gpu"
OUTCOMES = ("passed", "failed", "skipped")
STDERR = 2
"""Where pytest's own lines go: what is printed last is the table."""

GOOD = "pytest ended with 0"


def run(begun: Begun) -> bool:
    """Run the tests, write what became of each, and print it; False if one failed."""
    require(FOR_TESTS)
    rows, ended = outcomes(begun.asked, marked_files())
    counts = Counter(row["outcome"] for row in rows)
    write_tables(begun, {"outcomes": rows}, ended=ended, **counts)
    print(shown(by_file(rows)))
    failed = [row for row in rows if row["outcome"] == "failed"]
    if failed:
        print(shown([{key: row[key] for key in ("test", "why")} for row in failed]))
    told = ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))
    print(f"{told or 'no test ended'}; {ended}")
    return ended == GOOD


def marked_files() -> list[Path]:
    """Return the files that have a test for a GPU; others may need what the host has not."""
    return [
        path
        for room in ("calibration", "engine")
        for path in sorted((ROOT / "tests" / room).rglob("test_*.py"))
        if MARK in path.read_text(encoding="utf-8")
    ]


def outcomes(asked: Asked, files: list[Path]) -> tuple[list[dict[str, Any]], str]:
    """Return a row a test, and how the run ended.

    A warning of another version of a library fails no test here, as it would at home.
    """
    with tempfile.TemporaryDirectory() as folder:
        found = Path(folder) / "outcomes"
        found.touch()
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-W", "default"]
        command += ["-p", plugin.__name__, "-p", "no:cacheprovider", *map(str, files)]
        try:
            done = subprocess.run(  # noqa: S603  # pytest itself
                command,
                cwd=ROOT,
                env={**os.environ, plugin.VARIABLE: str(found)},
                stdout=STDERR,
                timeout=asked.budget("tests"),
                check=False,
            )
            ended = f"pytest ended with {done.returncode}"
        except subprocess.TimeoutExpired:
            ended = f"not finished within {asked.budget('tests'):g} s"
        return [json.loads(line) for line in found.read_text().splitlines()], ended


def by_file(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return how many tests of each file had which outcome, and how long they took."""
    frame = pd.DataFrame([{**row, "file": row["test"].split("::")[0]} for row in rows])
    return [
        {
            "file": file,
            **{kind: int((part["outcome"] == kind).sum()) for kind in OUTCOMES},
            "seconds": float(part["seconds"].sum()),
        }
        for file, part in (frame.groupby("file") if rows else ())
    ]
