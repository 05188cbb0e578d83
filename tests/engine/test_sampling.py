"""Rules request by request: top-p, seeds, log-probabilities, in one batch."""

import pytest
import torch
from torch import Tensor

from engine.serve.sampling import NO_TOKEN, Sampler, Sampling, Stream, certain, logprobs_of
from moesim.errors import EngineError

CPU = torch.device("cpu")
DRAWS = 20_000


def streams(*rules: Sampling | None) -> list[Stream | None]:
    """Return the rules as the runner hands them over."""
    return [None if rule is None else Stream(rule, CPU) for rule in rules]


def sampler(**rule: float) -> Sampler:
    """Return an engine's sampler."""
    return Sampler(Sampling(**{"temperature": 1.0, **rule}), CPU)  # type: ignore[arg-type]


def shares(tokens: Tensor, vocabulary: int) -> Tensor:
    """Return how often each token was drawn."""
    return tokens.bincount(minlength=vocabulary) / len(tokens)


def test_each_row_has_its_own_temperature() -> None:
    """Greedy, cool and hot rows side by side follow their own distributions."""
    logits = torch.tensor([0.0, 1.0, 2.0])
    heats = [0.0, 0.5, 2.0]
    rules = [Sampling(temperature=heat, seed=None) for heat in heats for _ in range(DRAWS)]
    drawn = sampler()(logits.repeat(3 * DRAWS, 1), streams(*rules)).view(3, DRAWS)
    assert drawn[0].eq(2).all()
    for heat, row in zip(heats[1:], drawn[1:], strict=True):
        torch.testing.assert_close(shares(row, 3), (logits / heat).softmax(0), atol=0.015, rtol=0)


def test_top_p_keeps_the_likeliest() -> None:
    """Of 0.5, 0.3, 0.15 and 0.05 the first two reach 0.7; a row without top-p keeps all."""
    logits = torch.tensor([0.15, 0.5, 0.05, 0.3]).log()
    cut, free = Sampling(temperature=1.0, top_p=0.7, seed=None), None
    rules = [cut] * DRAWS + [free] * DRAWS
    drawn = sampler()(logits.repeat(2 * DRAWS, 1), streams(*rules)).view(2, DRAWS)
    expected = torch.tensor([0.0, 0.625, 0.0, 0.375])
    torch.testing.assert_close(shares(drawn[0], 4), expected, atol=0.015, rtol=0)
    torch.testing.assert_close(shares(drawn[1], 4), logits.exp(), atol=0.015, rtol=0)


@pytest.mark.parametrize(
    ("temperature", "top_p"), [(3.0, 1e-9), (3.0, 1e-46), (1e-5, 1.0), (1e-6, 1.0), (1e-40, 0.9)]
)
def test_next_to_nothing_is_greedy(temperature: float, top_p: float) -> None:
    """The likeliest token always stays, also where float32 knows the number only as 0."""
    logits = torch.randn(64, 50, generator=torch.Generator().manual_seed(1))
    rule = Sampling(temperature=temperature, top_p=top_p, seed=None)
    assert torch.equal(sampler()(logits, streams(*[rule] * 64)), logits.argmax(-1))
    warm = Sampling(temperature=0.5, top_p=top_p, seed=None)
    beside = sampler()(logits, streams(*[rule] * 63, warm))
    assert torch.equal(beside[:-1], logits.argmax(-1)[:-1])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("rule", [{}, {"temperature": 0.7}, {"temperature": 2.0, "top_p": 0.5}])
def test_logits_that_are_no_numbers_give_no_token(bad: float, rule: dict[str, float]) -> None:
    """A row of NaN, or of infinities, or with one of them among numbers; a masked token is none."""
    logits = torch.randn(4, 50, generator=torch.Generator().manual_seed(1))
    logits[0] = bad
    logits[1, 7] = bad
    logits[2, :49] = -torch.inf
    chosen = certain(logits, sampler(**{"temperature": 0.0, **rule})(logits))
    masked = bad == -float("inf")
    assert [token == NO_TOKEN for token in chosen.tolist()] == [True, not masked, False, False]
    assert chosen[2] == 49


def test_a_seed_does_not_see_its_neighbours() -> None:
    """The same request draws the same tokens first or last, alone or not."""
    logits = torch.randn(5, 50, generator=torch.Generator().manual_seed(1))
    rule = Sampling(temperature=1.0, seed=7)
    alone = Stream(rule, CPU)
    expected = [int(sampler()(row[None], [alone])[0]) for row in logits]
    company, found = Stream(rule, CPU), []
    noisy = sampler(seed=3)
    for step, row in enumerate(logits):
        others = torch.randn(step, 50)
        batch = torch.cat([others, row[None]])
        found.append(int(noisy(batch, [None] * step + [company])[-1]))
    assert found == expected


def test_logprobs_are_of_the_models_own_distribution() -> None:
    """Before temperature, and only where asked for; 0 asks for the chosen token alone."""
    logits = torch.tensor([[0.1, 0.2, 0.7], [0.3, 0.5, 0.2], [0.6, 0.3, 0.1]]).log()
    rules = streams(
        Sampling(temperature=5.0, logprobs=2), Sampling(), Sampling(logprobs=0, temperature=1.0)
    )
    found = logprobs_of(logits, torch.tensor([0, 1, 1]), rules)
    assert set(found) == {0, 2}
    assert found[0].chosen == pytest.approx(logits[0, 0].item())
    assert [token for token, _ in found[0].top] == [2, 1]
    assert found[0].top[0][1] == pytest.approx(logits[0, 2].item())
    assert found[2].chosen == pytest.approx(logits[2, 1].item())
    assert found[2].top == ()


def test_more_logprobs_than_tokens() -> None:
    """All there are."""
    found = logprobs_of(torch.zeros(1, 3), torch.tensor([0]), streams(Sampling(logprobs=20)))
    assert len(found[0].top) == 3


@pytest.mark.parametrize("value", [-1.0, float("inf"), float("nan")])
def test_impossible_temperatures_are_refused(value: float) -> None:
    """A finite number, not below 0."""
    with pytest.raises(EngineError, match="temperature"):
        Sampling(temperature=value)


@pytest.mark.parametrize("value", [0.0, -0.5, 1.5, float("nan")])
def test_impossible_top_p_is_refused(value: float) -> None:
    """A probability above 0."""
    with pytest.raises(EngineError, match="top_p"):
        Sampling(top_p=value)
