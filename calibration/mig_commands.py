"""The `nvidia-smi mig` lines that make a MIG layout, and those that undo it: text, never run.

Instances are named by profile and by the memory slice at which they begin, `3g.40gb:4`: profile
numbers differ between products, and instances that are placed as they come can stand in each
other's way. `nvidia-smi mig -cgi --help` explains the form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.host import Host
from moesim.errors import CalibrationError
from moesim.facts.catalog import load_device
from moesim.facts.hardware import Device
from moesim.facts.mig import Placement, check_layout

DEVICES = {
    "NVIDIA A100-SXM4-40GB": "a100-sxm-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-sxm-80gb",
    "NVIDIA A100 80GB PCIe": "a100-pcie-80gb",
    "NVIDIA H100 80GB HBM3": "h100-sxm-80gb",
    "NVIDIA H200": "h200-sxm-141gb",
}
"""The shipped device of each name that NVML gives."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One line for the shell, and what it is for."""

    why: str
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Commands:
    """How to make a layout, and how to undo it."""

    device: str
    gpu: int
    instances: tuple[str, ...]
    """Profile and first memory slice of each, the largest first."""
    make: tuple[Step, ...]
    undo: tuple[Step, ...]


def commands_for(device: Device, layout: Sequence[str], gpu: int) -> Commands:
    """Return the lines for a layout on GPU number `gpu`.

    Raises ScenarioError for unknown profiles, CapacityError with the nearest layouts that exist
    for one that does not.
    """
    placed = sorted(check_layout(device, layout), key=lambda each: each.profile.size, reverse=True)
    instances = tuple(_specifier(each) for each in placed)
    mig = f"nvidia-smi mig -i {gpu}"
    remove = (
        Step(why="remove compute instances", command=f"{mig} -dci"),
        Step(why="remove GPU instances", command=f"{mig} -dgi"),
    )
    return Commands(
        device=device.name,
        gpu=gpu,
        instances=instances,
        make=(
            Step(
                why="turn MIG mode on; an A100 needs a reset, which this tries",
                command=f"nvidia-smi -i {gpu} -mig 1",
            ),
            Step(
                why="make the instances; remove others first, as below",
                command=f"{mig} -cgi {','.join(instances)} -C",
            ),
            Step(why="look: CUDA_VISIBLE_DEVICES takes these MIG UUIDs", command="nvidia-smi -L"),
        ),
        undo=(*remove, Step(why="turn MIG mode off", command=f"nvidia-smi -i {gpu} -mig 0")),
    )


def shell_lines(commands: Commands) -> list[str]:
    """Return the lines with comments between, as a shell would read them."""
    layout = " + ".join(instance.split(":")[0] for instance in commands.instances)
    lines = [
        f"# {layout} on GPU {commands.gpu} ({commands.device}).",
        "# Run as root while nothing uses the GPU. These lines are printed, not run.",
    ]
    for title, steps in (("make", commands.make), ("undo", commands.undo)):
        lines += ["", f"# To {title} it"]
        for step in steps:
            lines += [f"# {step.why}", step.command]
    return lines


def device_here(host: Host, gpu: int) -> Device:
    """Return the shipped device that GPU number `gpu` is; CalibrationError where it is none."""
    known = ", ".join(DEVICES.values())
    there = {each.index: each.name for each in host.gpus}
    if gpu not in there:
        have = f"it has GPUs {', '.join(map(str, there))}" if there else "it has none"
        raise CalibrationError(f"--gpu: {gpu} is not on this host, {have}; give --device: {known}")
    name = there[gpu]
    if name not in DEVICES:
        raise CalibrationError(f"--gpu: {gpu} is an unknown {name!r}; give --device: {known}")
    return load_device(DEVICES[name])


def _specifier(placement: Placement) -> str:
    """Return profile and start as `-cgi` takes them."""
    return f"{placement.profile.name}:{placement.start}"
