"""The engine's loop: receive, schedule, run, account.

It is the simulator's replica with tensors in place of durations: the same scheduler, the same
ledger, the same refusals.
"""

from collections import deque
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Row
from dataclasses import dataclass, field

import pandas as pd

from engine.model.decoder import Decoder
from engine.model.stopwatch import Lap, no_lap
from engine.serve.clock import Clock, WallClock
from engine.serve.runner import Runner
from engine.serve.sampling import Sampling
from moesim.errors import EngineError
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import Ledger, Record
from moesim.serving.scheduling import Limits, Scheduler, refusal
from moesim.serving.sequences import Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineConfig:
    """How one engine is set up."""

    limits: Limits
    num_blocks: int
    block_size: int = 16
    sampling: Sampling = field(default_factory=Sampling)


class Engine:
    """Serves one model on one device.

    >>> # engine = Engine(load_decoder(path, device), config)
    >>> # engine.submit(0, prompt=[5, 9, 2], output_tokens=8)
    >>> # while engine.step(): pass
    """

    def __init__(self, decoder: Decoder, config: EngineConfig, clock: Clock | None = None) -> None:
        longest = decoder.spec.max_position_embeddings
        if config.limits.max_model_len > longest:
            raise EngineError(
                f"max_model_len: {config.limits.max_model_len} exceeds the model's {longest}"
            )
        self.config = config
        self.clock: Clock = clock or WallClock()
        self.ledger = Ledger()
        self.scheduler = Scheduler(config.limits, KvCache(config.num_blocks, config.block_size))
        self.runner = Runner(
            decoder,
            num_blocks=config.num_blocks,
            block_size=config.block_size,
            sampling=config.sampling,
        )
        self.outputs: dict[int, list[int]] = {}

    def submit(self, record: Record, prompt: Row[int]) -> None:
        """Queue a request; one that can never run is refused in its record.

        The record's prompt and output lengths say what is wanted.
        """
        self.ledger.open(record)
        vocabulary = self.runner.decoder.spec.vocab_size
        reason = refusal(
            record.prompt_tokens, record.output_tokens, self.config.limits, self.scheduler.cache
        )
        if reason is None and not all(0 <= token < vocabulary for token in prompt):
            reason = f"a prompt token is outside the vocabulary of {vocabulary}"
        if reason:
            self.ledger.refuse(record.request_id, reason)
            return
        self.runner.add(record.request_id, prompt)
        self.scheduler.submit(
            Sequence(record.request_id, record.prompt_tokens, record.output_tokens)
        )

    def step(self, lap: Lap = no_lap) -> bool:
        """Run one iteration; False when there was nothing to run."""
        batch = self.scheduler.schedule()
        if not batch.chunks:
            return False
        self.ledger.scheduled(batch, self.clock.now())
        self.runner.run(batch, lap)
        self.clock.ran(batch)
        emitted, finished = self.scheduler.advance(batch)
        self.ledger.advanced(batch, emitted, finished, self.clock.now())
        for sequence in finished:
            tokens = self.runner.remove(sequence)
            self.outputs[sequence.request_id] = tokens[sequence.prompt_tokens :]
        lap("host")
        return True

    def serve(
        self,
        arrivals: Iterable[tuple[Record, Row[int]]],
        on_step: Callable[[float], None] = lambda now_s: None,
    ) -> pd.DataFrame:
        """Serve requests as they arrive, in real time, to the last token; return their records.

        `arrivals` are in order of `arrival_s`, counted from the engine's clock. `on_step` is told
        the time after every iteration.
        """
        arriving = deque(arrivals)
        while arriving or not self.scheduler.idle:
            while arriving and arriving[0][0].arrival_s <= self.clock.now():
                self.submit(*arriving.popleft())
            if not self.step() and arriving:
                self.clock.wait_until(arriving[0][0].arrival_s)
            on_step(self.clock.now())
        return self.ledger.frame()
