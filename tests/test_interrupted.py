"""Ctrl-C before a command has begun: one word, and the exit code of an interruption."""

import subprocess
import sys

import pytest

EARLY = """
import sys

class Keyboard:
    def find_spec(self, name, *_):
        if name == "typer":
            raise KeyboardInterrupt

sys.meta_path.insert(0, Keyboard())
from {module} import main
"""

LATE = """
from unittest.mock import Mock
import {module} as cli

cli.app = Mock(side_effect=KeyboardInterrupt)
cli.main()
"""


@pytest.mark.parametrize("code", [EARLY, LATE])
@pytest.mark.parametrize("module", ["engine.cli", "calibration.cli"])
def test_before_the_command(module: str, code: str) -> None:
    """While modules are loaded, and between them and the command."""
    line = [sys.executable, "-c", code.format(module=module)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")
