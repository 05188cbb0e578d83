"""`moesim-engine consolidate`: its file, what it prints, and one line for what is wrong."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner, Result

from engine.cli import app
from engine.variants.layout_file import read_layout


def run(*arguments: object) -> Result:
    return CliRunner().invoke(app, ["consolidate", *map(str, arguments)])


def refused(*arguments: object) -> str:
    """Return the one line with which the command ends."""
    result = run(*arguments)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.count("\n") == 1
    return result.stderr


def named(folders: dict[str, Path]) -> list[str]:
    return [f"{name}={folder}" for name, folder in folders.items()]


def test_a_layout_is_written_and_summed_up(folders: dict[str, Path], tmp_path: Path) -> None:
    """Half of six positions, three of them, one of each variant."""
    out = tmp_path / "new" / "layout.json"
    result = run(*folders.values(), "--ratio", 0.5, "--out", out)
    assert result.exit_code == 0, result.output
    layout = read_layout(out)
    shared = len(layout.ranking) // 2
    copies = shared + 3 * (len(layout.ranking) - shared)
    assert f"{shared} of {len(layout.ranking)} positions shared (1 of ada" in result.stdout
    assert f"{copies} expert copies in place of {3 * len(layout.ranking)};" in result.stdout
    assert layout.names == ["ada", "bob", "eve"]
    assert layout.provenance.torch == torch.__version__
    assert [one.distance for one in layout.ranking] == sorted(o.distance for o in layout.ranking)


def test_json(separate: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "layout.json"
    result = run(*named(separate), "--ratio", 1, "--out", out, "--json")
    found: dict[str, Any] = json.loads(result.stdout)
    assert (found["positions"], found["shared"], found["expert_copies"]) == (6, 6, 6)
    assert found["expert_copies_apart"] == 18
    assert found["sources"] == {"ada": 2, "bob": 2, "eve": 2}
    assert found["smallest_distance"] == read_layout(out).ranking[0].distance


def test_the_same_checkpoints_make_the_same_layout(
    separate: dict[str, Path], fused: dict[str, Path], tmp_path: Path
) -> None:
    """In another format too, but for the digests of the files."""
    made = []
    for index, folders in enumerate((separate, separate, fused)):
        out = tmp_path / f"{index}.json"
        assert run(*named(folders), "--ratio", 0.5, "--out", out).exit_code == 0
        made.append(read_layout(out))
    assert made[0].ranking == made[1].ranking == made[2].ranking
    assert made[0].variants == made[1].variants != made[2].variants


@pytest.mark.parametrize("ratio", ["-0.1", "1.5", "nan"])
def test_a_ratio_that_is_none(separate: dict[str, Path], tmp_path: Path, ratio: str) -> None:
    out = tmp_path / "layout.json"
    line = refused(*separate.values(), "--ratio", ratio, "--out", out)
    assert f"ratio: {ratio} must be between 0 and 1" in line
    assert list(tmp_path.iterdir()) == []


def test_what_is_there_is_kept(separate: dict[str, Path], tmp_path: Path) -> None:
    out = tmp_path / "layout.json"
    out.write_text("mine")
    line = refused(*separate.values(), "--ratio", 0.5, "--out", out)
    assert f"{out}: exists already; remove it or choose another --out" in line
    assert out.read_text() == "mine"


def test_one_variant(separate: dict[str, Path], tmp_path: Path) -> None:
    line = refused(separate["ada"], "--ratio", 0.5, "--out", tmp_path / "l.json")
    assert "variants: 1 given; consolidation needs two or more" in line


def test_two_of_a_name(separate: dict[str, Path], fused: dict[str, Path], tmp_path: Path) -> None:
    line = refused(separate["ada"], fused["ada"], "--ratio", 0.5, "--out", tmp_path / "l.json")
    assert "'ada' is there twice; name variants as NAME=FOLDER" in line


def test_different_shapes(separate: dict[str, Path], other_shape: Path, tmp_path: Path) -> None:
    """Nothing is left of what was begun."""
    line = refused(separate["ada"], other_shape, "--ratio", 0.5, "--out", tmp_path / "l.json")
    assert "intermediate_size: 20 is not 12 as in" in line
    assert list(tmp_path.iterdir()) == []


def test_no_checkpoint(separate: dict[str, Path], tmp_path: Path) -> None:
    line = refused(separate["ada"], tmp_path / "no", "--ratio", 0.5, "--out", tmp_path / "l.json")
    assert "no" in line
    assert "give a checkpoint" in line


def test_a_place_that_cannot_be_written(separate: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "layout.json"
    assert "cannot be written" in refused(*separate.values(), "--ratio", 0.5, "--out", out)
