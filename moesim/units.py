"""Human units, for screens and files; inside, everything is seconds, bytes, FLOP and tokens."""

KIB = 1024
MIB = 1024**2
GIB = 1024**3

_TIME_SCALES = ((1.0, "s"), (1e-3, "ms"), (1e-6, "us"))
_BYTE_SCALES = ((GIB, "GiB"), (MIB, "MiB"), (KIB, "KiB"))


def format_seconds(seconds: float) -> str:
    """Write a duration with three significant digits.

    >>> format_seconds(0.0123), format_seconds(0.9996), format_seconds(61.2)
    ('12.3 ms', '1 s', '61.2 s')
    """
    rounded = float(f"{seconds:.3g}")
    for scale, unit in _TIME_SCALES:
        if abs(rounded) >= scale:
            return f"{rounded / scale:.4g} {unit}"
    return f"{rounded / 1e-6:.3g} us" if rounded else "0 s"


def format_bytes(size: float) -> str:
    """Write a size in binary units: `3211272192` becomes `2.99 GiB`."""
    for scale, unit in _BYTE_SCALES:
        if abs(size) >= scale:
            return f"{size / scale:.3g} {unit}"
    return f"{size:.0f} B"
