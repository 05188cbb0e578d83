"""Jain's index by hand, and of tenants whose speeds are known."""

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.serving.fairness import fairness, jain
from moesim.serving.records import COMPLETED, REFUSED, Record, records_frame


def _record(tenant: str, turnaround_s: float, output: int) -> Record:
    record = Record(request_id=0, tenant=tenant, arrival_s=5, finish_s=5 + turnaround_s)
    record.output_tokens, record.outcome = output, COMPLETED
    return record


def _refused(tenant: str) -> Record:
    return Record(request_id=0, tenant=tenant, arrival_s=5, output_tokens=4, outcome=REFUSED)


@pytest.mark.parametrize(
    ("values", "index"),
    [([3, 3, 3], 1), ([1, 0], 1 / 2), ([1, 2, 3], 36 / 42), ([7], 1), ([0, 0], 1)],
)
def test_jain_by_hand(values: list[float], index: float) -> None:
    """Even, one takes all, 6^2 / (3 x 14), alone, and nothing for anybody."""
    assert jain(np.array(values, dtype=float)) == pytest.approx(index)


@given(st.lists(st.floats(0.01, 100), min_size=1), st.floats(0.01, 100))
def test_jain_has_bounds_and_no_unit(values: list[float], scale: float) -> None:
    """Between 1/n and 1, the same in tokens per minute."""
    index = jain(np.array(values))
    assert 1 / len(values) - 1e-12 <= index <= 1 + 1e-12
    assert jain(scale * np.array(values)) == pytest.approx(index)


def test_speeds_are_means_over_a_tenants_requests() -> None:
    """Tenant a gets 1 and 3 tokens/s, b 6 and none: 2 and 3, so 5^2 / (2 x 13)."""
    served = [_record("a", 2, 2), _record("a", 1, 3), _record("b", 0.5, 3), _refused("b")]
    assert fairness(records_frame(served)) == pytest.approx(25 / 26)


def test_a_tenant_that_gets_nothing() -> None:
    """Half of two tenants."""
    assert fairness(records_frame([_record("a", 2, 2), _refused("b")])) == pytest.approx(0.5)


def test_a_single_tenant_cannot_be_treated_unfairly(records: pd.DataFrame) -> None:
    """Nor can none."""
    assert fairness(records) is None
    assert fairness(records_frame([])) is None
