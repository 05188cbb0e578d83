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
    """Pinned copies stay below the line rate, NVLink far above it."""
    assert gpu.pcie_bytes_per_s is not None
    assert gpu.pcie_pinned_bytes_per_s is not None
    assert gpu.nvlink_bytes_per_s is not None
    assert 0.5 * gpu.pcie_bytes_per_s < gpu.pcie_pinned_bytes_per_s < gpu.pcie_bytes_per_s
    assert gpu.nvlink_bytes_per_s > 5 * gpu.pcie_bytes_per_s
    assert gpu.mig is not None


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


@by_gpu
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


def test_a_cpu_has_no_links() -> None:
    """Nothing is made up."""
    cpu = load_device("cpu-2core")
    assert (cpu.mig, cpu.pcie_generation, cpu.pcie_bytes_per_s) == (None, None, None)


def test_an_unknown_geometry_is_refused() -> None:
    """With those there are."""
    with pytest.raises(ValidationError, match="a100-40gb"):
        Device(name="d", kind="cuda", memory_bytes=1, source="here", mig="b200")
