"""The runner: turns a scheduled batch into tensors, runs the decoder, samples the next tokens.

The scheduler counts KV blocks; the runner knows which they are, and copies those that it swaps.
Shapes: T tokens of the batch, S sequences that emit, V vocabulary.
"""

from collections.abc import Iterable
from collections.abc import Sequence as Row

import torch
from torch import Tensor

from engine.model.attention import keep_off_cudnn
from engine.model.decoder import Decoder
from engine.model.model import Model
from engine.model.paged_layers import page_decodes
from engine.model.step import PagedKvCache
from engine.model.stopwatch import Lap, no_lap
from engine.serve.blocks import Blocks
from engine.serve.graphs import DecodeGraphs
from engine.serve.inputs import Flat, flat
from engine.serve.sampling import (
    NO_TOKEN,
    Logprob,
    Sampler,
    Sampling,
    SpoiledError,
    Stream,
    certain,
    logprobs_of,
)
from engine.serve.swapping import SwapSpace
from moesim.errors import EngineError
from moesim.serving.sequences import Batch, Chunk, Sequence


class Runner:
    """A model with its paged cache, the tokens of each sequence and the blocks they lie in."""

    def __init__(
        self,
        model: Model,
        *,
        num_blocks: int,
        block_size: int,
        sampling: Sampling,
        swap_blocks: int = 0,
    ) -> None:
        keep_off_cudnn()
        self.model = model
        self.cache = PagedKvCache(
            model.spec,
            num_blocks=num_blocks,
            block_size=block_size,
            device=model.device,
            dtype=model.dtype,
        )
        self.blocks = Blocks(num_blocks, block_size)
        self.swap = self._swap_space(swap_blocks)
        self.tokens: dict[int, list[int]] = {}
        self.logprobs: dict[int, Logprob] = {}
        self._streams: dict[int, Stream] = {}
        self._block_size = block_size
        self._sampler = Sampler(sampling, model.device)
        self._graphs: DecodeGraphs | None = None
        if isinstance(model, Decoder):  # what encoder-decoders do is their runner's matter
            page_decodes(model)

    @property
    def decoder(self) -> Decoder:
        """The model, for who looks into its layers; EngineError where it is not a decoder."""
        if not isinstance(self.model, Decoder):
            raise EngineError(f"model_type: {self.model.spec.model_type!r} is not a decoder's")
        return self.model

    @property
    def decode_graphs(self) -> tuple[int, ...]:
        """Batch sizes to which iterations of decodes alone are padded, none without graphs."""
        return self._graphs.sizes if self._graphs else ()

    def capture(self, sizes: Row[int]) -> None:
        """Run iterations of decodes alone padded to these sizes from now on, on CUDA as graphs."""
        columns = -(-self.model.spec.max_position_embeddings // self._block_size)
        columns = min(columns, self.cache.num_blocks)
        self._graphs = DecodeGraphs(self.decoder, self.cache, sizes, columns) if sizes else None

    @property
    def free_blocks(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self.blocks.free)

    def add(self, request_id: int, prompt: Row[int], sampling: Sampling | None = None) -> None:
        """Take in the tokens of a prompt, to be answered by a rule of its own or the engine's."""
        self.tokens[request_id] = list(prompt)
        if sampling is not None:
            self._streams[request_id] = Stream(sampling, self.model.device)

    def remove(self, sequence: Sequence) -> None:
        """Forget a sequence that is not to be finished, wherever its blocks are."""
        self.swap.discard(sequence.request_id)
        self._remove(sequence)

    @torch.inference_mode()
    def run(self, batch: Batch, lap: Lap = no_lap) -> None:
        """Run one iteration; each emitting sequence gets its next token.

        `logprobs` are then those of this iteration's tokens, by request.
        """
        self._make_room(batch)
        emitting = [chunk for chunk in batch.chunks if chunk.emits]
        laid = flat(batch.chunks, self.tokens, self.blocks.give, self._block_size)
        logits = self._logits(laid, lap)
        if emitting:
            chosen = self._sample(logits, emitting)
            lap("sampling")
            for chunk, token in zip(emitting, chosen, strict=True):
                self.tokens[chunk.sequence.request_id].append(token)

    def settle(self, batch: Batch, finished: Iterable[Sequence]) -> dict[int, list[int]]:
        """Follow the scheduler's account of an iteration; return the answers of who finished."""
        for chunk in batch.chunks:
            self.blocks.share(chunk.sequence)
        return {sequence.request_id: self._remove(sequence) for sequence in finished}

    def _swap_space(self, num_blocks: int) -> SwapSpace:
        """Return room for so many swapped blocks."""
        return SwapSpace(self.cache, num_blocks)

    def _logits(self, laid: Flat, lap: Lap) -> Tensor:
        """Return the logits (S, V) of the emitting rows; a graph has no laps to tell."""
        if self._graphs and lap is no_lap and self._graphs.holds(laid):
            return self._graphs.run(laid)
        step = laid.step(self._block_size, self.decoder.device)
        lap("host")
        return self.decoder.forward(step, self.cache, lap)

    def _sample(self, logits: Tensor, emitting: Row[Chunk]) -> list[int]:
        """Choose a token for each row of logits [S, V], by its request's own rule if it has one.

        SpoiledError where one cannot be chosen; the iteration may then be run again without it.
        """
        keys = [chunk.sequence.request_id for chunk in emitting]
        streams = [self._streams.get(key) for key in keys] if self._streams else []
        chosen = self._sampler(logits, streams)
        tokens = certain(logits, chosen).tolist()
        if NO_TOKEN in tokens:
            without = zip(keys, tokens, strict=True)
            raise SpoiledError([key for key, token in without if token == NO_TOKEN])
        found = logprobs_of(logits, chosen, streams)
        self.logprobs = {keys[row]: logprob for row, logprob in found.items()}
        return tokens

    def _make_room(self, batch: Batch) -> None:
        """Free the blocks of the preempted, swapped or not, then bring others' back."""
        for sequence in batch.swapped_out:
            key = sequence.request_id
            self.swap.store(key, self.blocks.of(key))
        for sequence in batch.preempted:
            self.blocks.take_back(sequence.request_id)
        self.blocks.forget(batch.evicted)
        for sequence in batch.swapped_in:
            key = sequence.request_id
            self.swap.restore(key, self.blocks.borrow(key, self.swap.stored(key)))

    def _remove(self, sequence: Sequence) -> list[int]:
        """Forget a sequence, free its blocks, and return its answer."""
        self.blocks.take_back(sequence.request_id)
        self._streams.pop(sequence.request_id, None)
        return self.tokens.pop(sequence.request_id)[sequence.prompt_tokens :]
