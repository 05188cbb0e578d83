"""Layers whose decodes attend over tables of pages, wherever a step brings some."""

from functools import partial

import torch
from torch import Tensor

from engine.model.attention import attend_segments
from engine.model.decoder import Decoder
from engine.model.decoder_layer import DecoderLayer
from engine.model.paged_decode import PagedStep, attend_pages
from engine.model.step import PagedKvCache, StepInput
from engine.model.stopwatch import Lap


def page_decodes(model: Decoder) -> None:
    """Let a model's layers take steps with pages as well as steps with segments alone."""
    for layer in model.decoder_layers:
        layer.attend = partial(attend, layer)  # type: ignore[method-assign]


def attend(
    layer: DecoderLayer, queries: Tensor, step: StepInput, cache: PagedKvCache, lap: Lap
) -> Tensor:
    """Attend with every decode and every segment: (T, N, D) to (T, N, D)."""
    if not isinstance(step, PagedStep):
        return DecoderLayer.attend(layer, queries, step, cache, lap)
    out = torch.empty_like(queries)
    if step.pages:
        attend_pages(layer.index, queries, cache, step.pages, out)
        lap("attention_decode")
    if step.segments:
        attend_segments(layer.index, queries, cache, step.segments, out)
        lap("attention_prefill")
    return out
