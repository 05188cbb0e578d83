"""What a model is trained on and judged by: the cross entropy of bytes."""

from torch import Tensor

from engine.model.decoder import Decoder
from engine.quality.forward import next_nats
from engine.quality.seq2seq import answer_nats
from engine.variants.positions import Model


def nats(model: Model, windows: Tensor) -> Tensor:
    """Return the mean cross entropy [nats] of bytes of windows (B, W).

    They are those after the first, or in a Switch Transformer those of the second half.
    """
    if isinstance(model, Decoder):
        return next_nats(model, windows)
    return answer_nats(model, windows)
