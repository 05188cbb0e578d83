"""Training: the course of the rate, what is drawn, that it learns, and what it leaves behind."""

from math import cos, log, pi
from typing import Any

import pytest
import torch

from engine.model.loading import random_model
from engine.model.switch.model import Switch
from engine.quality.balance import balances, imbalance, routed_layers
from engine.quality.bits import bits_per_byte
from engine.quality.loss import nats
from engine.quality.training import Course, rate, train, windows
from moesim.facts.models import ModelSpec


def test_the_rate_rises_and_falls() -> None:
    """Of 20 steps 2 rise; half-way down it is half."""
    course = Course(steps=20, rate=0.5)
    assert [rate(course, step) for step in (0, 1, 2)] == [0.25, 0.5, 0.5]
    assert rate(course, 11) == pytest.approx(0.25)
    assert rate(course, 19) == pytest.approx(0.25 * (1 + cos(pi * 17 / 18)))


def test_windows_are_parts_of_the_texts() -> None:
    """Of both texts, and up to the last byte of each."""
    texts = [torch.arange(9, dtype=torch.uint8), torch.arange(100, 106, dtype=torch.uint8)]
    course = Course(steps=1, rate=0.1, batch=400, window=5)
    drawn = windows(texts, course, torch.Generator().manual_seed(0))
    assert drawn.shape == (400, 5)
    assert (drawn.diff(dim=1) == 1).all()
    assert sorted(set(drawn[:, 0].tolist())) == [0, 1, 2, 3, 4, 100, 101]


def test_it_learns_what_repeats(spec: ModelSpec) -> None:
    """A text of one byte over and over has no bits left; before, the model knew nothing."""
    model = random_model(spec, 0)
    text = torch.full((64,), 7, dtype=torch.uint8)
    before = bits_per_byte(model, text, 16)
    train(model, [text], Course(steps=40, rate=3e-2, batch=2, window=16), 0, lambda _: None)
    after = bits_per_byte(model, text, 16)
    assert after < 0.5 < 2 < before


def test_the_same_seed_trains_the_same_model(spec: ModelSpec) -> None:
    """Every weight has moved, and there is nothing left of the training."""
    text = torch.arange(256, dtype=torch.uint8)
    course = Course(steps=3, rate=1e-2, batch=4, window=16)
    start, *models = (random_model(spec, 0) for _ in range(4))
    routings = [layer.routing for layer in routed_layers(models[0])]
    told: list[float] = []
    for model, seed in zip(models, (1, 1, 2), strict=True):
        train(model, [text], course, seed, told.append)
    one, same, other = (dict(model.named_parameters()) for model in models)
    for key, first in start.named_parameters():
        assert torch.equal(one[key], same[key])
        assert not torch.equal(one[key], first), key
    assert any(not torch.equal(one[key], other[key]) for key in one)
    assert not any(weight.requires_grad for weight in one.values())
    assert [layer.routing for layer in routed_layers(models[0])] == routings
    assert told[:3] == [1 / 3, 2 / 3, 1]


def test_the_balancing_loss_by_hand() -> None:
    """Equation 4 of arXiv:2101.03961: E times the sum of f times P.

    Three of four tokens go to expert 0 with probabilities of 0.7 on average, one to expert 1:
    2 * (0.75 * 0.6 + 0.25 * 0.4) = 1.1.
    """
    probabilities = torch.tensor([[0.8, 0.2], [0.7, 0.3], [0.6, 0.4], [0.3, 0.7]])
    ids = torch.tensor([[0], [0], [0], [1]])
    assert imbalance(probabilities, ids).item() == pytest.approx(1.1)
    even = torch.full((4, 2), 0.5)
    assert imbalance(even, torch.tensor([[0], [1], [0], [1]])).item() == pytest.approx(1.0)


def test_each_layer_with_experts_is_watched(spec: ModelSpec) -> None:
    """Once a pass; at least 1 where tokens go where the probability is, and no more than E."""
    model = random_model(spec, 0)
    with balances(routed_layers(model)) as losses:
        nats(model, torch.arange(32).view(2, 16))
    assert len(losses) == spec.expert_layers == 2
    assert all(0 < loss.item() <= 2 for loss in losses)


def test_a_model_that_knows_nothing_has_eight_bits(spec: ModelSpec) -> None:
    model: Any = random_model(spec, 0)
    (model.decoder.norm if isinstance(model, Switch) else model.lm_head).zero_()
    text = torch.arange(256, dtype=torch.uint8)
    assert bits_per_byte(model, text, 16) == pytest.approx(8.0, abs=1e-4)


def test_bits_are_of_all_whole_windows(spec: ModelSpec) -> None:
    """The mean over windows, more than one batch of them; a rest of 7 bytes is left out."""
    model = random_model(spec, 0)
    text = torch.randint(256, (40 * 16 + 7,), generator=torch.Generator().manual_seed(0))
    each = [nats(model, text[start : start + 16].view(1, 16)) for start in range(0, 640, 16)]
    expected = sum(loss.item() for loss in each) / 40 / log(2)
    assert bits_per_byte(model, text.to(torch.uint8), 16) == pytest.approx(expected, rel=1e-5)
