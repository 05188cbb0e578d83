"""Which GPU or MIG instance this process works on, of several that the host has.

CUDA sees what `CUDA_VISIBLE_DEVICES` names when it starts (CUDA C++ Programming Guide, environment
variables): a process sees one MIG instance at most, by its UUID.
"""

import os
from typing import Any

import torch

from calibration.models import device_of
from calibration.nvml import Place, places
from moesim.errors import CalibrationError

VISIBLE = "CUDA_VISIBLE_DEVICES"


def device_for(asked: str) -> torch.device:
    """Return the device to work on: the GPU or MIG instance that is asked for, else any.

    Raises CalibrationError where torch cannot use it, rather than measure something else.
    """
    if not asked:
        return device_of()
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        raise CalibrationError(f"--gpu: {asked}: this process uses a GPU already; start a new one")
    see_only(asked)
    if not torch.cuda.is_available():
        raise CalibrationError(
            f"--gpu: {asked}: torch {torch.__version__} cannot use it; install one for CUDA that "
            "fits the driver"
        )
    return device_of()


def see_only(asked: str) -> None:
    """Let this process see one GPU or MIG instance alone; call it before CUDA starts.

    `asked` is a GPU's number in `nvidia-smi`, or the UUID of a GPU or a MIG instance.
    """
    try:
        import pynvml
    except ImportError:
        raise CalibrationError("--gpu: needs nvidia-ml-py: pip install nvidia-ml-py") from None
    os.environ[VISIBLE] = chosen(pynvml, asked).uuid


def chosen(nvml: Any, asked: str) -> Place:
    """Return what `asked` names; CalibrationError with all there is where it names nothing."""
    found = places(nvml)
    if found is None:
        raise CalibrationError(f"--gpu: {asked}: no NVIDIA driver here; leave it out")
    named = [place for place in found if asked in (place.uuid, _number(place))]
    if len(named) == 1:
        return named[0]
    if any(asked == str(place.gpu) for place in found):
        instances = ", ".join(str(place) for place in found if asked == str(place.gpu))
        raise CalibrationError(
            f"--gpu: {asked}: is divided; name the UUID of one of its instances: {instances}"
        )
    there = ", ".join(map(str, found)) or "nothing that programs can use"
    raise CalibrationError(f"--gpu: {asked!r} is not on this host; it has {there}")


def _number(place: Place) -> str | None:
    return None if place.profile else str(place.gpu)
