"""Profiles replace profiles and nothing else."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from calibration.cli import app as calibrate
from moesim.cli import app
from moesim.cost.places import check_place
from moesim.errors import ProfileError
from moesim.facts.catalog import shipped


@pytest.mark.parametrize("name", ["demo-cpu", "a100-sxm-80gb"])
def test_a_profile_may_be_replaced(name: str, tmp_path: Path) -> None:
    """Of one model or of kernels; and what is not there yet may be made."""
    out = tmp_path / "p.json"
    check_place(out)
    out.write_text(shipped("profiles")[name].read_text())
    check_place(out)


def test_a_drawing_replaces_no_profile(tmp_path: Path) -> None:
    """A slip of the pen; a drawing may be replaced by the next."""
    own, drawn = tmp_path / "p.json", tmp_path / "p.html"
    own.write_text(shipped("profiles")["demo-cpu"].read_text())
    for _ in range(2):
        done = CliRunner().invoke(app, ["profile", "show", str(own), "--plot", str(drawn)])
        assert done.exit_code == 0
    done = CliRunner().invoke(app, ["profile", "show", str(own), "--plot", str(own)])
    assert (done.exit_code, done.stdout) == (2, "")
    assert "is a profile; choose another file" in done.stderr
    assert own.read_text() == shipped("profiles")["demo-cpu"].read_text()


@pytest.mark.parametrize("text", ["", "hello", "{}", "[1]", '{"format": "other"}', "\0"])
def test_nothing_else_is_replaced(text: str, tmp_path: Path) -> None:
    """A thesis stays."""
    out = tmp_path / "thesis.txt"
    out.write_text(text)
    with pytest.raises(ProfileError, match="is there and is no profile; choose another file"):
        check_place(out)
    with pytest.raises(ProfileError, match="is a folder; give a file name"):
        check_place(tmp_path)
    words = ["profile", "import", "aiconfigurator", "--system", "h100_sxm", "--out", str(out)]
    assert CliRunner().invoke(app, words).exit_code == 2
    words = ["profile", "--model", "demo-moe", "--out", str(out), "--budget-s", "1"]
    assert CliRunner().invoke(calibrate, words).exit_code == 2
    assert out.read_text() == text
