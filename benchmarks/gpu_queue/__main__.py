"""The command: `python -m benchmarks.gpu_queue STEP ...`."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # before torch: threads sleep while they wait

import argparse
import json
import math
import shlex
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gpu_queue.ready import PACKAGES, require
from moesim.errors import MoesimError

if TYPE_CHECKING:
    from benchmarks.gpu_queue.provenance import Begun

STEPS = {
    "tests": "gpu_tests",
    "kernels": "kernels",
    "profile": "profiling",
    "validate": "validating",
    "variants": "variants",
}
"""Steps in the order of the queue, and the modules that do them."""


ENDS = ("done", "NOT as wanted", "could not be run")
"""How a step ended, by exit code."""


def arguments(words: list[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu_queue",
        description="What is to be measured on a GPU host, a command a step.",
    )
    parser.add_argument("steps", nargs="+", choices=(*STEPS, "all"), metavar="STEP")
    parser.add_argument("--model", choices=("tiny", "mixtral-8x7b"), default="mixtral-8x7b")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cuda")
    parser.add_argument("--out", type=Path, default=Path("gpu-queue"))
    parser.add_argument("--scratch", type=Path, help="for checkpoints; a temporary folder")
    parser.add_argument("--budget-s", type=float, help="for each step, in place of its own")
    parser.add_argument("--precision", choices=("fp8", "int8", "int4"), help="of the profile")
    parser.add_argument("--reference", type=Path, help="published layers, Parquet or CSV")
    given = parser.parse_args(words)
    if given.budget_s is not None and not given.budget_s > 0:
        parser.error(f"--budget-s: {given.budget_s:g} must be above zero")
    if given.budget_s == math.inf:
        parser.error("--budget-s: inf would never end; give seconds")
    if given.budget_s and given.steps == ["kernels"]:
        parser.error("--budget-s: kernels are repeated so many times, however long; leave it out")
    if given.precision and given.steps != ["profile"]:
        parser.error("--precision: is of the step profile alone; the others take it as it is")
    if given.reference and given.device == "cpu":
        parser.error("--reference: published layers are of GPUs; leave it out")
    if given.reference and not given.reference.is_file():
        parser.error(f"--reference: {given.reference}: no such file")
    return given


def run(given: argparse.Namespace, command: str) -> int:
    """Run the steps, and tell each one's time last; return the worst of their exit codes."""
    require(PACKAGES)
    import torch

    from benchmarks.gpu_queue.asked import Asked
    from benchmarks.gpu_queue.provenance import begin
    from benchmarks.gpu_queue.sizes import SIZES
    from calibration.host import detect
    from moesim.errors import CalibrationError
    from moesim.files import check_outputs, write_text

    check_outputs({"--out": given.out / "tables" / "steps.json"})
    if given.device == "cuda" and not torch.cuda.is_available():
        raise CalibrationError("--device cuda: torch sees no GPU here; rehearse with --device cpu")
    size = SIZES[given.model]()
    scratch = given.scratch or Path(tempfile.gettempdir()) / "moesim-gpu-queue"
    asked = Asked(
        size=size,
        device=torch.device(given.device),
        out=given.out,
        scratch=scratch,
        command=command,
        budget_s=given.budget_s,
        precision=given.precision,
        reference=given.reference,
    )
    if size.shipped is None:
        write_text(scratch / "tiny.json", json.dumps(size.spec.to_config(), indent=1) + "\n")
    host = detect()  # before this process has less of it
    steps = list(STEPS) if "all" in given.steps else given.steps
    return max([_timed(begin(asked, host, step)) for step in steps])


def _timed(begun: "Begun") -> int:
    """Run a step; return its exit code. What is wrong with one does not keep others from running.

    It is 0, 1 where figures are not as wanted or not all there, 2 where it could not be run.
    """
    from benchmarks.gpu_queue.released import release

    began_s = time.monotonic()
    step: Callable[[Begun], bool] = import_module(f"benchmarks.gpu_queue.{STEPS[begun.step]}").run
    try:
        code = 0 if step(begun) else 1
    except MoesimError as wrong:
        print(f"error: {begun.step}: {wrong}", file=sys.stderr)
        code = 2
    except Exception:  # of torch, the driver, a compiler: who watches has to see where
        traceback.print_exc()
        code = 2
    release()
    print(f"{begun.step}: {ENDS[code]}, {time.monotonic() - began_s:.0f} s\n", flush=True)
    return code


def main() -> None:
    """Run the command; a failure of what was asked for is one line."""
    command = shlex.join(["python", "-m", "benchmarks.gpu_queue", *sys.argv[1:]])
    try:
        code = run(arguments(), command)
    except MoesimError as wrong:
        print(f"error: {wrong}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from there", file=sys.stderr)
        raise SystemExit(130) from None
    raise SystemExit(code)


if __name__ == "__main__":
    main()
