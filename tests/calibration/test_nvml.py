"""Looking at GPUs through NVML, replayed for A100, H100 and H200 in and out of MIG mode.

The tables hold what NVML answers for each product: figures as `nvidia-smi` and the MIG User Guide
list them. Errors and constants are those of the installed nvidia-ml-py.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest
import torch
from typer.testing import CliRunner

from calibration import nvml
from calibration.cli import app
from calibration.detect_shown import describe
from calibration.host import detect
from calibration.mig_commands import known_gpus
from calibration.visible import device_for, see_only
from moesim.errors import CalibrationError
from moesim.facts.mig import geometry_of
from moesim.units import GIB, MIB

MIG_OFF, MIG_ON = [0, 0], [1, 1]
IDLE, POWER_CAP, TOO_HOT = 0x1, 0x4, 0x40


@dataclass(frozen=True)
class Answers:
    """What one GPU answers; an error is raised."""

    name: str
    memory_mib: int
    clocks: tuple[int, int]
    """SM and memory [MHz], at most."""
    generation: int
    links: int
    mig: Any = field(default_factory=lambda: MIG_OFF)
    instances: Mapping[int, tuple[str, int, int]] = field(default_factory=dict)
    """Of each place that is taken: profile, SMs, memory [MiB]."""
    now: tuple[int, int] = (345, 1593)
    """SM and memory [MHz]."""
    reasons: int = IDLE
    width: int = 16
    processes: tuple[tuple[int, int | None, int], ...] = ()
    """Pid, memory [B] and GPU instance."""
    errors: Mapping[str, type[Exception]] = field(default_factory=dict)
    """By question."""


A100 = Answers("NVIDIA A100-SXM4-80GB", 81920, (1410, 1593), 4, 12)
A100_MIG = replace(
    A100,
    mig=MIG_ON,
    instances={0: ("3g.40gb", 42, 40192), 1: ("3g.40gb", 42, 40192)},
    errors={"nvmlDeviceGetNvLinkState": pynvml.NVMLError_NotSupported},
    processes=((4711, 20 * GIB, 1), (4712, None, 2)),
)
H100 = Answers("NVIDIA H100 80GB HBM3", 81559, (1980, 2619), 5, 18, now=(1755, 2619))
H100_MIG = replace(
    H100,
    mig=MIG_ON,
    instances={
        0: ("4g.40gb", 64, 40448),
        1: ("2g.20gb", 32, 20096),
        4: ("1g.10gb", 16, 9984),
    },
    reasons=POWER_CAP | TOO_HOT,
)
H200 = Answers("NVIDIA H200", 143771, (1980, 3201), 5, 18, now=(1980, 3201), reasons=0)
H200_MIG = replace(H200, mig=MIG_ON, instances=dict.fromkeys(range(7), ("1g.18gb", 16, 16384)))
RECORDED = {
    "a100": A100,
    "a100-mig": A100_MIG,
    "h100": H100,
    "h100-mig": H100_MIG,
    "h200": H200,
    "h200-mig": H200_MIG,
}


class Replay:
    """The module pynvml, with answers for these GPUs; a MIG instance is (GPU, place)."""

    def __init__(self, *gpus: Answers, starts: Exception | None = None) -> None:
        self.gpus = gpus
        self.starts = starts
        self.running = False

    def __getattr__(self, name: str) -> Any:
        """Return constants and errors of the real module, and the answer to any question."""
        if not name.startswith("nvml"):
            return getattr(pynvml, name)
        if not hasattr(pynvml, name):
            raise AttributeError(name)
        return lambda *of: self._answer(name, *of)

    def _answer(self, question: str, *of: Any) -> Any:
        if of and isinstance(of[0], int) and question in self.gpus[of[0]].errors:
            raise self.gpus[of[0]].errors[question]()
        return getattr(self, question.replace("nvml", "_", 1))(*of)

    def _Init(self) -> None:  # noqa: N802  # NVML's own names, here and below
        if self.starts:
            raise self.starts
        self.running = True

    def _Shutdown(self) -> None:  # noqa: N802
        self.running = False

    def _SystemGetDriverVersion(self) -> str:  # noqa: N802
        return "580.65.06"

    def _DeviceGetCount(self) -> int:  # noqa: N802
        return len(self.gpus)

    def _DeviceGetHandleByIndex(self, index: int) -> int:  # noqa: N802
        return index

    def _DeviceGetName(self, of: Any) -> bytes:  # noqa: N802
        if isinstance(of, int):
            return self.gpus[of].name.encode()
        gpu = self.gpus[of[0]]
        return f"{gpu.name} MIG {gpu.instances[of[1]][0]}".encode()

    def _DeviceGetUUID(self, of: Any) -> str:  # noqa: N802
        return f"GPU-2aba9a{of}" if isinstance(of, int) else f"MIG-41b3f4{of[0]}-{of[1]}"

    def _DeviceGetMemoryInfo(self, of: int) -> Any:  # noqa: N802
        return SimpleNamespace(total=self.gpus[of].memory_mib * MIB, used=3 * GIB)

    def _DeviceGetMigMode(self, of: int) -> Any:  # noqa: N802
        return self.gpus[of].mig

    def _DeviceGetMaxMigDeviceCount(self, of: int) -> int:  # noqa: N802
        return 7

    def _DeviceGetMigDeviceHandleByIndex(self, of: int, place: int) -> tuple[int, int]:  # noqa: N802
        if place not in self.gpus[of].instances:
            raise pynvml.NVMLError_NotFound()
        return of, place

    def _DeviceGetAttributes_v2(self, of: tuple[int, int]) -> Any:  # noqa: N802
        _, sms, memory = self.gpus[of[0]].instances[of[1]]
        return SimpleNamespace(multiprocessorCount=sms, memorySizeMB=memory)

    def _DeviceGetGpuInstanceId(self, of: tuple[int, int]) -> int:  # noqa: N802
        return of[1] + 1

    def _DeviceGetClockInfo(self, of: int, clock: int) -> int:  # noqa: N802
        return self.gpus[of].now[clock - 1]

    def _DeviceGetMaxClockInfo(self, of: int, clock: int) -> int:  # noqa: N802
        return self.gpus[of].clocks[clock - 1]

    def _DeviceGetCurrentClocksEventReasons(self, of: int) -> int:  # noqa: N802
        return self.gpus[of].reasons

    _DeviceGetCurrentClocksThrottleReasons = _DeviceGetCurrentClocksEventReasons

    def _DeviceGetComputeRunningProcesses(self, of: int) -> list[Any]:  # noqa: N802
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=memory, gpuInstanceId=instance)
            for pid, memory, instance in self.gpus[of].processes
        ]

    def _DeviceGetCurrPcieLinkGeneration(self, of: int) -> int:  # noqa: N802
        return 1

    def _DeviceGetMaxPcieLinkGeneration(self, of: int) -> int:  # noqa: N802
        return self.gpus[of].generation

    def _DeviceGetCurrPcieLinkWidth(self, of: int) -> int:  # noqa: N802
        return self.gpus[of].width

    def _DeviceGetMaxPcieLinkWidth(self, of: int) -> int:  # noqa: N802
        return 16

    def _DeviceGetNvLinkState(self, of: int, link: int) -> int:  # noqa: N802
        if link >= self.gpus[of].links:
            raise pynvml.NVMLError_InvalidArgument()
        return int(link != 0)


Install = Callable[..., Replay]


VISIBLE = [
    ("0", "GPU-2aba9a0"),
    ("GPU-2aba9a0", "GPU-2aba9a0"),
    ("MIG-41b3f41-4", "MIG-41b3f41-4"),
    ("2", "GPU-2aba9a2"),
]


@pytest.mark.parametrize(("asked", "seen"), VISIBLE)
def test_one_of_several_is_chosen(
    asked: str, seen: str, install: "Install", monkeypatch: pytest.MonkeyPatch
) -> None:
    """By number or UUID: a whole A100, an instance of a divided H100, the H200 behind it."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    install(A100, H100_MIG, H200)
    see_only(asked)
    assert os.environ["CUDA_VISIBLE_DEVICES"] == seen


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ("1", r"1: is divided; name the UUID .*: 4g.40gb of GPU 1 \(MIG-41b3f41-0\), 2g.20gb of"),
        ("3", r"'3' is not on this host; it has all of GPU 0 \(GPU-2aba9a0\), 4g.40gb of GPU 1"),
        ("GPU-2aba9a1", "'GPU-2aba9a1' is not on this host"),
        ("MIG-41b3f41-2", "'MIG-41b3f41-2' is not on this host"),
        ("0,1", "'0,1' is not on this host"),
    ],
)
def test_what_cannot_be_chosen_is_one_line(asked: str, words: str, install: "Install") -> None:
    """With all that could be."""
    install(A100, H100_MIG, H200)
    before = os.environ.get("CUDA_VISIBLE_DEVICES")
    done = CliRunner().invoke(
        app, ["profile", "--model", "demo-moe", "--out", "p.json", "--gpu", asked]
    )
    assert (done.exit_code, done.stdout) == (2, "")
    assert re.search(words, done.stderr)
    assert done.stderr.count("\n") == 1
    assert os.environ.get("CUDA_VISIBLE_DEVICES") == before


def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu(
    install: "Install", monkeypatch: pytest.MonkeyPatch
) -> None:
    """As where torch was built without CUDA; a process that uses a GPU cannot choose any more."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "before")
    install(A100)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device_for("") == torch.device("cpu")
    with pytest.raises(CalibrationError, match=r"^--gpu: 0: torch .* cannot use it; install one"):
        device_for("0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert device_for("0") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    with pytest.raises(CalibrationError, match="uses a GPU already; start a new one"):
        device_for("0")


def test_without_a_driver_there_is_nothing_to_choose(install: "Install") -> None:
    """Said so; and a GPU that is divided into nothing has nothing."""
    install(starts=pynvml.NVMLError_LibraryNotFound())
    with pytest.raises(CalibrationError, match="--gpu: 0: no NVIDIA driver here; leave it out"):
        see_only("0")
    install(replace(A100, mig=MIG_ON))
    with pytest.raises(CalibrationError, match="it has nothing that programs can use"):
        see_only("0")


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Install:
    """Return what puts a replay in NVML's place."""

    def put(*gpus: Answers, starts: Exception | None = None) -> Replay:
        replay = Replay(*gpus, starts=starts)
        monkeypatch.setitem(sys.modules, "pynvml", replay)
        return replay

    return put


def _only(answers: Answers) -> nvml.Gpu:
    found = nvml.look(Replay(answers))
    assert found is not None
    (gpu,) = found.gpus
    return gpu


def _failing(answers: Answers, question: str, error: type[Exception]) -> Answers:
    return replace(answers, errors={**answers.errors, question: error})


def test_every_question_is_one_that_nvml_answers() -> None:
    """The names are those of the installed nvidia-ml-py."""
    source = Path(nvml.__file__).read_text()
    asked = set(re.findall(r"\bnvml[A-Z]\w+", source)) - {"nvmlClocksEventReasons"}
    assert len(asked) > 20
    assert [name for name in asked if not hasattr(pynvml, name)] == []


def test_reasons_are_the_bits_of_nvml() -> None:
    """All bits that NVML defines but idleness, and no others."""
    bits = pynvml.nvmlClocksEventReasonAll & ~pynvml.nvmlClocksEventReasonGpuIdle
    assert sum(nvml.HELD_DOWN) == bits


@pytest.mark.parametrize("answers", RECORDED.values(), ids=RECORDED)
def test_what_is_recorded_is_found(answers: Answers) -> None:
    """Memory, MIG mode, instances, clocks and PCIe, as they were answered."""
    gpu = _only(answers)
    assert gpu.name == answers.name
    assert gpu.memory_bytes == answers.memory_mib * MIB
    assert (gpu.mig_enabled, gpu.mig_pending) == ((answers.mig == MIG_ON),) * 2
    found = {each.index: (each.profile, each.sms, each.memory_bytes) for each in gpu.instances}
    assert found == {
        place: (profile, sms, mib * MIB) for place, (profile, sms, mib) in answers.instances.items()
    }
    assert (gpu.sm_clock_mhz, gpu.memory_clock_mhz) == answers.now
    assert (gpu.sm_clock_max_mhz, gpu.memory_clock_max_mhz) == answers.clocks
    assert (gpu.pcie_generation, gpu.pcie_generation_max) == (1, answers.generation)
    assert (gpu.pcie_width, gpu.pcie_width_max) == (16, 16)


@pytest.mark.parametrize("answers", RECORDED.values(), ids=RECORDED)
def test_instances_are_those_the_simulator_knows(answers: Answers) -> None:
    """Profile, SMs and memory of the answers and of the simulator's tables are the same."""
    known = geometry_of(known_gpus()[answers.name]).by_name
    for each in _only(answers).instances:
        profile = known[str(each.profile)]
        assert each.sms == profile.sms
        assert each.memory_bytes == pytest.approx(profile.memory_bytes, abs=16 * MIB)


def test_nvlinks_are_counted() -> None:
    """Of the A100's 12 links one is down; in MIG mode NVML says nothing."""
    gpu = _only(A100)
    assert (gpu.nvlinks_active, gpu.nvlinks) == (11, 12)
    divided = _only(A100_MIG)
    assert (divided.nvlinks_active, divided.nvlinks) == (None, None)


def test_other_processes_are_listed(install: Install) -> None:
    """Our own is not another; memory that NVML hides is unknown."""
    mine = (os.getpid(), GIB, nvml.NO_INSTANCE)
    gpu = _only(replace(A100_MIG, processes=(mine, *A100_MIG.processes)))
    assert gpu.processes == (
        nvml.Process(pid=4711, memory_bytes=20 * GIB, gpu_instance=1),
        nvml.Process(pid=4712, memory_bytes=None, gpu_instance=2),
    )
    whole = _only(replace(H200, processes=((7, GIB, nvml.NO_INSTANCE),)))
    assert whole.processes == (nvml.Process(pid=7, memory_bytes=GIB, gpu_instance=None),)


@pytest.mark.parametrize(
    ("answers", "expected"),
    [
        (A100, []),
        (H200_MIG, []),
        (A100_MIG, ["GPU 0: other processes (pid 4711, 4712): timings will be disturbed"]),
        (
            H100_MIG,
            ["GPU 0: clocks are held down by the power cap, temperature (hardware)"],
        ),
        (replace(H100, width=8), ["GPU 0: PCIe has 8 of 16 lanes"]),
        (replace(A100, mig=[0, 1]), ["GPU 0: MIG mode is waiting for a reset to turn on"]),
        (
            replace(H100, mig=MIG_ON),
            [
                "GPU 0: MIG mode is on without instances: programs see no device; "
                "`moesim-calibrate commands` prints how to make some"
            ],
        ),
    ],
)
def test_what_disturbs_is_noted(answers: Answers, expected: list[str], install: Install) -> None:
    """An idle GPU and a divided one are fine; the rest goes into the profile's warnings."""
    assert list(nvml.disturbances(_only(answers))) == expected
    install(answers)
    assert set(expected) <= set(detect().notes)


OPTIONAL = {
    "nvmlDeviceGetMemoryInfo": "memory_bytes",
    "nvmlDeviceGetMigMode": "mig_enabled",
    "nvmlDeviceGetClockInfo": "sm_clock_mhz",
    "nvmlDeviceGetMaxClockInfo": "memory_clock_max_mhz",
    "nvmlDeviceGetComputeRunningProcesses": "processes",
    "nvmlDeviceGetCurrPcieLinkGeneration": "pcie_generation",
    "nvmlDeviceGetMaxPcieLinkWidth": "pcie_width_max",
    "nvmlDeviceGetNvLinkState": "nvlinks",
}


@pytest.mark.parametrize("question", OPTIONAL)
@pytest.mark.parametrize(
    "error",
    [pynvml.NVMLError_NotSupported, pynvml.NVMLError_NoPermission, pynvml.NVMLError_Unknown],
)
def test_what_is_not_answered_is_unknown(
    question: str, error: type[Exception], install: Install
) -> None:
    """And everything else is there."""
    answers = _failing(H100, question, error)
    gpu, whole = _only(answers), _only(H100)
    assert getattr(gpu, OPTIONAL[question]) is None
    assert getattr(whole, OPTIONAL[question]) is not None
    assert (gpu.name, gpu.held_down_by) == (whole.name, whole.held_down_by)
    install(answers)
    assert any("unknown" in text or text == "not there" for _, text in describe(detect()))


def test_older_drivers_and_libraries_have_other_names() -> None:
    """Reasons are asked for by the new name, then by the old; without either they are unknown."""
    new, old = (f"nvmlDeviceGetCurrentClocks{word}Reasons" for word in ("Event", "Throttle"))
    missing = pynvml.NVMLError_FunctionNotFound
    hot = replace(A100, reasons=TOO_HOT)
    assert _only(_failing(hot, new, missing)).held_down_by == ("temperature (hardware)",)
    assert _only(_failing(_failing(hot, new, missing), old, missing)).held_down_by is None

    class Older(Replay):
        def __getattr__(self, name: str) -> Any:
            if name == new:
                raise AttributeError(name)
            return super().__getattr__(name)

    found = nvml.look(Older(hot))
    assert found is not None
    assert found.gpus[0].held_down_by == ("temperature (hardware)",)


@pytest.mark.parametrize(
    "question",
    [
        "nvmlDeviceGetHandleByIndex",
        "nvmlDeviceGetUUID",
        "nvmlDeviceGetMigMode",
        "nvmlDeviceGetMigDeviceHandleByIndex",
        "nvmlDeviceGetCurrentClocksEventReasons",
        "nvmlDeviceGetNvLinkState",
    ],
)
def test_failing_half_way_is_one_line(question: str, install: Install) -> None:
    """A GPU that is lost while it is asked ends the command with 2, and NVML is closed."""
    replay = install(A100, _failing(H100_MIG, question, pynvml.NVMLError_GpuIsLost))
    done = CliRunner().invoke(app, ["detect"])
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr == (
        f"error: NVML failed half-way: GPU 1: {question}: GPU is lost; "
        "look at `nvidia-smi` and the kernel's log, then run again\n"
    )
    assert not replay.running


def test_a_figure_that_must_be_there_fails_for_any_reason() -> None:
    """A GPU without a name cannot be measured on."""
    with pytest.raises(CalibrationError, match="GPU 0: nvmlDeviceGetName: Not Supported"):
        _only(_failing(A100, "nvmlDeviceGetName", pynvml.NVMLError_NotSupported))


@pytest.mark.parametrize(
    "starts", [pynvml.NVMLError_LibraryNotFound(), pynvml.NVMLError_DriverNotLoaded()]
)
def test_no_driver_is_said(starts: Exception, install: Install) -> None:
    """Without a driver the CPU is the device, and the notes say so."""
    install(starts=starts)
    host = detect()
    assert (host.device_kind, host.driver, host.gpus) == ("cpu", None, ())
    assert "no NVIDIA driver here: the CPU is the device" in host.notes
    assert ("NVIDIA driver", "none") in describe(host)


def test_a_driver_that_does_not_work_is_one_line(install: Install) -> None:
    """As after an update without a restart."""
    install(starts=pynvml.NVMLError_LibRmVersionMismatch())
    with pytest.raises(CalibrationError, match="NVML does not start: RM has detected"):
        detect()


def test_a_driver_without_gpus_is_said(install: Install) -> None:
    """The CPU is the device."""
    install()
    assert detect().driver == "580.65.06"
    assert "the NVIDIA driver sees no GPU: the CPU is the device" in detect().notes


def test_the_table_shows_all(install: Install) -> None:
    """One section a GPU, one line an instance."""
    install(H200, A100_MIG)
    printed = CliRunner().invoke(app, ["detect"]).stdout
    shown = [line.rstrip() for line in printed.splitlines()]
    for expected in (
        "GPU 0            NVIDIA H200, 3 GiB of 140 GiB used",
        "  MIG            off",
        "  clocks         SM 1980 of 1980 MHz, memory 3201 of 3201 MHz",
        "  held down by   none",
        "  PCIe           generation 1 of 5, 16 of 16 lanes",
        "  NVLink         17 of 18 links active",
        "GPU 1            NVIDIA A100-SXM4-80GB, 3 GiB of 80 GiB used",
        "  MIG            on, 2 instances",
        "    0            3g.40gb, 42 SMs, 39.2 GiB, GPU instance 1",
        "    1            3g.40gb, 42 SMs, 39.2 GiB, GPU instance 2",
        "  NVLink         unknown",
    ):
        assert re.sub(r" +", " ", expected) in [re.sub(r" +", " ", line) for line in shown]


def test_json_has_all_and_no_uuid(install: Install) -> None:
    """The same for programs; the GPU's UUID is hashed."""
    install(H100_MIG)
    printed = CliRunner().invoke(app, ["detect", "--json"]).stdout
    (gpu,) = json.loads(printed)["gpus"]
    assert [each["profile"] for each in gpu["instances"]] == ["4g.40gb", "2g.20gb", "1g.10gb"]
    assert gpu["held_down_by"] == ["the power cap", "temperature (hardware)"]
    assert "GPU-2aba9a" not in printed


def test_a_gpu_that_is_divided_otherwise_is_another_device(install: Install) -> None:
    """Profiles of different layouts do not mix; what runs on the GPU does not matter."""
    one = replace(A100_MIG, instances={0: A100_MIG.instances[0]})
    busy = replace(A100, reasons=TOO_HOT, processes=((7, GIB, nvml.NO_INSTANCE),))
    hashes = []
    for answers in (A100, A100_MIG, one, busy):
        install(answers)
        hashes.append(detect().hash)
    assert len(set(hashes)) == 3
    assert hashes[0] == hashes[3]


def test_a_gpu_needs_no_datasheet_of_its_own(install: Install, tmp_path: Path) -> None:
    """Those that ship are named."""
    install(H100)
    done = CliRunner().invoke(app, ["datasheet", "--out", str(tmp_path / "d.yaml")])
    assert done.exit_code == 2
    assert "for NVIDIA H100 80GB HBM3 take a shipped device (a100-pcie-80gb, " in done.stderr
    assert not list(tmp_path.iterdir())
