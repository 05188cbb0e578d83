"""Processes on shares import the tasks of these tests by their modules' names."""

from pathlib import Path

import pytest


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let `tests.engine.slices` be found however pytest was started."""
    monkeypatch.syspath_prepend(Path(__file__).parents[3])
