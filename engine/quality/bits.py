"""The metric: bits a byte of text that no model was trained on. Random bytes have 8."""

from math import log

import torch
from torch import Tensor

from engine.quality.loss import nats
from engine.variants.positions import Model

BATCH = 32
"""Windows that are computed together."""


@torch.no_grad()
def bits_per_byte(model: Model, text: Tensor, window: int) -> float:
    """Return the mean bits of the bytes of a text (n,), in windows that follow one another.

    What is left over at the end is not measured.
    """
    whole = text[: text.numel() // window * window].view(-1, window).long().to(model.device)
    batches = torch.split(whole, BATCH)
    total = sum(nats(model, batch).item() * len(batch) for batch in batches)
    return total / len(whole) / log(2)
