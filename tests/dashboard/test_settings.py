"""Settings: the numbers of a scenario with the bounds and words of their fields."""

import pytest

from moesim.dashboard.settings import (
    Setting,
    numbers,
    with_changes,
    with_enough_devices,
    with_value,
)
from moesim.deployment import Scheduler
from moesim.scenario import Slo
from moesim.traffic.arrivals import Gamma
from moesim.traffic.lengths import Quantiles


def by_name(settings: list[Setting]) -> dict[str, Setting]:
    return {setting.path[-1]: setting for setting in settings}


def test_numbers_carry_the_field_s_words_and_bounds() -> None:
    rate = by_name(numbers(Gamma(kind="gamma", rate_per_s=3, cv=2), ("a",)))["rate_per_s"]
    assert rate.label == Gamma.model_fields["rate_per_s"].description.rstrip(".")  # type: ignore[union-attr]
    assert (rate.value, rate.low, rate.high, rate.whole) == (3.0, 0, 1e5, False)
    assert rate.key == "a.rate_per_s"


def test_an_excluded_end_of_whole_numbers_becomes_the_next_one() -> None:
    sequences = by_name(numbers(Scheduler()))["max_num_seqs"]
    assert (sequences.low, sequences.high, sequences.whole) == (1, 65536, True)


def test_numbers_that_may_be_absent_are_found() -> None:
    assert {setting.value for setting in numbers(Slo())} == {None}
    assert len(numbers(Slo())) == 3


def test_tables_and_names_are_not_numbers() -> None:
    lengths = Quantiles(kind="quantiles", workload="azure-conv-2023")
    assert set(by_name(numbers(lengths))) == {"scale", "max"}


@pytest.mark.parametrize(
    ("value", "whole", "step"),
    [(3.0, False, 0.5), (0.0833, False, 0.005), (64, True, 8), (1, True, 1), (None, False, 0.1)],
)
def test_a_step_is_a_visible_change(value: float | None, whole: bool, step: float) -> None:
    setting = Setting(path=("x",), description="X.", whole=whole, value=value, low=0, high=None)
    assert setting.step == step


def test_a_change_adds_what_leads_to_it_and_leaves_the_original() -> None:
    content = {"deployment": {"kind": "dedicated"}}
    changed = with_value(content, ("deployment", "scheduler", "max_num_seqs"), 8)
    assert changed == {"deployment": {"kind": "dedicated", "scheduler": {"max_num_seqs": 8}}}
    assert content == {"deployment": {"kind": "dedicated"}}


def test_a_value_shared_by_a_yaml_anchor_changes_in_one_place_only() -> None:
    slo = {"ttft_s": 0.5}
    changed = with_changes({"a": slo, "b": slo}, {("a", "ttft_s"): 1.0})
    assert changed == {"a": {"ttft_s": 1.0}, "b": {"ttft_s": 0.5}}


def test_devices_grow_with_replicas_and_never_shrink() -> None:
    content = {"hardware": {"device": "cpu-2core", "count": 3}}
    assert with_enough_devices(content, 4)["hardware"]["count"] == 4
    assert with_enough_devices(content, 2)["hardware"]["count"] == 3
