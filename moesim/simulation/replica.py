"""A replica: the shared scheduler, driven by durations from the cost model instead of tensors."""

from collections import deque
from collections.abc import Generator, Iterable
from dataclasses import dataclass

import simpy

from moesim.cost.iteration import CostModel
from moesim.requests import Request
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import Ledger, Record
from moesim.serving.scheduling import Limits, Scheduler, Sequence, refusal


@dataclass(slots=True)
class Usage:
    """What a replica did over a run."""

    replica: str
    iterations: int = 0
    busy_s: float = 0.0
    batched_tokens: int = 0
    peak_running: int = 0
    peak_kv_blocks: int = 0
    kv_blocks: int = 0


class Replica:
    """One model on one slice; serves its requests in order of arrival until none is left.

    The requests of an open-loop stream are known beforehand, so the process looks ahead for the
    next arrival itself; simpy carries its iterations and its waiting.
    """

    def __init__(
        self,
        env: simpy.Environment,
        name: str,
        requests: Iterable[Request],
        *,
        limits: Limits,
        cache: KvCache,
        cost: CostModel,
    ) -> None:
        self.ledger = Ledger()
        self.cost = cost
        self.usage = Usage(name, kv_blocks=cache.num_blocks)
        self._env = env
        self._limits = limits
        self._cache = cache
        self._scheduler = Scheduler(limits, cache)
        self._arriving = deque(requests)
        env.process(self._serve())

    def _serve(self) -> Generator[simpy.Event, None, None]:
        while True:
            self._receive()
            if self._scheduler.idle:
                if not self._arriving:
                    return
                yield self._env.timeout(max(0.0, self._arriving[0].arrival_s - self._env.now))
                continue
            yield from self._iterate()

    def _receive(self) -> None:
        while self._arriving and self._arriving[0].arrival_s <= self._env.now:
            request = self._arriving.popleft()
            self.ledger.open(record_of(request, self.usage.replica))
            reason = refusal(
                request.prompt_tokens, request.output_tokens, self._limits, self._cache
            )
            if reason:
                self.ledger.refuse(request.request_id, reason)
            else:
                self._scheduler.submit(sequence_of(request))

    def _iterate(self) -> Generator[simpy.Event, None, None]:
        batch = self._scheduler.schedule()
        self.ledger.scheduled(batch, self._env.now)
        duration_s = self.cost.iteration_s(batch)
        self._account(batch.tokens, duration_s)
        yield self._env.timeout(duration_s)
        emitted, finished = self._scheduler.advance(batch)
        self.ledger.advanced(emitted, finished, self._env.now)

    def _account(self, tokens: int, duration_s: float) -> None:
        usage = self.usage
        usage.iterations += 1
        usage.busy_s += duration_s
        usage.batched_tokens += tokens
        usage.peak_running = max(usage.peak_running, len(self._scheduler.running))
        used = self._cache.num_blocks - self._cache.free_blocks
        usage.peak_kv_blocks = max(usage.peak_kv_blocks, used)


def record_of(request: Request, replica: str) -> Record:
    """Open the record of a request that reaches a replica."""
    return Record(
        request_id=request.request_id,
        tenant=request.tenant,
        model=request.model,
        replica=replica,
        arrival_s=request.arrival_s,
        prompt_tokens=request.prompt_tokens,
        output_tokens=request.output_tokens,
    )


def sequence_of(request: Request) -> Sequence:
    """Return the scheduler's view of a request."""
    return Sequence(request.request_id, request.prompt_tokens, request.output_tokens)
