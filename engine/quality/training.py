"""Training a model of the engine on bytes, in place.

AdamW with a short rise and a cosine fall of the learning rate, on windows drawn at random.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from engine.quality.balance import balances, routed_layers
from engine.quality.loss import nats
from engine.variants.positions import Model

BALANCE = 0.01
"""Weight of the balancing loss, as in Switch Transformers (arXiv:2101.03961, section 2.2)."""
DECAY = 0.1
"""Weight decay of matrices, as in GPT-3 (arXiv:2005.14165, appendix B) and since."""
BETAS = (0.9, 0.95)
"""Of AdamW, from the same place."""
LARGEST_NORM = 1.0
"""Of the gradient, from the same place."""
RISE = 0.1
"""Share of the steps in which the learning rate rises."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """How a model is trained: steps of `batch` windows of `window` bytes, and the largest rate."""

    steps: int
    rate: float
    batch: int = 16
    window: int = 128


def train(
    model: Model,
    texts: Sequence[Tensor],
    course: Course,
    seed: int,
    tell: Callable[[float], None],
) -> float:
    """Train a model on texts, each as likely as any other; return the mean loss of the last tenth.

    The loss is in nats a byte, without the balancing part.
    """
    generator = torch.Generator().manual_seed(seed)
    optimiser = _optimiser(model)
    losses = []
    model.requires_grad_(True)
    with balances(routed_layers(model)) as imbalances:
        for step in range(course.steps):
            _set_rate(optimiser, rate(course, step))
            loss = nats(model, windows(texts, course, generator).to(model.device))
            torch.autograd.backward(loss + BALANCE * torch.stack(imbalances).sum())
            imbalances.clear()
            torch.nn.utils.clip_grad_norm_(model.parameters(), LARGEST_NORM)
            optimiser.step()
            optimiser.zero_grad()
            losses.append(loss.item())
            tell((step + 1) / course.steps)
    model.requires_grad_(False)
    last = losses[-max(1, len(losses) // 10) :]
    return sum(last) / len(last)


def windows(texts: Sequence[Tensor], course: Course, generator: torch.Generator) -> Tensor:
    """Draw a batch of windows (B, W) from texts (n,), the text first and then the place."""
    picked = torch.randint(len(texts), (course.batch,), generator=generator).tolist()
    drawn = []
    for text in (texts[index] for index in picked):
        last = text.numel() - course.window
        start = int(torch.randint(last + 1, (1,), generator=generator))
        drawn.append(text[start : start + course.window])
    return torch.stack(drawn).long()


def rate(course: Course, step: int) -> float:
    """Return the learning rate of a step: up in the first tenth, down to nothing at the end."""
    rise = max(1, round(RISE * course.steps))
    if step < rise:
        return course.rate * (step + 1) / rise
    return course.rate * 0.5 * (1 + cos(pi * (step - rise) / max(1, course.steps - rise)))


def _optimiser(model: Model) -> torch.optim.AdamW:
    """Return AdamW with a group a kind of weight; `scale` is what multiplies the learning rate.

    A relative position's bias is one number, where the other terms of an attention score add up
    products over the hidden size, all of which a step changes: its rate is as much larger.
    """
    named = dict(model.named_parameters())
    tables = [weight for name, weight in named.items() if name.endswith(".table")]
    others = [weight for name, weight in named.items() if not name.endswith(".table")]
    groups = [
        {"params": [one for one in others if one.dim() > 1], "weight_decay": DECAY, "scale": 1},
        {"params": [one for one in others if one.dim() == 1], "weight_decay": 0.0, "scale": 1},
        {"params": tables, "weight_decay": 0.0, "scale": model.spec.hidden_size},
    ]
    return torch.optim.AdamW([group for group in groups if group["params"]], betas=BETAS)


def _set_rate(optimiser: torch.optim.Optimizer, value: float) -> None:
    for group in optimiser.param_groups:
        group["lr"] = value * group["scale"]
