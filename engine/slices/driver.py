"""The calls of CUDA's driver that divide a GPU's SMs, by ctypes.

Names, structures and their order: NVIDIA, CUDA Driver API, section Green Contexts. The calls are
of CUDA 12.4, streams in a green context of 12.5. `torch.cuda.green_contexts` (torch 2.11 to 2.13)
makes one context at a time, each by a split of its own: two of them may have the same SMs. Those of
one split are disjoint.
"""

import ctypes
from typing import Any

from moesim.errors import EngineError

SM = 1
"""CU_DEV_RESOURCE_TYPE_SM."""

DEFAULT_STREAM = 0x1
"""CU_GREEN_CTX_DEFAULT_STREAM, which drivers before CUDA 13 require."""

NON_BLOCKING = 0x1
"""CU_STREAM_NON_BLOCKING, required of a stream in a green context."""

LIBRARY = "libcuda.so.1"


class Resource(ctypes.Structure):
    """CUdevResource: 144 bytes in CUDA 12.4 to 13.x, of which only the number of SMs is read.

    92 bytes of padding follow the type, then 48 that the kinds of resource share, the last 8 of
    them a pointer since CUDA 13.
    """

    _fields_ = (
        ("kind", ctypes.c_uint),
        ("padding", ctypes.c_ubyte * 92),
        ("sms", ctypes.c_uint),
        ("rest", ctypes.c_ubyte * 44),
    )


class Driver:
    """The driver's library, or anything that answers alike; what fails is one line.

    Handles are whole numbers.
    """

    def __init__(self, library: Any) -> None:
        self._library = library

    def device(self, ordinal: int) -> int:
        """Return the handle of a GPU by its number."""
        handle = ctypes.c_int()
        self._call("cuInit", ctypes.c_uint(0))
        self._call("cuDeviceGet", ctypes.byref(handle), ctypes.c_int(ordinal))
        return handle.value

    def sms(self, device: int) -> Resource:
        """Return all SMs of a GPU."""
        found = Resource()
        self._call(
            "cuDeviceGetDevResource", ctypes.c_int(device), ctypes.byref(found), ctypes.c_int(SM)
        )
        return found

    def split(self, whole: Resource) -> list[Resource]:
        """Return disjoint groups of SMs, each as small as the GPU allows.

        The least that the driver is asked for, 1, it rounds up: to 4 SMs on compute capability 8,
        to 8 on 9. What does not make a group is left out.
        """
        count, rest = ctypes.c_uint(0), Resource()
        one, flags = ctypes.c_uint(1), ctypes.c_uint(0)
        name, given = "cuDevSmResourceSplitByCount", ctypes.byref(whole)
        # Without a place for results the driver says how many there would be.
        self._call(name, None, ctypes.byref(count), given, ctypes.byref(rest), flags, one)
        groups = (Resource * count.value)()
        self._call(name, groups, ctypes.byref(count), given, ctypes.byref(rest), flags, one)
        return list(groups)[: count.value]

    def context(self, groups: list[Resource], device: int) -> int:
        """Return a green context that has groups of one split."""
        several = (Resource * len(groups))(*groups)
        descriptor, handle = ctypes.c_void_p(), ctypes.c_void_p()
        self._call(
            "cuDevResourceGenerateDesc",
            ctypes.byref(descriptor),
            several,
            ctypes.c_uint(len(groups)),
        )
        self._call(
            "cuGreenCtxCreate",
            ctypes.byref(handle),
            descriptor,
            ctypes.c_int(device),
            ctypes.c_uint(DEFAULT_STREAM),
        )
        return handle.value or 0

    def sms_of(self, context: int) -> int:
        """Return how many SMs a green context really has."""
        found = Resource()
        self._call(
            "cuGreenCtxGetDevResource",
            ctypes.c_void_p(context),
            ctypes.byref(found),
            ctypes.c_int(SM),
        )
        return int(found.sms)

    def stream(self, context: int) -> int:
        """Return a stream whose work runs on a green context's SMs."""
        handle = ctypes.c_void_p()
        self._call(
            "cuGreenCtxStreamCreate",
            ctypes.byref(handle),
            ctypes.c_void_p(context),
            ctypes.c_uint(NON_BLOCKING),
            ctypes.c_int(0),
        )
        return handle.value or 0

    def end_stream(self, stream: int) -> None:
        """Destroy a stream, once its work is done."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def end_context(self, context: int) -> None:
        """Destroy a green context."""
        self._call("cuGreenCtxDestroy", ctypes.c_void_p(context))

    def _call(self, name: str, *arguments: Any) -> None:
        """Call the driver; EngineError with its own word for what went wrong."""
        try:
            function = getattr(self._library, name)
        except AttributeError:
            raise EngineError(
                f"shares: the NVIDIA driver has no {name}: it is too old for green contexts; "
                "update it to one of CUDA 12.5 or later"
            ) from None
        code = function(*arguments)
        if code:
            raise EngineError(
                f"shares: {name}: {self._word(code)}; free the GPU or give other shares"
            )

    def _word(self, code: int) -> str:
        word = ctypes.c_char_p()
        known = not self._library.cuGetErrorName(ctypes.c_int(code), ctypes.byref(word))
        return word.value.decode() if known and word.value else f"error {code}"


def open_driver() -> Driver:
    """Return the driver of this host; EngineError where there is none."""
    try:
        return Driver(ctypes.CDLL(LIBRARY))
    except OSError:
        raise EngineError(
            f"shares: no {LIBRARY}: there is no NVIDIA driver here; leave the shares out"
        ) from None
