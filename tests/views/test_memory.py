"""A plan on the terminal and in a chart: every part, to scale."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.facts.memory import MemoryDemand, MemoryPlan, plan_memory
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.residents import Resident, Residents
from moesim.views.memory import COLOURS, memory_chart, write_page
from moesim.views.memory_terminal import END, FREE, LETTERS, WIDTH, bar, show_memory

GIB = 2**30


def plan_of(parts: list[int], slice_bytes: int) -> MemoryPlan:
    names = ("non_expert", "shared_expert", "private_expert", "kv", "activation", "reserved")
    sizes = {f"{name}_bytes": size for name, size in zip(names, parts, strict=True)}
    return MemoryPlan(
        slice_bytes=slice_bytes, host_expert_bytes=0, host_non_expert_bytes=0, **sizes
    )


@pytest.fixture
def demand(engine_spec: ModelSpec) -> MemoryDemand:
    """Return two variants of a tiny model that share half their experts, on 1 MiB."""
    return MemoryDemand(
        spec=engine_spec,
        slice_bytes=2**20,
        precision=Precision.of_dtype(engine_spec.dtype),
        kv_blocks=4,
        variants=2,
        ratio=0.5,
        resident=0.75,
        max_batched_tokens=8,
        max_num_seqs=2,
    )


def test_letters_and_colours_are_those_of_the_parts() -> None:
    """One each, in the plan's order."""
    parts = plan_of([0] * 6, 1).parts
    assert list(LETTERS) == list(parts)
    assert len(set(LETTERS.values())) == len(set(COLOURS)) == len(parts)


def test_a_bar_by_hand() -> None:
    """Of 64 characters a quarter each for two parts, half free; the slice ends with the bar."""
    drawn = bar(plan_of([16, 0, 16, 0, 0, 0], 64))
    assert drawn == "N" * 16 + "P" * 16 + FREE * 32 + END


def test_a_slice_that_is_too_small_ends_within_the_bar() -> None:
    """Half of it is beyond."""
    drawn = bar(plan_of([32, 0, 32, 0, 0, 0], 32))
    assert drawn == "N" * 32 + END + "P" * 32


@given(parts=st.lists(st.integers(0, 10**12), min_size=6, max_size=6), size=st.integers(1, 10**12))
def test_every_part_is_seen_and_none_invented(parts: list[int], size: int) -> None:
    """However small; and the bar is as long as ever."""
    plan = plan_of(parts, size)
    drawn = bar(plan)
    assert len(drawn) == WIDTH + len(END)
    for letter, held in zip([*LETTERS.values(), FREE], [*parts, plan.free_bytes], strict=True):
        assert (letter in drawn) == (held > 0)


def test_the_table_says_what_each_part_is_made_of(
    demand: MemoryDemand, capsys: pytest.CaptureFixture[str]
) -> None:
    """Eight positions, four shared: 9 of 12 copies here, 3 in host memory."""
    show_memory("two [models] on a slice", demand, "fits")
    text = capsys.readouterr().out
    for words in (
        "two [models] on a slice",
        "non-expert sets",
        "2 x ",
        "4 x 6 KiB",
        "5 x 6 KiB; 3 more in host memory",
        "64 tokens in blocks of 16",
        "8 tokens, 2 sequences",
        "10 % of the slice set aside",
        "more KV blocks",
        "fits",
    ):
        assert words in text
    assert max(map(len, text.splitlines())) <= 80


def test_whole_models_are_listed_by_name_or_by_number(capsys: pytest.CaptureFixture[str]) -> None:
    """Equal ones are so many times one; of swapped ones the largest is there, the others wait."""
    small = Resident(
        name="small", non_expert_bytes=GIB, expert_bytes=0, activation_bytes=2**20,
        block_bytes=2**20, block_size=16, kv_blocks=64,
    )  # fmt: skip
    models = (small, replace(small, name="big", expert_bytes=4 * GIB))
    demand = Residents(models=models, slice_bytes=10 * GIB, reserved_share=0.1)
    show_memory("two", demand, "fits")
    text = capsys.readouterr().out
    for words in (
        "2 x 1 GiB",
        "small 0 B, big 4 GiB",
        "2 x 1,024 tokens",
        "of the model that runs",
    ):
        assert words in text
    assert "in host memory" not in text
    show_memory("two", replace(demand, swapped=True), "fits")
    swapped = capsys.readouterr().out
    assert "1 x 4 GiB, one model at a time" in swapped
    assert "in host memory: 1 GiB of weights" in swapped
    # 10 - 1 - 1 - 4 - 0.125 GiB less 1 MiB hold 1983 blocks of each, of 16 tokens.
    said = f"room for 1,983 more KV blocks a model ({1983 * 16:,} tokens)"
    assert said in " ".join(swapped.split())


def test_the_chart_stacks_the_parts(demand: MemoryDemand) -> None:
    """In GiB, a bar a plan, a mark where each slice ends; parts of nothing are left out."""
    plans = {"one": plan_of([GIB, 0, 2 * GIB, 0, 0, 0], 4 * GIB), "two": plan_memory(demand)}
    figure = memory_chart(plans)
    drawn: dict[str, Any] = {trace.name: trace for trace in figure.data}
    assert tuple(drawn["private experts"].x) == (2, pytest.approx(0.0, abs=1e-4))
    assert list(drawn["slice"].x) == [4, 2**20 / GIB]
    assert figure.layout.barmode == "stack"
    assert "KV cache" in drawn
    alone = memory_chart({"one": plans["one"]})
    assert {trace.name for trace in alone.data} == {"non-expert sets", "private experts", "slice"}


def test_the_page_is_whole_and_names_are_harmless(demand: MemoryDemand, tmp_path: Path) -> None:
    """With the sentence that the terminal shows."""
    page = tmp_path / "page.html"
    write_page(page, "<b>x</b>", "needs 2 > 1", {"<b>x</b>": plan_memory(demand)})
    text = page.read_text()
    assert "<b>x</b>" not in text
    assert "needs 2 &gt; 1" in text
    assert text.rstrip().endswith("</html>")
