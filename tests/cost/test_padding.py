"""An iteration whose prompts are padded to the longest takes what so many long ones take."""

import pytest

from moesim.cost.iteration import CostModel
from moesim.cost.profile import Profile
from moesim.serving.sequences import Batch, Chunk, Sequence


def _prompts(*tokens: int, padded_to: int = 0) -> Batch:
    chunks = [Chunk(Sequence(place, each, 9), each, 0) for place, each in enumerate(tokens)]
    return Batch(chunks, padded_to=padded_to)


@pytest.mark.parametrize("tokens", [(2, 4), (4, 2), (1, 4), (4,), (1, 1, 4)])
def test_padding_is_computed_like_tokens(tiny_profile: Profile, tokens: tuple[int, ...]) -> None:
    """Prompts of up to 4 tokens in a rectangle cost what as many of 4 do, one of 1 token too."""
    cost = CostModel(tiny_profile, max_batched_tokens=64, max_num_seqs=16)
    padded, long = _prompts(*tokens, padded_to=4), _prompts(*[4] * len(tokens))
    assert cost.iteration_s(padded) == cost.iteration_s(long)
    assert padded.tokens == sum(tokens)


def test_a_rectangle_of_one_token_each_is_not_padded(tiny_profile: Profile) -> None:
    cost = CostModel(tiny_profile, max_batched_tokens=64, max_num_seqs=16)
    assert cost.iteration_s(_prompts(1, 1, padded_to=1)) == cost.iteration_s(_prompts(1, 1))
