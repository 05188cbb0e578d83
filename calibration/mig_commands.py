"""The `nvidia-smi mig` lines that make a MIG layout, and those that undo it: text, never run.

Instances are named by profile and by the memory slice at which they begin, `3g.40gb:4`: profile
numbers differ between products, and instances that are placed as they come can stand in each
other's way. `nvidia-smi mig -cgi --help` explains the form.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from calibration.host import Host
from moesim.errors import CalibrationError
from moesim.facts.catalog import load_device, shipped
from moesim.facts.hardware import Device
from moesim.facts.mig import Placement, check_layout


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
    reported = known_gpus()
    known = ", ".join(device.name for device in reported.values() if device.mig)
    there = {each.index: each.name for each in host.gpus}
    if gpu not in there:
        have = f"it has GPUs {', '.join(map(str, there))}" if there else "it has none"
        raise CalibrationError(f"--gpu: {gpu} is not on this host, {have}; give --device: {known}")
    name = there[gpu]
    if name not in reported:
        raise CalibrationError(f"--gpu: {gpu} is an unknown {name!r}; give --device: {known}")
    return reported[name]


def known_gpus() -> dict[str, Device]:
    """Return the shipped GPUs by the names that NVML and torch report them as."""
    devices = map(load_device, shipped("hardware"))
    return {name: device for device in devices for name in device.reported_as}


def _specifier(placement: Placement) -> str:
    """Return profile and start as `-cgi` takes them."""
    return f"{placement.profile.name}:{placement.start}"
