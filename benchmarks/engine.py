"""The engine beside transformers' own `generate`: `engine_speed.py` under its short name.

    python benchmarks/engine.py --models tiny small --batches 1 8 32

Python looks for imports in a script's own folder first, where this file would hide the package
`engine` from all scripts. So whoever imports it by that name is given the package in its place.
"""

import sys
from importlib import import_module
from pathlib import Path
from runpy import run_path

HERE = Path(__file__).resolve().parent


def give_way() -> None:
    """Import the package `engine` from wherever else it is found."""
    sys.modules.pop("engine", None)
    whole = sys.path[:]
    sys.path[:] = [folder for folder in whole if Path(folder).resolve() != HERE]
    try:
        import_module("engine")
    finally:
        sys.path[:] = whole


give_way()
if __name__ == "__main__":
    run_path(str(HERE / "engine_speed.py"), run_name="__main__")
