"""Bytes of number formats, groups and their scales counted."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.errors import ScenarioError
from moesim.facts.models import DTYPE_BYTES
from moesim.facts.precision import FORMATS, OF_DTYPE, Precision


@pytest.mark.parametrize(
    ("name", "size"),
    [("fp32", 1024), ("bf16", 512), ("fp16", 512), ("fp8", 256), ("int8", 256), ("int4", 133)],
)
def test_256_numbers_by_hand(name: str, size: int) -> None:
    """Two groups of int4: 128 B of numbers and 2 x 20 bits of scales and zero points."""
    assert FORMATS[name].bytes_of(256) == size


def test_a_begun_group_counts_whole() -> None:
    """One number alone: 4 bits and the 20 of its group."""
    assert FORMATS["int4"].bytes_of(1) == 3
    assert FORMATS["int4"].bytes_of(0) == 0


@given(count=st.integers(0, 10**12), more=st.integers(0, 1000))
def test_more_numbers_and_wider_formats_take_more(count: int, more: int) -> None:
    """The formats are listed widest first."""
    sizes = [form.bytes_of(count) for form in FORMATS.values() if count >= 128]
    assert sizes == sorted(sizes, reverse=True)
    for form in FORMATS.values():
        assert form.bytes_of(count) <= form.bytes_of(count + more)


def test_a_quantised_model_keeps_its_cache_in_16_bits() -> None:
    """Unless it is asked for."""
    assert Precision.uniform("int4") == Precision(experts="int4", rest="int4", kv="bf16")
    assert Precision.uniform("fp32").kv == "fp32"
    assert Precision.uniform("fp8").plain == "bf16"
    assert Precision.uniform("fp16").plain == "fp16"


def test_every_dtype_has_its_format() -> None:
    """Of the same width."""
    widths = {dtype: FORMATS[name].bytes_of(1) for dtype, name in OF_DTYPE.items()}
    assert widths == DTYPE_BYTES


@pytest.mark.parametrize("field", ["experts", "rest", "kv"])
def test_an_unknown_format_lists_the_known(field: str) -> None:
    """The cache, which no engine keeps in int4, has fewer."""
    with pytest.raises(ScenarioError, match=rf"precision\.{field}: 'int3' is not one of fp32, "):
        Precision(**{field: "int3"})
    with pytest.raises(ScenarioError, match=r"precision\.kv: 'int4'"):
        Precision(kv="int4")
    with pytest.raises(ScenarioError, match=r"precision\.experts: 'int3'"):
        Precision.uniform("int3")
