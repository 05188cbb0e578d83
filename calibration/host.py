"""What this host is: its CPUs, its GPUs through NVML, and what else is running on them."""

import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path

from calibration.nvml import Gpu, Nvidia, digest, disturbances, look


@dataclass(frozen=True, slots=True, kw_only=True)
class Host:
    """The host, its devices, and reservations about measuring on it."""

    cpu: str
    cores: int
    memory_bytes: int
    load: float
    driver: str | None
    gpus: tuple[Gpu, ...] = ()
    notes: tuple[str, ...] = field(default_factory=tuple)

    @property
    def hash(self) -> str:
        """Identity of host and devices: profiles of different hosts do not mix.

        A GPU that is divided otherwise is another device.
        """
        parts = [socket.gethostname(), self.cpu, str(self.cores), str(self.memory_bytes)]
        return digest("|".join(parts + [gpu.identity for gpu in self.gpus]))

    @property
    def device_kind(self) -> str:
        """`cuda` where there is a GPU, else `cpu`."""
        return "cuda" if self.gpus else "cpu"


def detect() -> Host:
    """Look at this host; without an NVIDIA driver it is a CPU host, and the notes say so.

    Raises CalibrationError where there is a driver and NVML fails.
    """
    nvidia, notes = _nvidia()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if load > 0.5 * (cores or 1):
        notes.append(f"load average is {load:.1f} on {cores} cores: timings will be noisy")
    gpus = nvidia.gpus if nvidia else ()
    return Host(
        cpu=_cpu_name(),
        cores=cores or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=load,
        driver=nvidia.driver if nvidia else None,
        gpus=gpus,
        notes=(*notes, *(note for gpu in gpus for note in disturbances(gpu))),
    )


def _nvidia() -> tuple[Nvidia | None, list[str]]:
    try:
        import pynvml
    except ImportError:
        return None, ["nvidia-ml-py is not installed: GPUs are not looked for"]
    found = look(pynvml)
    if found is None:
        return None, ["no NVIDIA driver here: the CPU is the device"]
    return found, [] if found.gpus else ["the NVIDIA driver sees no GPU: the CPU is the device"]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
