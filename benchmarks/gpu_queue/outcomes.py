"""A plugin of pytest: each test's outcome is on file as soon as it is known.

Loaded by name into the pytest that step `tests` starts, which may run out of time half-way.
"""

import json
import os
from pathlib import Path
from typing import Any

VARIABLE = "MOESIM_GPU_OUTCOMES"
"""The environment variable that names the file, a JSON object a line."""


def pytest_runtest_logreport(report: Any) -> None:
    """Append a test's outcome, or that of what failed around it."""
    if report.when != "call" and report.outcome == "passed":
        return
    row = {
        "test": report.nodeid.removeprefix("tests/"),
        "outcome": report.outcome,
        "seconds": round(report.duration, 3),
        "why": _why(report),
    }
    with Path(os.environ[VARIABLE]).open("a", encoding="utf-8") as lines:
        lines.write(json.dumps(row) + "\n")


def _why(report: Any) -> str:
    """Return the first line of what was wrong, or the reason for which it was skipped."""
    if report.outcome == "passed":
        return ""
    text = report.longrepr[2] if isinstance(report.longrepr, tuple) else _crash(report)
    return next(iter(str(text).splitlines()), "")[:200]


def _crash(report: Any) -> str:
    crash = getattr(report.longrepr, "reprcrash", None)
    return str(crash.message if crash else report.longrepr)
