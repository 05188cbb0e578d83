"""Sizes of a denser table between a sparse one's own."""

import numpy as np
import pytest

from moesim.cost.kernels.denser import filled

OWN = tuple(2**i for i in range(12))
ALL = tuple(range(1, 2049))


def _steps(size: int) -> float:
    """Return what a device takes that does 96 tokens in the time of one."""
    return 10.0 * -(-size // 96)


def test_steps_between_sizes_come_from_the_denser_table() -> None:
    """At the ratio of the two tables, and the own sizes stay as they are."""
    own = tuple(1.3 * _steps(size) for size in OWN)
    sizes, us = filled((OWN, own), (ALL, tuple(map(_steps, ALL))))
    assert sizes == ALL
    assert us == pytest.approx([1.3 * _steps(size) for size in ALL])


def test_a_ratio_that_drifts_is_followed() -> None:
    def drift(size: int) -> float:
        return float(1.0 + 0.01 * np.log2(size))

    own = tuple(_steps(size) * drift(size) for size in OWN)
    sizes, us = filled((OWN, own), (ALL, tuple(map(_steps, ALL))))
    assert us == pytest.approx([_steps(size) * drift(size) for size in sizes], rel=2e-3)


def test_tables_that_differ_in_shape_are_left_alone() -> None:
    own = tuple(_steps(size) * (3 if size > 100 else 1) for size in OWN)
    assert filled((OWN, own), (ALL, tuple(map(_steps, ALL)))) == (OWN, own)


def test_too_few_common_sizes_tell_nothing() -> None:
    own = (OWN[:7], tuple(map(_steps, OWN[:7])))
    assert filled(own, (ALL, tuple(map(_steps, ALL)))) == own


def test_nothing_is_added_beyond_the_own_sizes() -> None:
    own = (OWN[2:11], tuple(map(_steps, OWN[2:11])))
    sizes, _ = filled(own, (ALL, tuple(map(_steps, ALL))))
    assert (sizes[0], sizes[-1]) == (4, 1024)
