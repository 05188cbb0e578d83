"""The house: which way imports point, what an import costs, and what the wheel carries."""

import ast
import json
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path

import pytest

import moesim

ROOT = Path(__file__).parents[1]
PACKAGES = ("moesim", "engine", "calibration")
SOURCES = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]

GROUND_UP = (
    ("moesim.errors", "moesim.units", "moesim.files", "moesim.checked"),
    ("moesim.facts",),
    ("moesim.traffic",),
    ("moesim.serving",),
    ("moesim.cost",),
    ("moesim.deployment",),
    ("moesim.scenario",),
    ("moesim.requests",),
    ("moesim.simulation",),
    ("moesim.planning",),
    ("moesim.views", "moesim.evidence"),
    ("moesim.reproduction",),
    ("moesim.dashboard", "moesim.commands", "moesim.cli"),
)
"""The rooms of moesim, each standing on those before it."""


def _imported(source: str, package: str) -> Iterator[str]:
    """Yield the dotted names that a module imports, inside functions too."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = [*(above if node.level else []), *([node.module] if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def _imports_of(path: Path) -> set[str]:
    package = ".".join(path.relative_to(ROOT).parent.parts)
    return set(_imported(path.read_text(), package))


def _within(name: str, *rooms: str) -> bool:
    return any(name == room or name.startswith(f"{room}.") for room in rooms)


def _offences(paths: list[Path], *forbidden: str) -> list[str]:
    return [
        f"{path.relative_to(ROOT)}: {name}"
        for path in paths
        for name in sorted(_imports_of(path))
        if _within(name, *forbidden)
    ]


def _sources(*folders: str) -> list[Path]:
    found = [path for path in SOURCES if _within(_module(path), *folders)]
    assert found, folders
    return found


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def test_the_reader_of_imports_sees_them_all() -> None:
    """At the top, in a function, of several names, and relative ones."""
    source = (
        "import a.b\ndef f():\n    from c import d, e\n    from . import g\n    from ..h import i"
    )
    assert set(_imported(source, "x.y")) == {"a.b", "c.d", "c.e", "x.y.g", "x.h.i"}


def test_moesim_needs_no_engine() -> None:
    """The planner's laptop has no torch."""
    assert _offences(_sources("moesim"), "torch", "engine", "calibration") == []


def test_the_engine_shares_only_the_rules() -> None:
    """Of moesim it imports serving, facts and the ground; never the simulator or calibration."""
    assert _offences(_sources("engine"), "simpy", "calibration") == []
    shared = [f"moesim.{room}" for room in ("serving", "facts", "errors", "units", "files")]
    other = {
        (_module(path), name)
        for path in _sources("engine")
        for name in _imports_of(path)
        if _within(name, "moesim") and not _within(name, *shared)
    }
    # The three commands end alike: `moesim.commands` knows typer and the errors, nothing else.
    assert other <= {("engine.cli", "moesim.commands")}


def test_calibration_needs_no_dashboard() -> None:
    """It runs on GPU hosts."""
    assert _offences(_sources("calibration"), "moesim.dashboard", "streamlit") == []


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("simpy", ["moesim.simulation"]),
        ("streamlit", ["moesim.dashboard"]),
        ("plotly", ["moesim.views", "moesim.dashboard"]),
    ],
)
def test_a_library_stays_in_its_room(library: str, rooms: list[str]) -> None:
    """Elsewhere it is not imported; in its room it is."""
    inside = _sources(*rooms)
    outside = [path for path in SOURCES if path not in inside]
    if library == "plotly":
        # The report command only asks whether plotly is there.
        outside = [path for path in outside if path != ROOT / "calibration/report.py"]
    assert _offences(outside, library) == []
    assert _offences(inside, library) != []


@pytest.mark.parametrize("floor", range(len(GROUND_UP)))
def test_no_room_imports_one_above_it(floor: int) -> None:
    """Nothing runs back up the house."""
    above = [room for rooms in GROUND_UP[floor + 1 :] for room in rooms]
    assert _offences(_sources(*GROUND_UP[floor]), *above) == []


def test_every_room_has_its_floor() -> None:
    """A new module of moesim is placed before it is built upon."""
    rooms = [room for floor in GROUND_UP for room in floor]
    placed = {_module(path) for path in _sources(*rooms)} | {"moesim"}
    assert {_module(path) for path in _sources("moesim")} == placed


def test_importing_moesim_is_light() -> None:
    """`import moesim` brings no library along; its names are fetched when they are used."""
    program = "import json, sys, moesim; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, check=True, text=True
    )
    loaded = {name.split(".")[0] for name in json.loads(out.stdout)}
    heavy = {"torch", "pandas", "numpy", "simpy", "pydantic", "yaml", "plotly", "streamlit"}
    assert "moesim" in loaded
    assert loaded & heavy == set()


@pytest.mark.parametrize("name", moesim.__all__)
def test_a_public_name_is_there(name: str) -> None:
    """`from moesim import ...` works for all that `__all__` promises."""
    value = getattr(moesim, name)
    home = getattr(value, "__module__", "moesim")
    assert getattr(import_module(home), name, value) is value


def test_an_unknown_name_is_an_attribute_error() -> None:
    """As of any module."""
    with pytest.raises(AttributeError, match="no attribute 'simulates'"):
        getattr(moesim, "simulates")  # noqa: B009  # mypy would see the plain spelling


def test_the_public_names_are_the_lazy_ones() -> None:
    """Nothing is fetched lazily that `__all__` does not tell of."""
    assert set(moesim._HOMES) | {"MODEL_REVISION"} == set(moesim.__all__)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Build the wheel from a copy of the tree and list its files."""
    copy = tmp_path_factory.mktemp("tree")
    for name in (*PACKAGES, "data"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy / name)
    (copy / "tests").mkdir()
    (copy / "tests/test_stray.py").touch()
    (copy / "app.py").touch()
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", "dist"]
    subprocess.run(command, cwd=copy, capture_output=True, check=True)
    (built,) = (copy / "dist").glob("*.whl")
    with zipfile.ZipFile(built) as archive:
        return archive.namelist()


def test_the_wheel_carries_the_packages_and_the_data(wheel: list[str]) -> None:
    """Every module, the type markers, every data file under `moesim/data`, and nothing else."""
    expected = {str(path.relative_to(ROOT)) for path in SOURCES}
    expected |= {f"{package}/py.typed" for package in PACKAGES}
    expected |= {
        f"moesim/{path.relative_to(ROOT)}"
        for path in (ROOT / "data").rglob("*")
        if path.suffix in {".py", ".yaml", ".json", ".csv"}
    }
    assert {name for name in wheel if ".dist-info/" not in name} == expected


def test_every_data_file_is_of_a_kind_that_ships(wheel: list[str]) -> None:
    """A file put under `data/` that no pattern takes up would be missed only by users."""
    there = {path for path in (ROOT / "data").rglob("*") if path.is_file()}
    there = {path for path in there if "__pycache__" not in path.parts}
    shipped = {ROOT / name.removeprefix("moesim/") for name in wheel if "moesim/data/" in name}
    assert there == shipped


def test_the_wheel_carries_licence_and_commands(wheel: list[str]) -> None:
    """And calls itself moesim."""
    info = {name.split("/", 1)[1] for name in wheel if ".dist-info/" in name}
    assert {"METADATA", "entry_points.txt", "licenses/LICENSE"} <= info
    assert all(name.split("-")[0] == "moesim" for name in wheel if ".dist-info/" in name)
