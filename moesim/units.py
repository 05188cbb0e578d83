"""Human units, for screens and files; inside, everything is seconds, bytes, FLOP and tokens."""

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_TIME_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_BYTE_SCALES = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def format_seconds(seconds: float) -> str:
    """Write a duration with three significant digits: `0.0123` becomes `12.3 ms`."""
    for scale, unit in _TIME_SCALES:
        if abs(seconds) >= scale:
            return f"{seconds / scale:.3g} {unit}" if seconds < 1000 else f"{seconds:.0f} s"
    return f"{seconds / 1e-6:.3g} us" if seconds else "0 s"


def format_bytes(size: float) -> str:
    """Write a size in binary units: `3211272192` becomes `2.99 GiB`."""
    for scale, unit in _BYTE_SCALES:
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
