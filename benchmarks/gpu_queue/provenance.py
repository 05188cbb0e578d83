"""Where figures come from: device, driver, versions, command line, date."""

import platform
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch

from benchmarks.gpu_queue.asked import Asked
from calibration.calibrate import name_of
from calibration.host import Host

PACKAGES = ("triton", "transformers", "numpy", "pandas", "simpy", "pydantic")


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """A step that has begun: what was asked for, on which host, when."""

    asked: Asked
    host: Host
    step: str
    date: str

    @property
    def name(self) -> str:
        """What its tables are called."""
        return f"{self.step}-{self.asked.precision}" if self.asked.precision else self.step

    def provenance(self) -> dict[str, Any]:
        """Return what every file of results says of its origin."""
        asked, host = self.asked, self.host
        return {
            "step": self.step,
            "command": asked.command,
            "date": self.date,
            "model": asked.size.shipped or "tiny",
            "device": name_of(asked.device, host),
            "device_bytes": _device_bytes(asked.device, host),
            "driver": host.driver or "none",
            "cuda": str(torch.version.cuda) if asked.device.type == "cuda" else "none",
            "host_hash": host.hash,
            "cpu": host.cpu,
            "cores": host.cores,
            "host_bytes": host.memory_bytes,
            "load": host.load,
            "python": platform.python_version(),
            "torch": torch.__version__,
            **{name: _version(name) for name in PACKAGES},
            "notes": list(host.notes),
        }


def begin(asked: Asked, host: Host, step: str) -> Begun:
    """Return a step that begins now."""
    now = datetime.now(UTC).isoformat(timespec="seconds")
    return Begun(asked=asked, host=host, step=step, date=now)


def _device_bytes(device: torch.device, host: Host) -> int:
    if device.type != "cuda":
        return host.memory_bytes
    return int(torch.cuda.get_device_properties(device).total_memory)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"
