"""Devices: links by their standards, and datasheet figures that go together."""

import pytest
from pydantic import ValidationError

from moesim.facts.catalog import load_device, shipped
from moesim.facts.hardware import PCIE_BYTES_PER_S, Device

GPUS = [device for name in shipped("hardware") if (device := load_device(name)).kind == "cuda"]
by_gpu = pytest.mark.parametrize("gpu", GPUS, ids=lambda gpu: str(gpu.name))


@pytest.mark.parametrize(("generation", "rate_gt"), [(3, 8), (4, 16), (5, 32)])
def test_a_link_carries_what_its_standard_says(generation: int, rate_gt: int) -> None:
    """16 lanes, 128 of 130 bits, 8 bits a byte."""
    expected = rate_gt * 1e9 * 16 * 128 / 130 / 8
    assert PCIE_BYTES_PER_S[generation] == pytest.approx(expected, rel=1e-4)


@by_gpu
def test_a_gpu_has_what_deployments_need(gpu: Device) -> None:
    """Rates, SMs and the driver's name of it; pinned copies stay below the line rate."""
    assert gpu.memory_bandwidth_bytes_per_s is not None
    assert gpu.bf16_flop_per_s is not None
    assert gpu.sms is not None
    if gpu.name.startswith("gh200"):  # joined to its CPU by NVLink-C2C
        assert gpu.pcie_generation is gpu.pcie_pinned_bytes_per_s is None
        return
    assert gpu.pcie_bytes_per_s is not None
    assert gpu.pcie_pinned_bytes_per_s is not None
    assert 0.5 * gpu.pcie_bytes_per_s < gpu.pcie_pinned_bytes_per_s < gpu.pcie_bytes_per_s
    if gpu.nvlink_bytes_per_s:
        assert gpu.nvlink_bytes_per_s > 4 * gpu.pcie_bytes_per_s


@by_gpu
def test_a_gpu_does_what_its_cores_do(gpu: Device) -> None:
    """Dense 16-bit products by SM and clock, as the generations' whitepapers have them.

    FLOP a clock and SM: A100 2,048 (1,410 MHz), H100 and H200 4,096, Ada and Blackwell cards 1,024.
    The clocks that follow from the datasheets are between those at which such GPUs run, and fp8 is
    twice as fast, where there is any.
    """
    assert gpu.bf16_flop_per_s is not None
    assert gpu.sms is not None
    a_clock = 2048 if "a100" in gpu.name else 4096 if "h" in gpu.name.split("-")[0] else 1024
    assert 1.4e9 < gpu.bf16_flop_per_s / gpu.sms / a_clock < 2.65e9
    if "a100" in gpu.name:
        assert gpu.fp8_flop_per_s is None
    else:
        assert gpu.fp8_flop_per_s == pytest.approx(2 * gpu.bf16_flop_per_s, rel=0.015)


@by_gpu
def test_a_gpus_memory_is_what_its_name_says(gpu: Device) -> None:
    """To within what error correction and the driver keep, a twentieth, and what a GB is."""
    named = int(gpu.name.rsplit("-", 1)[1].removesuffix("gb"))
    assert 0.93 * named * 2**30 < gpu.memory_bytes <= named * 2**30


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        ("h100-sxm-80gb", 8),
        ("h100-nvl-94gb", 2),
        ("h200-nvl-141gb", 4),
        ("l40s-48gb", 8),
        ("gh200-96gb", 1),
        ("cpu-2core", 1),
    ],
)
def test_how_many_can_work_together(name: str, largest: int) -> None:
    """All on a baseboard, as many as a bridge joins, or as were measured over PCIe."""
    assert load_device(name).largest_group == largest


def test_datasheets() -> None:
    """A100: 312 TFLOP/s, 600 GB/s of NVLink, PCIe 4, no fp8; H100: 989, 1,979, 900 GB/s, PCIe 5."""
    a100, h100 = load_device("a100-sxm-80gb"), load_device("h100-sxm-80gb")
    assert (a100.bf16_flop_per_s, a100.fp8_flop_per_s, a100.nvlink_bytes_per_s) == (
        3.12e14,
        None,
        6e11,
    )
    assert (h100.bf16_flop_per_s, h100.fp8_flop_per_s) == (9.89e14, 1.979e15)
    assert (h100.nvlink_bytes_per_s, h100.pcie_generation) == (9e11, 5)
    assert (a100.memory_bandwidth_bytes_per_s, a100.pcie_generation) == (2.039e12, 4)


@pytest.mark.parametrize(
    "gpu", [gpu for gpu in GPUS if gpu.nvlink_bytes_per_s and gpu.all_reduce], ids=lambda g: g.name
)
def test_all_reduces_are_slower_than_nvlink(gpu: Device) -> None:
    """A ring sends 2 (n - 1) / n of a long message each way; a message of nothing takes 3-7 us."""
    assert gpu.nvlink_bytes_per_s is not None
    assert list(gpu.all_reduce) == [2, 4, 8]
    for ranks, reduce in gpu.all_reduce.items():
        sent = 2 * (ranks - 1) / ranks * reduce.long.bytes_per_s
        assert 0.5 < sent / (gpu.nvlink_bytes_per_s / 2) < 1
        assert 3e-6 < reduce.seconds(0) < 7e-6
        assert reduce.seconds(1e9) == pytest.approx(
            reduce.long.latency_s + 1e9 / reduce.long.bytes_per_s
        )


@pytest.mark.parametrize(
    "gpu",
    [gpu for gpu in GPUS if gpu.all_reduce and not gpu.nvlink_bytes_per_s],
    ids=lambda g: g.name,
)
def test_all_reduces_over_pcie_are_slower_than_pcie(gpu: Device) -> None:
    """By the same count long messages reach 0.3 to 1 of the line rate; more GPUs take longer."""
    assert gpu.pcie_bytes_per_s is not None
    assert list(gpu.all_reduce) == [2, 4, 8]
    for ranks, reduce in gpu.all_reduce.items():
        sent = 2 * (ranks - 1) / ranks * reduce.long.bytes_per_s
        assert 0.3 < sent / gpu.pcie_bytes_per_s < 1
    for size in (1e3, 1e5, 1e7, 1e9):
        durations = [gpu.all_reduce[ranks].seconds(size) for ranks in (2, 4, 8)]
        assert durations == sorted(durations)


@pytest.mark.parametrize("name", ["l40s-48gb", "a100-pcie-80gb"])
def test_groups_over_pcie_4_are_those_over_pcie_5_at_half_the_rate(name: str) -> None:
    """As their files say: of four and eight, with as long a latency and as far off."""
    faster = load_device("rtx-pro-6000-96gb").all_reduce
    for ranks in (4, 8):
        own, other = load_device(name).all_reduce[ranks], faster[ranks]
        assert own.typical_error == other.typical_error
        for line, twice in ((own.short, other.short), (own.long, other.long)):
            assert line.latency_s == twice.latency_s
            assert line.bytes_per_s == pytest.approx(twice.bytes_per_s / 2)


def test_a_cpu_has_no_links() -> None:
    """Nothing is made up."""
    cpu = load_device("cpu-2core")
    assert (cpu.mig, cpu.pcie_generation, cpu.pcie_bytes_per_s) == (None, None, None)


def test_an_unknown_geometry_is_refused() -> None:
    """With those there are."""
    with pytest.raises(ValidationError, match="a100-40gb"):
        Device(name="d", kind="cuda", memory_bytes=1, source="here", mig="b200")
