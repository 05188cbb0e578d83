"""What people write: a truth value is no number, wherever it stands."""

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import BaseModel

from moesim.checked import checked
from moesim.errors import ProfileError, ScenarioError
from moesim.scenario import scenario_from


class _Inner(BaseModel):
    rates: tuple[float, ...] = ()
    flag: bool = False
    anything: dict[str, Any] = {}


class _Outer(BaseModel):
    count: int | None = None
    named: dict[str, list[_Inner]] = {}


@pytest.mark.parametrize(
    ("content", "place"),
    [
        ({"count": True}, "count"),
        ({"count": False}, "count"),
        ({"named": {"a": [{}, {"rates": [1, 2, True]}]}}, "named.a.1.rates.2"),
    ],
)
def test_a_truth_value_is_no_number(content: dict[str, Any], place: str) -> None:
    """However deep it lies."""
    with pytest.raises(ProfileError) as told:
        checked(_Outer, content, "my.json", ProfileError)
    assert str(told.value) == f"my.json: {place}: true and false are no numbers; give a number"


def test_a_truth_value_stays_where_it_belongs() -> None:
    """In a field of its kind, and where anything may stand."""
    inner = {"flag": True, "anything": {"deep": [True, 1]}}
    read = checked(_Outer, {"count": 1, "named": {"a": [inner]}}, "my.json")
    assert read.named["a"][0] == _Inner(flag=True, anything={"deep": [True, 1]})


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("arrivals", {"kind": "poisson", "rate_per_s": True}),
        ("arrivals", {"kind": "diurnal", "rates_per_s": [1.0, True]}),
        ("arrivals", {"kind": "users", "count": True, "think_s": 1.0}),
        ("prompt_tokens", {"kind": "fixed", "tokens": True}),
        ("slo", {"ttft_s": True}),
        ("priority", True),
    ],
)
def test_of_a_tenant_too(
    tiny_scenario: Callable[[], dict[str, Any]], field: str, changes: Any
) -> None:
    content = tiny_scenario()
    content["tenants"]["chat"][field] = changes
    with pytest.raises(ScenarioError, match=rf"tenants\.chat\.{field}.*true and false are no num"):
        scenario_from(content)
