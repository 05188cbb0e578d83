"""The engine's loop: receive, schedule, run, account.

It is the simulator's replica with tensors in place of durations: the same scheduler, the same
ledger, the same refusals.
"""

from collections.abc import Callable, Mapping
from collections.abc import Sequence as Row
from dataclasses import dataclass, field
from math import inf

import pandas as pd

from engine.model.decoder import Decoder
from engine.model.experts.choosing import AUTO, use_experts
from engine.model.model import Model
from engine.model.paged_decode import follows_pages
from engine.model.parallel import Shard
from engine.model.stopwatch import Lap, no_lap
from engine.serve.clock import Clock, WallClock
from engine.serve.graphs import graph_sizes
from engine.serve.lead import LeadingRunner
from engine.serve.naming import block_names
from engine.serve.runner import Runner
from engine.serve.sampling import Logprob, Sampling
from engine.serve.seq2seq import runner_of
from engine.serve.traffic import Traffic
from moesim.errors import EngineError
from moesim.serving.kv_cache import KvCache, PrefixCache
from moesim.serving.queues import ORDERS, queue_of
from moesim.serving.records import Ledger, Record
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Batch, Sequence

Reader = Callable[[int, Logprob | None], bool]
"""Told each token of an answer as it is sampled; True ends the answer with this token."""


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine is set up.

    `limits` say how batches are put together and how much host memory takes the blocks of preempted
    sequences; `order` who is next, with the tenants' `priorities` and `weights`. Under
    `prefix_caching` prompts that begin alike share blocks. `experts` is the style in which experts
    run, or "auto" for what is fastest on the device; `graphs` lets decodes run as CUDA graphs where
    device and style allow.
    """

    limits: Limits
    num_blocks: int
    block_size: int = 16
    order: str = "fcfs"
    priorities: Mapping[str, int] = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    prefix_caching: bool = False
    sampling: Sampling = field(default_factory=Sampling)
    experts: str = AUTO
    graphs: bool = True

    def __post_init__(self) -> None:
        if self.order not in ORDERS:
            raise EngineError(f"order: {self.order!r} is none of {', '.join(ORDERS)}")
        if self.prefix_caching and self.limits.swap_blocks:
            raise EngineError(
                f"swap_blocks: {self.limits.swap_blocks} do not go with prefix_caching: "
                "shared blocks are not swapped; leave one of them out"
            )

    def scheduler(self) -> Scheduler:
        """Return a scheduler with nobody in it."""
        kind = PrefixCache if self.prefix_caching else KvCache
        cache = kind(self.num_blocks, self.block_size)
        return Scheduler(self.limits, cache, queue_of(self.order, self.weights))


class Engine:
    """Serves one model on one device.

    Used so::

        engine = Engine(load_decoder(path, device), config)
        record = Record(request_id=0, prompt_tokens=3, output_tokens=8)
        engine.submit(record, prompt=[5, 9, 2])
        while engine.step(): pass
    """

    def __init__(
        self,
        model: Model,
        config: EngineConfig,
        clock: Clock | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        longest = model.spec.max_position_embeddings
        if config.limits.max_model_len > longest:
            raise EngineError(
                f"max_model_len: {config.limits.max_model_len} exceeds the model's {longest}"
            )
        self.config = config
        self.clock: Clock = clock or WallClock()
        self.ledger = Ledger() if ledger is None else ledger
        self.scheduler = config.scheduler()
        self.runner = _runner(model, config)
        _tune(model, self.runner, config)
        self.outputs: dict[int, list[int]] = {}
        self._readers: dict[int, Reader] = {}

    def submit(
        self,
        record: Record,
        prompt: Row[int],
        names: Row[int] | None = None,
        *,
        sampling: Sampling | None = None,
        reader: Reader | None = None,
    ) -> bool:
        """Queue a request; False if it can never run, its record says why.

        The record's prompt and output lengths say what is wanted. `names` are the prompt's full
        blocks by content, for prefix caching; its tokens are hashed where none are given. Tokens
        are chosen by `sampling` or as the engine's configuration says. A `reader` may end the
        answer early, and the record's output then shrinks to what there is.
        """
        self.ledger.open(record)
        reason = self.refusal(record, prompt)
        if reason:
            self.ledger.refuse(record.request_id, reason)
            return False
        self.runner.add(record.request_id, prompt, sampling)
        if reader is not None:
            self._readers[record.request_id] = reader
        self.scheduler.submit(
            Sequence(
                record.request_id,
                record.prompt_tokens,
                record.output_tokens,
                tenant=record.tenant,
                priority=self.config.priorities.get(record.tenant, 0),
                prefix=self._prefix(prompt, names),
            )
        )
        return True

    def cancel(self, request_id: int) -> bool:
        """Drop a request between two iterations and free its blocks; False if it is not here.

        Its record stays unfinished and keeps the number of tokens that were generated.
        """
        scheduler = self.scheduler
        for sequence in (*scheduler.running, *scheduler.waiting):
            if sequence.request_id == request_id:
                break
        else:
            return False
        scheduler.cancel(sequence)
        self.runner.remove(sequence)
        self._readers.pop(request_id, None)
        record = self.ledger.records[request_id]
        record.output_tokens, record.preemptions = sequence.generated, sequence.preemptions
        record.detail = "cancelled"
        return True

    def refusal(self, record: Record, prompt: Row[int]) -> str | None:
        """Say why a request can never be served, or None if it can."""
        vocabulary = self.runner.model.spec.vocab_size
        reason = refusal(
            record.prompt_tokens, record.output_tokens, self.config.limits, self.scheduler.cache
        )
        if reason is None and not all(0 <= token < vocabulary for token in prompt):
            reason = f"a prompt token is outside the vocabulary of {vocabulary}"
        return reason

    def step(self, lap: Lap = no_lap) -> bool:
        """Run one iteration; False when there was nothing to run."""
        return self._iterate(lap) is not None

    def serve(
        self, traffic: Traffic, on_step: Callable[[float], None] = lambda now_s: None
    ) -> pd.DataFrame:
        """Serve requests as they arrive, in real time, to the last token; return their records.

        Arrivals are counted from the engine's clock. `on_step` is told the time after every
        iteration.
        """
        while True:
            self._take_in(traffic)
            finished = self._iterate(no_lap)
            for sequence in finished or ():
                traffic.done(self.ledger.records[sequence.request_id])
            if finished is None:
                if traffic.next_s() == inf:
                    return self.ledger.frame()
                self.clock.wait_until(traffic.next_s())
            on_step(self.clock.now())

    def _take_in(self, traffic: Traffic) -> None:
        """Submit whoever has arrived by now."""
        now_s = self.clock.now()
        while traffic.next_s() <= now_s:
            arrival = traffic.take()
            if not self.submit(arrival.record, arrival.prompt, arrival.names):
                traffic.done(arrival.record)

    def _iterate(self, lap: Lap) -> list[Sequence] | None:
        """Run one iteration; return who finished, None when there was nothing to run."""
        batch = self.scheduler.schedule()
        if not batch.chunks:
            return None
        self.ledger.scheduled(batch, self.clock.now())
        self.runner.run(batch, lap)
        self.clock.ran(batch)
        if self._readers:
            self._tell(batch)
        emitted, finished = self.scheduler.advance(batch)
        self.ledger.advanced(batch, emitted, finished, self.clock.now())
        self.outputs |= self.runner.settle(batch, finished)
        lap("host")
        return finished

    def _tell(self, batch: Batch) -> None:
        """Show each new token to its reader; an answer that it ends is as long as it is now."""
        for chunk in batch.chunks:
            key = chunk.sequence.request_id
            reader = self._readers.get(key) if chunk.emits else None
            if reader is None:
                continue
            ends = reader(self.runner.tokens[key][-1], self.runner.logprobs.get(key))
            generated = chunk.sequence.generated + 1
            if ends:
                chunk.sequence.output_tokens = generated
                self.ledger.records[key].output_tokens = generated
            if generated == chunk.sequence.output_tokens:
                del self._readers[key]

    def _prefix(self, prompt: Row[int], names: Row[int] | None) -> tuple[int, ...]:
        """Return the names by which a prompt shares its full blocks."""
        if not self.config.prefix_caching:
            return ()
        if names is None:
            return block_names(prompt, self.config.block_size)
        return tuple(names[: len(prompt) // self.config.block_size])


def _runner(model: Model, config: EngineConfig) -> Runner:
    """Return the runner of a model of this kind, or of one that this rank shares with others."""
    if isinstance(model, Shard):
        return LeadingRunner(
            model,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            sampling=config.sampling,
            swap_blocks=config.limits.swap_blocks,
            experts=config.experts,
        )
    return runner_of(
        model,
        num_blocks=config.num_blocks,
        block_size=config.block_size,
        sampling=config.sampling,
        swap_blocks=config.limits.swap_blocks,
        prefix_caching=config.prefix_caching,
    )


def _tune(model: Model, runner: Runner, config: EngineConfig) -> None:
    """Choose the style of a decoder's experts, and capture its decodes where nothing is against."""
    if not isinstance(model, Decoder):
        if config.experts != AUTO:
            raise EngineError(
                f"experts: {config.experts!r} is not for an encoder-decoder; leave it out"
            )
        return
    choice = use_experts(model, config.experts)
    if config.graphs and follows_pages(model.device):
        sizes = graph_sizes(min(config.limits.max_num_seqs, config.limits.max_batched_tokens))
        # All or none: launched sizes between captured ones would be predicted as padded replays.
        held = all(choice(count).capturable for count in range(1, sizes[-1] + 1))
        runner.capture(sizes if held else [])
