"""The thread that owns an engine: orders come in through a queue, tokens go out to the event loop.

Nobody else touches the engine while the thread lives. Per iteration there is one wake-up of the
loop, however many tokens were generated.
"""

import asyncio
import sys
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Row
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Thread

import torch

from engine.model.allocation import shortage
from engine.serve.engine import Engine
from engine.serve.sampling import Logprob, Sampling, SpoiledError
from engine.server.account import Account
from engine.server.errors import ApiError, broken, exhausted
from engine.server.metrics import GAUGES, Metrics, Reading
from engine.server.transcript import Transcript, Written
from moesim.serving.records import Record


@dataclass(frozen=True, slots=True)
class Piece:
    """One generated token on its way to the client; `index` says to which prompt it belongs."""

    index: int
    token: int
    logprob: Logprob | None
    written: Written


Letters = asyncio.Queue[Piece | Exception]
"""Where a client's tokens arrive, or why there are no more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A prompt to answer, and where the answer goes."""

    index: int
    record: Record
    prompt: list[int]
    sampling: Sampling
    transcript: Transcript
    letters: Letters

    @property
    def request_id(self) -> int:
        """The id of the request in the engine."""
        return self.record.request_id


@dataclass(frozen=True, slots=True)
class _Cancel:
    request_id: int


@dataclass(frozen=True, slots=True)
class _Stop:
    pass


Order = Job | _Cancel | _Stop
"""What the event loop asks of a worker."""


class Worker:
    """Runs an engine in a thread of its own.

    `submit` and `cancel` are called from the event loop. Should the device run out of memory, the
    answers that run end with an error and the worker goes on; not so where the engine is not
    `alone`, as other ranks are in the middle of the same iteration. Answers whose logits are no
    numbers end alone. Should the engine fail in any other way, all open answers end with an error,
    and so does every later one.
    """

    def __init__(
        self, name: str, engine: Engine, account: Account, metrics: Metrics, *, alone: bool = True
    ) -> None:
        self.name = name
        self.engine = engine
        self.failed = False
        self._account = account
        self._metrics = metrics
        self._alone = alone
        self._orders: SimpleQueue[Order] = SimpleQueue()
        self._jobs: dict[int, Job] = {}
        self._sent: list[tuple[Job, Piece]] = []
        self._thread = Thread(target=self._run, name=f"engine {name}", daemon=True)
        self._loop: asyncio.AbstractEventLoop

    def start(self) -> None:
        """Start the thread; answers go to the event loop that runs now."""
        self._loop = asyncio.get_running_loop()
        self._thread.start()

    def submit(self, job: Job) -> None:
        """Hand over a prompt that the engine has nothing against."""
        if self.failed:
            raise self._failure()
        self._orders.put(job)

    def cancel(self, request_id: int) -> None:
        """Let go of a request; one that has ended by then is gone already."""
        self._orders.put(_Cancel(request_id))

    async def stop(self) -> None:
        """End the thread after its current iteration; what is still open is cancelled."""
        self._orders.put(_Stop())
        await asyncio.to_thread(self._thread.join)

    def reading(self) -> Reading:
        """Return the metrics of now."""
        scheduler = self.engine.scheduler
        waiting = len(scheduler.waiting) + self._orders.qsize()
        used = 1 - scheduler.cache.free_blocks / scheduler.cache.num_blocks
        values = (len(scheduler.running), waiting, used)
        gauges = dict(zip(GAUGES, values, strict=True))
        return Reading(model=self.name, metrics=self._metrics, gauges=gauges)

    def _run(self) -> None:
        try:
            while self._take_in():
                self._step()
                self._deliver()
        except BaseException:
            if self._loop.is_closed():
                return  # the process was told twice to end: nobody is there any more
            # Whatever it is, clients must not wait for a thread that is gone. The thread's own
            # hook prints the traceback.
            self._loop.call_soon_threadsafe(self._fail)
            raise

    def _step(self) -> None:
        """Run an iteration; where memory runs out, drop who runs and go on with who waits."""
        try:
            self.engine.step()
        except SpoiledError as wrong:
            self._drop(wrong.requests, str(wrong), broken)
        except RuntimeError as wrong:
            why = shortage(wrong, self.engine.runner.model.device)
            if why is None or not self._alone:
                raise
            self._shed(f"out of device memory: an iteration {why}")
            torch.cuda.empty_cache()

    def _shed(self, why: str) -> None:
        """End what runs with an error; who waits has nothing on the device yet."""
        running = [sequence.request_id for sequence in self.engine.scheduler.running]
        self._drop(running, why, exhausted)

    def _drop(self, requests: Row[int], why: str, error: Callable[[str], ApiError]) -> None:
        """End requests that run with an error."""
        for request_id in requests:
            job = self._jobs[request_id]
            self._cancel(request_id, why)
            self._loop.call_soon_threadsafe(job.letters.put_nowait, error(why))
        print(
            f"warning: model {self.name!r}: {why}; {len(requests)} requests that ran are dropped",
            file=sys.stderr,
            flush=True,
        )

    def _take_in(self) -> bool:
        """Follow all orders, waiting for one if there is nothing to do; False to stop."""
        for order in self._pending():
            match order:
                case Job():
                    self._begin(order)
                case _Cancel():
                    self._cancel(order.request_id)
                case _Stop():
                    for request_id in list(self._jobs):
                        self._cancel(request_id)
                    return False
        return True

    def _pending(self) -> Iterator[Order]:
        """Yield the orders there are, at least one while the engine is idle."""
        while True:
            try:
                yield self._orders.get(block=self.engine.scheduler.idle)
            except Empty:
                return

    def _begin(self, job: Job) -> None:
        def reader(token: int, logprob: Logprob | None) -> bool:
            written = job.transcript.add(token)
            piece = Piece(job.index, token, logprob, written)
            self._sent.append((job, piece))
            return written.finish is not None

        self._jobs[job.request_id] = job
        self.engine.submit(job.record, job.prompt, sampling=job.sampling, reader=reader)

    def _cancel(self, request_id: int, why: str = "cancelled") -> None:
        if self.engine.cancel(request_id):
            self.engine.ledger.records[request_id].detail = why
            self._close(request_id, "abort")

    def _close(self, request_id: int, why: str) -> None:
        del self._jobs[request_id]
        self.engine.outputs.pop(request_id, None)
        self._account.close(request_id)
        self._metrics.ended(why)

    def _deliver(self) -> None:
        """Send an iteration's tokens to the event loop, close what has ended."""
        sent, self._sent = self._sent, []
        for job, piece in sent:
            if piece.written.finish:
                self._close(job.request_id, piece.written.finish)
        if sent:
            self._loop.call_soon_threadsafe(_post, sent)

    def _fail(self) -> None:
        """End every open answer with an error; runs on the event loop, as `submit` does."""
        self.failed = True
        while not self._orders.empty():
            order = self._orders.get()
            if isinstance(order, Job):
                self._jobs[order.request_id] = order
        for job in self._jobs.values():
            job.letters.put_nowait(self._failure())

    def _failure(self) -> ApiError:
        return broken(f"the engine of model {self.name!r} has failed; the server's log says why")


def _post(sent: list[tuple[Job, Piece]]) -> None:
    for job, piece in sent:
        job.letters.put_nowait(piece)
