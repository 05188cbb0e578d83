"""What one forward pass works on: prompts to encode, and decoder tokens of sequences under way.

A sequence lies in the blocks of one paged cache from one end to the other: first the keys and
values that the decoder attends to across, one slot a prompt token, then those of the decoder's own
tokens. The start token's have no slot, so that a prompt of P tokens and an answer of n need the
same P + n - 1 slots as in a decoder without encoder; they are kept beside the cache. With blocks of
4 tokens, a prompt of 6 and an answer that has 3 tokens, of which the third comes in:

    slot          0 1 2 3 | 4 5 6 7 | 8
    holds         p p p p | p p 1 2 | 3        the start token: `opening`
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from engine.model.step import PagedKvCache


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchSegment:
    """The decoder tokens of one sequence in a step: `length` rows from `start` on.

    `context` decoder tokens came before them, the start token among them. `blocks` (n_blocks,) hold
    the prompt's `prompt_tokens` and the decoder's tokens, in order; `opening` (2, L, N, D) takes
    the start token's keys and values in its first step and has them in the later ones.
    """

    start: int
    length: int
    context: int
    prompt_tokens: int
    blocks: Tensor
    opening: Tensor

    @property
    def rows(self) -> slice:
        """Rows of this segment in the flat token dimension."""
        return slice(self.start, self.start + self.length)

    @property
    def decoded(self) -> int:
        """Decoder tokens once the new ones are there, the start token among them."""
        return self.context + self.length


@dataclass(frozen=True, slots=True, kw_only=True)
class SwitchStep:
    """The mixed batch of one iteration.

    `prompt_ids` (P,) are encoded, one prompt after another of `prompt_lengths`; what the decoder
    attends to goes to `prompt_slots` (P,). `token_ids` (T,) are the decoder's; the keys and values
    of `stored_rows` (R,) go to `slots` (R,), those of start tokens to their segments' `opening`.
    `emit_rows` (S,) are the rows whose logits are wanted.

    In generation an expert's capacity never binds in the decoder, as tokens come one at a time.
    `one_pass` lets it count over each segment's tokens, as when a known answer is read at once.
    """

    prompt_ids: Tensor
    prompt_lengths: list[int]
    prompt_slots: Tensor
    token_ids: Tensor
    stored_rows: Tensor
    slots: Tensor
    segments: list[SwitchSegment]
    emit_rows: Tensor
    one_pass: bool = False

    @property
    def decoder_lengths(self) -> list[int]:
        """Tokens over which each expert's capacity counts, group by group."""
        if self.one_pass:
            return [segment.length for segment in self.segments]
        return [1] * self.token_ids.shape[0]


def prompt_pages(cache: PagedKvCache, layer: int, segment: SwitchSegment) -> tuple[Tensor, Tensor]:
    """Gather what the decoder attends to across, keys and values (prompt_tokens, N, D) each."""
    blocks = -(-segment.prompt_tokens // cache.block_size)
    return cache.read(layer, segment.blocks[:blocks], segment.prompt_tokens)


def own_pages(cache: PagedKvCache, layer: int, segment: SwitchSegment) -> tuple[Tensor, Tensor]:
    """Gather keys and values (decoded, N, D) of the decoder's own tokens."""
    first, offset = divmod(segment.prompt_tokens, cache.block_size)
    pages = cache.read(layer, segment.blocks[first:], offset + segment.decoded - 1)
    keys, values = (
        torch.cat((opening.unsqueeze(0), page[offset:]))
        for opening, page in zip(segment.opening[:, layer], pages, strict=True)
    )
    return keys, values
