"""What NVML says of the GPUs here: MIG instances, clocks, processes, links.

NVML is passed in as the module `pynvml` of nvidia-ml-py, or anything that answers alike. What a
device, a driver or a container does not answer is unknown, None; anything else that goes wrong
ends in one line. Settings are read, never changed. Names and meanings: NVIDIA, NVML API Reference
Guide.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

from moesim.errors import CalibrationError
from moesim.units import MIB

NO_DRIVER = ("NVMLError_LibraryNotFound", "NVMLError_DriverNotLoaded")
"""What NVML begins with where there is no NVIDIA driver."""

UNANSWERED = (
    "NVMLError_NotSupported",
    "NVMLError_NoPermission",
    "NVMLError_FunctionNotFound",
    "NVMLError_Unknown",
)
"""What a figure is unknown by: device, user, an older driver, a container that hides it."""

NO_SUCH_PLACE = (*UNANSWERED, "NVMLError_NotFound", "NVMLError_InvalidArgument")
"""What NVML says of MIG instances and NVLinks that are not there."""

HELD_DOWN = {
    0x002: "the setting of application clocks",
    0x004: "the power cap",
    0x008: "hardware slowdown",
    0x010: "sync boost",
    0x020: "temperature (software)",
    0x040: "temperature (hardware)",
    0x080: "the power brake",
    0x100: "the setting of display clocks",
}
"""Why clocks are lower than they could be: bits of nvmlClocksEventReasons. Bit 1, idle, is none."""

NO_INSTANCE = 0xFFFFFFFF
"""What a process that runs in no MIG instance has for its instance."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A program that computes on a GPU, other than this one."""

    pid: int
    memory_bytes: int | None
    """Device memory that it holds [B]."""
    gpu_instance: int | None
    """The GPU instance that it runs in, under MIG."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Instance:
    """A MIG instance that programs can use."""

    index: int
    profile: str | None
    """Such as `3g.40gb`, with a compute instance that is a part of it `1c.3g.40gb`."""
    sms: int | None
    memory_bytes: int | None
    gpu_instance: int | None
    """Its number in `nvidia-smi mig -lgi`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """One GPU; what is None was not to be learnt."""

    index: int
    name: str
    uuid_hash: str
    memory_bytes: int | None = None
    memory_used_bytes: int | None = None
    mig_enabled: bool | None = None
    """None where the GPU has no MIG."""
    mig_pending: bool | None = None
    """What MIG mode is after the next reset."""
    instances: tuple[Instance, ...] = ()
    sm_clock_mhz: int | None = None
    sm_clock_max_mhz: int | None = None
    memory_clock_mhz: int | None = None
    memory_clock_max_mhz: int | None = None
    held_down_by: tuple[str, ...] | None = None
    """Why clocks are lower than they could be; empty if they are not."""
    processes: tuple[Process, ...] | None = None
    pcie_generation: int | None = None
    """Now; an idle link slows down."""
    pcie_generation_max: int | None = None
    pcie_width: int | None = None
    """Lanes."""
    pcie_width_max: int | None = None
    nvlinks_active: int | None = None
    nvlinks: int | None = None
    """NVLinks that the GPU has."""

    @property
    def identity(self) -> str:
        """What distinguishes it, as it is divided now, from other devices."""
        if not self.mig_enabled:
            return self.uuid_hash
        layout = "+".join(sorted(part.profile or "?" for part in self.instances))
        return f"{self.uuid_hash}/mig:{layout}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Nvidia:
    """The driver and its GPUs."""

    driver: str
    gpus: tuple[Gpu, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """What a program can run on: a GPU that is not divided, or a MIG instance."""

    uuid: str
    gpu: int
    """The GPU's number."""
    profile: str | None = None
    """Of an instance, such as `3g.40gb`."""

    def __str__(self) -> str:
        """Return it as a person would say it."""
        return f"{self.profile or 'all'} of GPU {self.gpu} ({self.uuid})"


@dataclass(frozen=True, slots=True)
class _Ask:
    """Questions about one thing."""

    nvml: Any
    about: str

    def must(self, question: str, *of: Any) -> Any:
        """Return the answer; CalibrationError where there is none."""
        try:
            return getattr(self.nvml, question)(*of)
        except self.nvml.NVMLError as wrong:
            raise CalibrationError(
                f"NVML failed half-way: {self.about}: {question}: {wrong}; "
                "look at `nvidia-smi` and the kernel's log, then run again"
            ) from None

    def may(self, question: str, *of: Any, unless: tuple[str, ...] = UNANSWERED) -> Any:
        """Return the answer, or None where this is not to be learnt here."""
        if not hasattr(self.nvml, question):  # nvidia-ml-py is older than the question
            return None
        try:
            return getattr(self.nvml, question)(*of)
        except _errors(self.nvml, unless):
            return None
        except self.nvml.NVMLError:
            return self.must(question, *of)


def digest(text: str) -> str:
    """Return the first 16 hexadecimal digits of a text's SHA-256."""
    return sha256(text.encode()).hexdigest()[:16]


def look(nvml: Any) -> Nvidia | None:
    """Ask NVML for all GPUs; None where there is no NVIDIA driver.

    Raises CalibrationError, naming GPU and question, where NVML fails half-way.
    """
    with _opened(nvml) as there:
        if not there:
            return None
        ask = _Ask(nvml, "the driver")
        driver = _text(ask.must("nvmlSystemGetDriverVersion"))
        count = ask.must("nvmlDeviceGetCount")
        return Nvidia(driver=driver, gpus=tuple(_gpu(nvml, index) for index in range(count)))


def places(nvml: Any) -> list[Place] | None:
    """Return all that programs can run on; None where there is no NVIDIA driver.

    Raises CalibrationError where NVML fails half-way.
    """
    with _opened(nvml) as there:
        if not there:
            return None
        count = _Ask(nvml, "the driver").must("nvmlDeviceGetCount")
        return [place for index in range(count) for place in _places(nvml, index)]


def _places(nvml: Any, index: int) -> Iterator[Place]:
    ask = _Ask(nvml, f"GPU {index}")
    handle = ask.must("nvmlDeviceGetHandleByIndex", index)
    mode, _ = ask.may("nvmlDeviceGetMigMode", handle) or (None, None)
    if mode != nvml.NVML_DEVICE_MIG_ENABLE:
        yield Place(uuid=_text(ask.must("nvmlDeviceGetUUID", handle)), gpu=index)
        return
    for place, instance in _instance_handles(ask, handle):
        uuid = _text(ask.must("nvmlDeviceGetUUID", instance))
        profile = _instance(nvml, ask.about, place, instance).profile
        yield Place(uuid=uuid, gpu=index, profile=profile or "an instance")


def disturbances(gpu: Gpu) -> Iterator[str]:
    """Yield what would disturb a measurement on the GPU, or stand in its way."""
    name = f"GPU {gpu.index}"
    if gpu.processes:
        pids = ", ".join(str(process.pid) for process in gpu.processes)
        word = "another process" if len(gpu.processes) == 1 else "other processes"
        yield f"{name}: {word} (pid {pids}): timings will be disturbed"
    if gpu.held_down_by:
        yield f"{name}: clocks are held down by {', '.join(gpu.held_down_by)}"
    if gpu.pcie_width and gpu.pcie_width_max and gpu.pcie_width < gpu.pcie_width_max:
        yield f"{name}: PCIe has {gpu.pcie_width} of {gpu.pcie_width_max} lanes"
    if gpu.mig_pending != gpu.mig_enabled:
        mode = "on" if gpu.mig_pending else "off"
        yield f"{name}: MIG mode is waiting for a reset to turn {mode}"
    if gpu.mig_enabled and not gpu.instances:
        yield (
            f"{name}: MIG mode is on without instances: programs see no device; "
            "`moesim-calibrate commands` prints how to make some"
        )


@contextmanager
def _opened(nvml: Any) -> Iterator[bool]:
    """Start NVML and end it again; yields whether there is a driver."""
    try:
        nvml.nvmlInit()
    except _errors(nvml, NO_DRIVER):
        yield False
        return
    except nvml.NVMLError as wrong:
        raise CalibrationError(
            f"NVML does not start: {wrong}; the driver is there and does not work: "
            "look at `nvidia-smi`, or start the host again"
        ) from None
    try:
        yield True
    finally:
        with suppress(nvml.NVMLError):  # of a lost GPU; the first failure is what matters
            nvml.nvmlShutdown()


def _gpu(nvml: Any, index: int) -> Gpu:
    ask = _Ask(nvml, f"GPU {index}")
    handle = ask.must("nvmlDeviceGetHandleByIndex", index)
    memory = ask.may("nvmlDeviceGetMemoryInfo", handle)
    mig, pending = ask.may("nvmlDeviceGetMigMode", handle) or (None, None)
    links = _links(ask, handle)
    clocks = ("nvmlDeviceGetClockInfo", "nvmlDeviceGetMaxClockInfo")
    sm_clock, sm_clock_max = (ask.may(each, handle, nvml.NVML_CLOCK_SM) for each in clocks)
    memory_clock, memory_clock_max = (ask.may(each, handle, nvml.NVML_CLOCK_MEM) for each in clocks)
    return Gpu(
        index=index,
        name=_text(ask.must("nvmlDeviceGetName", handle)),
        uuid_hash=digest(_text(ask.must("nvmlDeviceGetUUID", handle))),
        memory_bytes=memory and int(memory.total),
        memory_used_bytes=memory and int(memory.used),
        mig_enabled=None if mig is None else mig == nvml.NVML_DEVICE_MIG_ENABLE,
        mig_pending=None if pending is None else pending == nvml.NVML_DEVICE_MIG_ENABLE,
        instances=_instances(ask, handle) if mig == nvml.NVML_DEVICE_MIG_ENABLE else (),
        sm_clock_mhz=sm_clock,
        sm_clock_max_mhz=sm_clock_max,
        memory_clock_mhz=memory_clock,
        memory_clock_max_mhz=memory_clock_max,
        held_down_by=_held_down(ask, handle),
        processes=_processes(ask, handle),
        pcie_generation=ask.may("nvmlDeviceGetCurrPcieLinkGeneration", handle),
        pcie_generation_max=ask.may("nvmlDeviceGetMaxPcieLinkGeneration", handle),
        pcie_width=ask.may("nvmlDeviceGetCurrPcieLinkWidth", handle),
        pcie_width_max=ask.may("nvmlDeviceGetMaxPcieLinkWidth", handle),
        nvlinks_active=sum(links) if links else None,
        nvlinks=len(links) or None,
    )


def _instances(ask: _Ask, handle: Any) -> tuple[Instance, ...]:
    """Return the MIG instances; their places are numbered with gaps."""
    parts = _instance_handles(ask, handle)
    return tuple(_instance(ask.nvml, ask.about, *part) for part in parts)


def _instance_handles(ask: _Ask, handle: Any) -> Iterator[tuple[int, Any]]:
    for place in range(ask.may("nvmlDeviceGetMaxMigDeviceCount", handle) or 0):
        part = ask.may("nvmlDeviceGetMigDeviceHandleByIndex", handle, place, unless=NO_SUCH_PLACE)
        if part is not None:
            yield place, part


def _instance(nvml: Any, about: str, place: int, handle: Any) -> Instance:
    ask = _Ask(nvml, f"{about}, MIG instance {place}")
    has = ask.may("nvmlDeviceGetAttributes_v2", handle)
    _, found, profile = _text(ask.may("nvmlDeviceGetName", handle) or "").rpartition("MIG ")
    return Instance(
        index=place,
        profile=profile if found else None,
        sms=has and int(has.multiprocessorCount),
        memory_bytes=has and int(has.memorySizeMB) * MIB,
        gpu_instance=ask.may("nvmlDeviceGetGpuInstanceId", handle),
    )


def _processes(ask: _Ask, handle: Any) -> tuple[Process, ...] | None:
    """Return who else computes here; in a container own and foreign pids differ in kind."""
    running = ask.may("nvmlDeviceGetComputeRunningProcesses", handle)
    if running is None:
        return None
    return tuple(
        Process(
            pid=int(each.pid),
            memory_bytes=each.usedGpuMemory,
            gpu_instance=_in_mig(getattr(each, "gpuInstanceId", None)),
        )
        for each in running
        if each.pid != os.getpid()
    )


def _in_mig(instance: int | None) -> int | None:
    return None if instance == NO_INSTANCE else instance


def _held_down(ask: _Ask, handle: Any) -> tuple[str, ...] | None:
    """Return why clocks are low, by the question's new name, else by the old one."""
    reasons = ask.may("nvmlDeviceGetCurrentClocksEventReasons", handle)
    if reasons is None:
        reasons = ask.may("nvmlDeviceGetCurrentClocksThrottleReasons", handle)
    if reasons is None:
        return None
    return tuple(word for bit, word in HELD_DOWN.items() if reasons & bit)


def _links(ask: _Ask, handle: Any) -> list[bool]:
    """Return of each NVLink whether it is active."""
    links = range(ask.nvml.NVML_NVLINK_MAX_LINKS)
    states = (
        ask.may("nvmlDeviceGetNvLinkState", handle, link, unless=NO_SUCH_PLACE) for link in links
    )
    return [bool(state) for state in states if state is not None]


def _errors(nvml: Any, names: tuple[str, ...]) -> tuple[type[Exception], ...]:
    return tuple(getattr(nvml, name) for name in names)


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
