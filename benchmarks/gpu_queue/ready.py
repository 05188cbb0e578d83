"""What a host has to have before anything is measured, named with its remedy where it has not."""

from importlib.util import find_spec

from moesim.errors import CalibrationError

PACKAGES = {
    "torch": "torch",
    "safetensors": "safetensors",
    "pynvml": "nvidia-ml-py",
    "numpy": "numpy",
    "pandas": "pandas",
    "pyarrow": "pyarrow",
    "yaml": "PyYAML",
    "typer.exceptions": "typer 0.29 or later",
    "rich": "rich",
    "simpy": "simpy",
    "pydantic": "pydantic",
    "pydantic_core": "pydantic-core",
    "annotated_types": "annotated-types",
    "typing_inspection": "typing-inspection",
}
"""Modules that engine and calibration import, and the packages that bring them."""

FOR_TESTS = {"pytest": "pytest", "hypothesis": "hypothesis", "transformers": "transformers"}
"""What the tests need beside."""


def require(modules: dict[str, str]) -> None:
    """Raise CalibrationError for packages that this Python has not."""
    missing = [package for module, package in modules.items() if not _there(module)]
    if missing:
        raise CalibrationError(
            f"not installed here: {', '.join(missing)}; bring wheels (docs/gpu-host.md, prepare)"
        )


def _there(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except (ImportError, ValueError):  # a module that is blocked has no spec
        return False
