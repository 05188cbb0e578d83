"""What a host is, as a table on the terminal."""

from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from calibration.host import Host
from calibration.nvml import Gpu, Instance, Process
from moesim.units import format_bytes

UNKNOWN = "unknown"
"""What stands for a figure that NVML does not tell."""

Row = tuple[str, str]
"""Label and text."""


def show_host(host: Host) -> None:
    """Print the host, a section for each GPU, and the notes."""
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for label, text in describe(host):
        table.add_row(Text(label, style="bold" if label.startswith("GPU") else ""), Text(text))
    Console(highlight=False).print(table)


def describe(host: Host) -> list[Row]:
    """Return the host as label and text."""
    rows = [
        ("CPU", f"{host.cpu}, {host.cores} cores"),
        ("memory", format_bytes(host.memory_bytes)),
        ("load", f"{host.load:.2f} (1 min)"),
        ("NVIDIA driver", host.driver or "none"),
    ]
    for gpu in host.gpus:
        rows += _gpu_rows(gpu)
    return rows + [("note", note) for note in host.notes]


def _gpu_rows(gpu: Gpu) -> Iterator[Row]:
    """Yield what there is to say of a GPU and its MIG instances."""
    used = f"{_bytes(gpu.memory_used_bytes)} of {_bytes(gpu.memory_bytes)} used"
    yield f"GPU {gpu.index}", f"{gpu.name}, {used}"
    yield "  MIG", _mig(gpu)
    for instance in gpu.instances:
        yield f"    {instance.index}", _instance(instance)
    sm = f"SM {_of(gpu.sm_clock_mhz, gpu.sm_clock_max_mhz)} MHz"
    memory = f"memory {_of(gpu.memory_clock_mhz, gpu.memory_clock_max_mhz)} MHz"
    yield "  clocks", f"{sm}, {memory}"
    yield "  held down by", _listed(gpu.held_down_by)
    yield "  processes", _processes(gpu.processes)
    generation = _of(gpu.pcie_generation, gpu.pcie_generation_max)
    yield "  PCIe", f"generation {generation}, {_of(gpu.pcie_width, gpu.pcie_width_max)} lanes"
    links = _of(gpu.nvlinks_active, gpu.nvlinks)
    yield "  NVLink", UNKNOWN if gpu.nvlinks is None else f"{links} links active"


def _mig(gpu: Gpu) -> str:
    if gpu.mig_enabled is None:
        return "not there"
    if not gpu.mig_enabled:
        return "off"
    return f"on, {len(gpu.instances)} instances"


def _instance(instance: Instance) -> str:
    sms = UNKNOWN if instance.sms is None else instance.sms
    return (
        f"{instance.profile or 'profile unknown'}, {sms} SMs, {_bytes(instance.memory_bytes)}, "
        f"GPU instance {UNKNOWN if instance.gpu_instance is None else instance.gpu_instance}"
    )


def _processes(processes: tuple[Process, ...] | None) -> str:
    return _listed(None if processes is None else tuple(map(_process, processes)))


def _process(process: Process) -> str:
    where = "" if process.gpu_instance is None else f" in GPU instance {process.gpu_instance}"
    return f"pid {process.pid}{where} ({_bytes(process.memory_bytes)})"


def _bytes(size: int | None) -> str:
    return UNKNOWN if size is None else format_bytes(size)


def _of(now: int | None, largest: int | None) -> str:
    return f"{UNKNOWN if now is None else now} of {UNKNOWN if largest is None else largest}"


def _listed(texts: tuple[str, ...] | None) -> str:
    return UNKNOWN if texts is None else ", ".join(texts) or "none"
