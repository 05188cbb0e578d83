"""The runner of encoder-decoders: the same scheduler, blocks and sampling, another forward pass.

How the scheduler's tokens are read, for a prompt of P tokens:

| the scheduler counts | here |
|---|---|
| P tokens of the prompt, in P slots | what the decoder attends to across, a slot a prompt token |
| the iteration that completes the prompt | it is encoded, and the decoder reads its start token |
| a token of the answer, in a slot | the same; the start token's keys and values have no slot |
| a sequence computed again | its prompt is encoded again, the decoder reads its answer at once |

So records, blocks and iterations are those of a decoder with the same lengths. An encoder cannot
read half a prompt: where the policy splits prompts, the chunks before the last take blocks and no
time, and the last one encodes all, beyond the iteration's budget. Policies that do not split keep
to it. The keys and values of start tokens, one token a sequence, are kept beside the cache.

A prompt is encoded without padding, and its experts' capacity counts over it alone: its answer does
not depend on what runs beside it. Prefix caching is refused, as a prompt's end changes what its
beginning is encoded to.
"""

from collections.abc import Sequence as Row
from dataclasses import dataclass, field

import torch
from torch import Tensor

from engine.model.model import Model
from engine.model.stopwatch import Lap, no_lap
from engine.model.switch.model import Switch
from engine.model.switch.step import SwitchSegment, SwitchStep
from engine.serve.runner import Runner
from engine.serve.sampling import Sampling
from moesim.errors import EngineError
from moesim.serving.sequences import Batch, Chunk, Sequence


def runner_of(
    model: Model,
    *,
    num_blocks: int,
    block_size: int,
    sampling: Sampling,
    swap_blocks: int = 0,
    prefix_caching: bool = False,
) -> Runner:
    """Return a runner for a model of either kind; EngineError for what its kind cannot do."""
    if not isinstance(model, Switch):
        return Runner(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            sampling=sampling,
            swap_blocks=swap_blocks,
        )
    if prefix_caching:
        raise EngineError(
            "prefix_caching: not for an encoder-decoder, which reads prompts as a whole; "
            "leave it out"
        )
    return Seq2SeqRunner(
        model,
        num_blocks=num_blocks,
        block_size=block_size,
        sampling=sampling,
        swap_blocks=swap_blocks,
    )


class Seq2SeqRunner(Runner):
    """An encoder-decoder with its paged cache, and the tokens of each sequence.

    A sequence's tokens are its prompt's, then its answer's, as for a decoder.
    """

    model: Switch

    def __init__(
        self,
        model: Switch,
        *,
        num_blocks: int,
        block_size: int,
        sampling: Sampling,
        swap_blocks: int = 0,
    ) -> None:
        super().__init__(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            sampling=sampling,
            swap_blocks=swap_blocks,
        )
        self._openings: dict[int, Tensor] = {}

    @torch.inference_mode()
    def run(self, batch: Batch, lap: Lap = no_lap) -> None:
        """Run one iteration; each emitting sequence gets its next token.

        `logprobs` are then those of this iteration's tokens, by request.
        """
        self._make_room(batch)
        step = self._switch_step(batch.chunks)
        lap("host")
        if not step.segments:
            return  # parts of prompts that are not complete yet
        logits = self.model(step, self.cache, lap)  # [S, V]
        emitting = [chunk for chunk in batch.chunks if chunk.emits]
        if emitting:
            chosen = self._sample(logits, emitting)
            lap("sampling")
            for chunk, token in zip(emitting, chosen, strict=True):
                self.tokens[chunk.sequence.request_id].append(token)

    def _remove(self, sequence: Sequence) -> list[int]:
        """Forget a sequence, free its blocks, and return its answer."""
        self._openings.pop(sequence.request_id, None)
        return super()._remove(sequence)

    def _switch_step(self, chunks: Row[Chunk]) -> SwitchStep:
        """Lay a batch out flat: the prompts to encode, and the decoder's tokens."""
        rows = _Rows()
        for chunk in chunks:
            blocks = self.blocks.give(chunk.sequence)
            if _completes_prompt(chunk):
                self._lay_prompt(rows, chunk, blocks)
            if span := _decoder_span(chunk):
                self._lay_decoder_tokens(rows, chunk, span, blocks)
        return rows.step(self.model.device)

    def _lay_prompt(self, rows: "_Rows", chunk: Chunk, blocks: list[int]) -> None:
        spec, key = self.model.spec, chunk.sequence.request_id
        length = chunk.sequence.prompt_tokens
        rows.prompt_ids += self.tokens[key][:length]
        rows.prompt_lengths.append(length)
        rows.prompt_slots += [self._slot(blocks, place) for place in range(length)]
        shape = (2, spec.num_hidden_layers, spec.num_key_value_heads, spec.head_dim)
        self._openings[key] = torch.empty(shape, device=self.model.device, dtype=self.model.dtype)

    def _lay_decoder_tokens(
        self, rows: "_Rows", chunk: Chunk, span: range, blocks: list[int]
    ) -> None:
        """Add the decoder's tokens at positions `span`; position 0 is the start token's."""
        key, prompt = chunk.sequence.request_id, chunk.sequence.prompt_tokens
        start = len(rows.token_ids)
        for position in span:
            # Token n of the answer is the decoder's at position n, in the slot before it.
            place = prompt + position - 1
            if position:
                rows.stored_rows.append(len(rows.token_ids))
                rows.slots.append(self._slot(blocks, place))
            first = self.model.config.decoder_start_token
            rows.token_ids.append(self.tokens[key][place] if position else first)
        if chunk.emits:
            rows.emit_rows.append(len(rows.token_ids) - 1)
        rows.segments.append(
            SwitchSegment(
                start=start,
                length=len(span),
                context=span.start,
                prompt_tokens=prompt,
                blocks=torch.tensor(blocks, device=self.model.device),
                opening=self._openings[key],
            )
        )

    def _slot(self, blocks: list[int], place: int) -> int:
        index, offset = divmod(place, self._block_size)
        return blocks[index] * self._block_size + offset


@dataclass(slots=True)
class _Rows:
    """A step under construction; the lists are `SwitchStep`'s tensors."""

    prompt_ids: list[int] = field(default_factory=list)
    prompt_lengths: list[int] = field(default_factory=list)
    prompt_slots: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    stored_rows: list[int] = field(default_factory=list)
    slots: list[int] = field(default_factory=list)
    emit_rows: list[int] = field(default_factory=list)
    segments: list[SwitchSegment] = field(default_factory=list)

    def step(self, device: torch.device) -> SwitchStep:
        """Return the step with its tensors on `device`."""

        def tensor(numbers: list[int]) -> Tensor:
            return torch.tensor(numbers, dtype=torch.long, device=device)

        return SwitchStep(
            prompt_ids=tensor(self.prompt_ids),
            prompt_lengths=self.prompt_lengths,
            prompt_slots=tensor(self.prompt_slots),
            token_ids=tensor(self.token_ids),
            stored_rows=tensor(self.stored_rows),
            slots=tensor(self.slots),
            segments=self.segments,
            emit_rows=tensor(self.emit_rows),
        )


def _completes_prompt(chunk: Chunk) -> bool:
    """Whether the last token of the prompt is in this chunk."""
    return chunk.context < chunk.sequence.prompt_tokens <= chunk.context + chunk.new_tokens


def _decoder_span(chunk: Chunk) -> range:
    """Return the positions at which the decoder reads tokens in this chunk.

    A prompt of 6 that enters whole is position 0, the start token; a next token after 7 is 2.

    >>> _decoder_span(Chunk(Sequence(0, prompt_tokens=6, output_tokens=9), new_tokens=6, context=0))
    range(0, 1)
    >>> _decoder_span(Chunk(Sequence(0, prompt_tokens=6, output_tokens=9), new_tokens=1, context=7))
    range(2, 3)
    """
    prompt = chunk.sequence.prompt_tokens
    first = chunk.context - prompt + 1 if chunk.context >= prompt else 0
    return range(first, max(chunk.context + chunk.new_tokens - prompt + 1, first))
