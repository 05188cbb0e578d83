"""A device file for a CPU: its rates as measured here, in place of a datasheet's.

Deployments on shares of a device scale and share its arithmetic and its bandwidth, so that both
must be known. Of a GPU they are in `data/hardware/`; of a CPU they depend on the machine.
"""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import yaml

from calibration.host import Host
from moesim.errors import CalibrationError, MoesimError
from moesim.facts.catalog import load_device
from moesim.facts.hardware import Device
from moesim.files import check_outputs

MATRIX = 1024
"""Rows and columns of the square product: 2 GFLOP and 12 MiB."""

READ_BYTES = 256 * 2**20
"""Size of the matrix that is read: more than a core's own caches hold [B]."""

REPEATS = 50


def check_place(out: Path) -> None:
    """Raise where a device file cannot be written, or would replace a file of another kind."""
    check_outputs({"--out": out})
    if out.exists():
        try:
            load_device(str(out))
        except MoesimError:
            raise CalibrationError(
                f"--out {out}: is there and is no device file; choose another file"
            ) from None


def measured_device(host: Host, name: str) -> Device:
    """Return the CPU with the best rates that its cores together were seen to reach.

    Arithmetic is that of float32 matrix products, bandwidth that of a matrix times a vector, which
    reads every value once; so is what one core reads alone, often more than its part of the whole.
    The best of several, since a datasheet says what is reached at best.
    """
    square = torch.randn(MATRIX, MATRIX)
    rows = torch.randn(READ_BYTES // 4 // MATRIX, MATRIX)
    vector = torch.randn(MATRIX)
    flop_per_s = 2 * MATRIX**3 / _least_s(lambda: square @ square)
    bytes_per_s = READ_BYTES / _least_s(lambda: rows @ vector)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    alone_per_s = READ_BYTES / _least_s(lambda: rows @ vector)
    torch.set_num_threads(threads)
    return Device(
        name=name,
        kind="cpu",
        memory_bytes=host.memory_bytes,
        memory_bandwidth_bytes_per_s=float(f"{bytes_per_s:.3g}"),
        bf16_flop_per_s=float(f"{flop_per_s:.3g}"),
        sms=host.cores,
        sm_bytes_per_s=float(f"{min(alone_per_s, bytes_per_s):.3g}"),
        source=(
            f"{host.cpu}, {host.cores} cores: the host's memory; best of {REPEATS} reads of a "
            f"matrix and of {REPEATS} float32 matrix products, in torch {torch.__version__} on "
            f"{threads} threads, one for what a core reads alone"
        ),
    )


def device_yaml(device: Device) -> str:
    """Return what a device file holds."""
    return yaml.safe_dump(device.model_dump(exclude_defaults=True), sort_keys=False, width=100)


def _least_s(work: Callable[[], object]) -> float:
    """Return the shortest duration of some work [s]."""
    work()
    durations = []
    for _ in range(REPEATS):
        begun_s = time.perf_counter()
        work()
        durations.append(time.perf_counter() - begun_s)
    return min(durations)
