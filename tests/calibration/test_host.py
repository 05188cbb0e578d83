"""Looking at a host through NVML, replayed by a fake library."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from calibration.host import describe, detect


class FakeNvml(SimpleNamespace):
    """Answers as recorded for one H100 in MIG mode with one process."""

    class NVMLError(Exception):
        pass

    NVML_CLOCK_SM = 1

    def nvmlInit(self) -> None:  # noqa: N802  # NVML's own names, here and below
        pass

    def nvmlShutdown(self) -> None:  # noqa: N802
        pass

    def nvmlSystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def nvmlDeviceGetCount(self) -> int:  # noqa: N802
        return 1

    def nvmlDeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def nvmlDeviceGetName(self, handle: int) -> bytes:  # noqa: N802
        return b"NVIDIA H100 80GB HBM3"

    def nvmlDeviceGetUUID(self, handle: int) -> str:  # noqa: N802
        return "GPU-1234"

    def nvmlDeviceGetMemoryInfo(self, handle: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=85520809984)

    def nvmlDeviceGetMigMode(self, handle: int) -> tuple[int, int]:  # noqa: N802
        return (1, 1)

    def nvmlDeviceGetComputeRunningProcesses(self, handle: int) -> list[int]:  # noqa: N802
        return [4711]

    def nvmlDeviceGetClockInfo(self, handle: int, clock: int) -> int:  # noqa: N802
        raise self.NVMLError("not supported")


def test_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """Name, MIG mode and processes are read; a clock that NVML refuses is left out."""
    monkeypatch.setitem(sys.modules, "pynvml", FakeNvml())
    host = detect()
    assert host.device_kind == "cuda"
    assert host.driver == "580.65.06"
    gpu = host.gpus[0]
    assert (gpu.name, gpu.mig_enabled, gpu.processes) == ("NVIDIA H100 80GB HBM3", True, 1)
    assert gpu.sm_clock_mhz is None
    assert "GPU-1234" not in repr(host)
    assert any("MIG on" in text for _, text in describe(host))


def test_no_driver_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a driver the CPU is the device, and the notes say so."""
    fake = FakeNvml()

    def fail() -> None:
        raise FakeNvml.NVMLError("driver not loaded")

    fake.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    host = detect()
    assert host.device_kind == "cpu"
    assert "no NVIDIA driver here: the CPU is the device" in host.notes


def test_failing_half_way_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVML breaking after it began leaves a note, not a traceback."""
    fake = FakeNvml()

    def fail() -> int:
        raise FakeNvml.NVMLError("GPU is lost")

    fake.nvmlDeviceGetCount = fail
    monkeypatch.setitem(sys.modules, "pynvml", fake)
    assert any("GPU is lost" in note for note in detect().notes)


def test_hash_tells_hosts_apart() -> None:
    """The same host hashes the same."""
    assert detect().hash == detect().hash
