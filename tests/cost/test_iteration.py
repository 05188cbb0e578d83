"""Iterations of the tiny profile (tests/conftest.py), added up by hand in milliseconds."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from moesim.cost.iteration import CostModel
from moesim.cost.profile import COORDINATES, Profile, load_profile
from moesim.serving.sequences import Batch, Chunk, Sequence

Content = Callable[[], dict[str, Any]]


def _chunk(new_tokens: int, context: int, *, more: int = 0) -> Chunk:
    """Build a chunk that leaves `more` prompt tokens for later, so that 0 emits a token."""
    return Chunk(Sequence(0, context + new_tokens + more, 9), new_tokens, context)


@pytest.fixture
def cost(tiny_profile: Profile) -> CostModel:
    """Return the cost model of the tiny profile."""
    return CostModel(tiny_profile, max_batched_tokens=64, max_num_seqs=16)


def _ms(cost: CostModel, *chunks: Chunk) -> float:
    return 1000 * cost.iteration_s(Batch(list(chunks)))


def test_a_prompt_alone(cost: CostModel) -> None:
    """Four tokens hit 4 (1 - 1/16) = 3.75 experts.

    10 host + 4 embedding + 2 layers (8 projections + 1 router + 4 + 11.25 experts + 8 attention)
    + 5 head + 1 sampling = 84.5.
    """
    assert _ms(cost, _chunk(4, 0)) == pytest.approx(84.5)


def test_a_first_chunk_emits_nothing(cost: CostModel) -> None:
    """The same four tokens of a longer prompt: no head, no sampling."""
    assert _ms(cost, _chunk(4, 0, more=3)) == pytest.approx(78.5)


def test_a_later_chunk_attends_to_what_is_cached(cost: CostModel) -> None:
    """After 6 cached tokens each of the 4 costs 3 ms more in each of 2 layers."""
    assert _ms(cost, _chunk(4, 6)) == pytest.approx(84.5 + 2 * 4 * 3)


def test_a_decode_step(cost: CostModel) -> None:
    """Context 4 and its own token: 10 + 1 + 2 (2 + 1 + 1 + 3 x 2 + 1 + 0.5) + 6 = 40."""
    assert _ms(cost, _chunk(1, 4)) == pytest.approx(40)


def test_decode_attention_is_linear_in_the_summed_context(cost: CostModel) -> None:
    """Contexts 4 and 29 cost what 16 and 17 do, and 2 layers x 0.1 ms more for each token more."""
    uneven = _ms(cost, _chunk(1, 4), _chunk(1, 29))
    assert uneven == pytest.approx(_ms(cost, _chunk(1, 16), _chunk(1, 17)))
    assert _ms(cost, _chunk(1, 5), _chunk(1, 29)) - uneven == pytest.approx(0.2)


def test_a_mixed_batch_is_one_pass(cost: CostModel) -> None:
    """A decode and a 3-token prompt together save 22.5 ms against two passes.

    One host round of 10; in each of 2 layers one router launch of 1; and experts that both hit,
    2 + 3.5 - 3.75 = 1.75 of them, read once, 3 ms each: 10 + 2 (1 + 5.25). What is linear in
    tokens or sequences saves nothing.
    """
    decode, prompt = _chunk(1, 4), _chunk(3, 0)
    apart = _ms(cost, decode) + _ms(cost, prompt)
    assert apart - _ms(cost, decode, prompt) == pytest.approx(22.5)


def test_prompts_attend_each_to_itself(cost: CostModel) -> None:
    """Two chunks of 2 after 4 cached tokens cost more attention than they do at the start."""
    at_start = _ms(cost, _chunk(2, 0), _chunk(2, 0))
    assert _ms(cost, _chunk(2, 4), _chunk(2, 0)) - at_start == pytest.approx(2 * 2 * 2)


def test_a_skewed_router_reads_fewer_experts(tiny_content: Content) -> None:
    """Shares 1, 1, 0, 0: four tokens hit 2 experts, not 3.75, and save 2 x 1.75 x 3 ms."""
    content = tiny_content()
    content["router"]["popularity"] = [[1, 1, 0, 0]] * 2
    skewed = CostModel(Profile.model_validate(content), max_batched_tokens=8, max_num_seqs=1)
    assert _ms(skewed, _chunk(4, 0)) == pytest.approx(84.5 - 10.5)


def test_layers_may_differ_in_skew(tiny_content: Content) -> None:
    """One layer of each kind saves half of that."""
    content = tiny_content()
    content["router"]["popularity"] = [[1, 1, 0, 0], [0.5] * 4]
    mixed = CostModel(Profile.model_validate(content), max_batched_tokens=8, max_num_seqs=1)
    assert _ms(mixed, _chunk(4, 0)) == pytest.approx(84.5 - 5.25)


def test_collectives_are_those_of_all_tokens_in_each_layer(tiny_content: Content) -> None:
    """0.5 T in each of 2 layers adds 4 to a prompt of four tokens and 1 to a decode."""
    content = tiny_content()
    cells = [{"at": [t], "median_s": t / 2000, "spread": 0, "repeats": 1} for t in (1, 64)]
    content["operations"]["collectives"] = cells
    group = CostModel(Profile.model_validate(content), max_batched_tokens=64, max_num_seqs=16)
    assert _ms(group, _chunk(4, 0)) == pytest.approx(88.5)
    assert _ms(group, _chunk(1, 4)) == pytest.approx(41)
    assert group.basis()["collectives"] == "interpolated"


def test_nothing_asked_has_no_basis(cost: CostModel) -> None:
    """A replica that never ran rests on nothing."""
    assert cost.basis() == {}


def test_a_batch_within_the_cells_is_interpolated(cost: CostModel) -> None:
    """A 4-token prompt and its decode: cells at 1 and 64, all but the single sequence between."""
    _ms(cost, _chunk(4, 0))
    _ms(cost, _chunk(1, 4))
    basis = cost.basis()
    assert set(basis) == set(COORDINATES)
    single = {"host", "head", "sampling", "attention_decode"}
    assert {name for name, value in basis.items() if value == "measured"} == single
    assert {basis[name] for name in set(COORDINATES) - single} == {"interpolated"}


def test_only_what_ran_has_a_basis(cost: CostModel) -> None:
    """A chunk that emits nothing asks for no head, no sampling and no decode."""
    _ms(cost, _chunk(4, 0, more=1))
    assert set(COORDINATES) - set(cost.basis()) == {"head", "sampling", "attention_decode"}


def test_what_lies_beyond_the_cells_is_flagged(tiny_profile: Profile) -> None:
    """Cells reach 64 tokens and a context of 64: 65 and 70 are extrapolated, one sequence not."""
    cost = CostModel(tiny_profile, max_batched_tokens=128, max_num_seqs=1)
    _ms(cost, _chunk(65, 70))
    basis = cost.basis()
    for name in ("embedding", "projections", "router", "experts", "attention_prefill"):
        assert basis[name] == "extrapolated"
    assert basis["host"] == "measured"


def test_one_answer_outside_outweighs_all_inside(cost: CostModel) -> None:
    """The basis of a run is that of its weakest answer: a context of 300 beyond the 256."""
    _ms(cost, _chunk(1, 9))
    assert cost.basis()["attention_decode"] == "measured"
    _ms(cost, _chunk(1, 299))
    _ms(cost, _chunk(1, 9))
    assert cost.basis()["attention_decode"] == "extrapolated"


def _by_tokens(profile: Profile, sizes: range) -> list[float]:
    cost = CostModel(profile, max_batched_tokens=sizes.stop, max_num_seqs=1)
    return [cost.but_prefill_attention_s(tokens, 1, 0, 0, 0) for tokens in sizes]


def test_the_shipped_profile_rises_with_tokens() -> None:
    """Also beyond what was measured."""
    times = _by_tokens(load_profile("demo-cpu"), range(1, 1024))
    assert times[0] > 0
    assert np.all(np.diff(times) >= 0)


@given(noise=st.lists(st.floats(0, 20), min_size=64, max_size=64))
def test_noisy_cells_keep_iterations_rising_and_positive(
    tiny_content: Content, noise: list[float]
) -> None:
    """Every cell is off by a factor of its own between 0 and 20; more tokens still cost more."""
    content = tiny_content()
    cells = [cell for name in COORDINATES for cell in content["operations"][name]]
    for cell, factor in zip(cells, noise, strict=False):
        cell["median_s"] *= factor
    times = _by_tokens(Profile.model_validate(content), range(1, 100))
    assert times[0] >= 0
    assert np.all(np.diff(times) >= -1e-9)


def test_decodes_alone_are_padded_to_a_captured_graph(tiny_profile: Profile) -> None:
    """Three decodes run in the graph of four: 4 tokens and 4 rows of logits, attention of three.

    10 host + 4 embedding + 2 (8 projections + 1 router + 4 + 11.25 experts + 3 + 1.2 attention)
    + 20 head + 4 sampling = 94.9. Beside a prompt nothing is padded.
    """
    graphs = tiny_profile.model_copy(update={"decode_graphs": (4, 2)})
    cost = CostModel(graphs, max_batched_tokens=64, max_num_seqs=16)
    assert _ms(cost, *[_chunk(1, 3)] * 3) == pytest.approx(94.9)
    plain = CostModel(tiny_profile, max_batched_tokens=64, max_num_seqs=16)
    mixed = (_chunk(1, 3), _chunk(1, 3), _chunk(4, 0))
    assert _ms(cost, *mixed) == _ms(plain, *mixed)
    assert _ms(cost, *[_chunk(1, 3)] * 5) == _ms(plain, *[_chunk(1, 3)] * 5)
