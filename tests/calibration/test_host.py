"""What this host is, without its GPUs."""

import sys

import pytest

from calibration.detect_shown import describe
from calibration.host import detect


def test_hash_tells_hosts_apart() -> None:
    """The same host hashes the same."""
    assert detect().hash == detect().hash


def test_a_host_without_the_library_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    """GPUs are not looked for, and the notes say so."""
    monkeypatch.setitem(sys.modules, "pynvml", None)
    host = detect()
    assert host.device_kind == "cpu"
    rows = describe(host)
    assert ("note", "nvidia-ml-py is not installed: GPUs are not looked for") in rows
    assert dict(rows)["CPU"] == f"{host.cpu}, {host.cores} cores"
