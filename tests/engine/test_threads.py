"""How torch's threads wait for each other."""

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize("package", ["engine", "calibration"])
@pytest.mark.parametrize(
    ("given", "found"),
    [({}, "passive"), ({"OMP_WAIT_POLICY": "active"}, "active")],
    ids=["by default", "told"],
)
def test_threads_sleep_while_they_wait(package: str, given: dict[str, str], found: str) -> None:
    """Said before torch is loaded, which is when OpenMP looks; a user's own word stays."""
    code = f"import {package}, os, sys; print(os.getenv('OMP_WAIT_POLICY'), 'torch' in sys.modules)"
    rest = {name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"}
    command = [sys.executable, "-c", code]
    run = subprocess.run(command, env=rest | given, capture_output=True, text=True, check=True)
    assert run.stdout.split() == [found, "False"]
