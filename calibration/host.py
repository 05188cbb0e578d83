"""What this host is: its CPUs, its GPUs through NVML, and what else is running on them."""

import hashlib
import os
import platform
import socket
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from moesim.units import format_bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU as NVML describes it."""

    index: int
    name: str
    uuid_hash: str
    memory_bytes: int
    mig_enabled: bool
    processes: int
    sm_clock_mhz: int | None


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
        """Identity of host and devices: profiles of different hosts do not mix."""
        parts = [socket.gethostname(), self.cpu, str(self.cores), str(self.memory_bytes)]
        return digest("|".join(parts + [gpu.uuid_hash for gpu in self.gpus]))

    @property
    def device_kind(self) -> str:
        """`cuda` where there is a GPU, else `cpu`."""
        return "cuda" if self.gpus else "cpu"


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def detect() -> Host:
    """Look at this host; without an NVIDIA driver it is a CPU host, and the notes say so."""
    driver, gpus, notes = _gpus()
    load = os.getloadavg()[0]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    if load > 0.5 * (cores or 1):
        notes.append(f"load average is {load:.1f} on {cores} cores: timings will be noisy")
    return Host(
        cpu=_cpu_name(),
        cores=cores or 1,
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        load=load,
        driver=driver,
        gpus=tuple(gpus),
        notes=tuple(notes),
    )


def describe(host: Host) -> list[tuple[str, str]]:
    """Return the host as label and text, for a table."""
    rows = [
        ("CPU", f"{host.cpu}, {host.cores} cores"),
        ("memory", format_bytes(host.memory_bytes)),
        ("load", f"{host.load:.2f} (1 min)"),
        ("NVIDIA driver", host.driver or "none"),
    ]
    for gpu in host.gpus:
        mig = "MIG on" if gpu.mig_enabled else "MIG off"
        clock = f", {gpu.sm_clock_mhz} MHz" if gpu.sm_clock_mhz else ""
        text = f"{gpu.name}, {format_bytes(gpu.memory_bytes)}, {mig}, {gpu.processes} processes"
        rows.append((f"GPU {gpu.index}", text + clock))
    return rows + [("note", note) for note in host.notes]


def _cpu_name() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpus() -> tuple[str | None, list[Gpu], list[str]]:
    try:
        import pynvml
    except ImportError:
        return None, [], ["nvidia-ml-py is not installed: GPUs are not looked for"]
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return None, [], ["no NVIDIA driver here: the CPU is the device"]
    try:
        driver = _text(pynvml.nvmlSystemGetDriverVersion())
        return driver, [_gpu(pynvml, i) for i in range(pynvml.nvmlDeviceGetCount())], []
    except pynvml.NVMLError as wrong:
        return None, [], [f"NVML failed ({wrong}): GPUs are not listed"]
    finally:
        pynvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    handle = nvml.nvmlDeviceGetHandleByIndex(index)
    return Gpu(
        index=index,
        name=_text(nvml.nvmlDeviceGetName(handle)),
        uuid_hash=digest(_text(nvml.nvmlDeviceGetUUID(handle))),
        memory_bytes=int(nvml.nvmlDeviceGetMemoryInfo(handle).total),
        mig_enabled=_or(nvml, lambda: nvml.nvmlDeviceGetMigMode(handle)[0] == 1, False),
        processes=_or(nvml, lambda: len(nvml.nvmlDeviceGetComputeRunningProcesses(handle)), 0),
        sm_clock_mhz=_or(
            nvml, lambda: int(nvml.nvmlDeviceGetClockInfo(handle, nvml.NVML_CLOCK_SM)), None
        ),
    )


def _or(nvml: Any, ask: Any, default: Any) -> Any:
    """Ask NVML what some devices do not support."""
    try:
        return ask()
    except nvml.NVMLError:
        return default


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
