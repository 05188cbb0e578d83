"""Variants behind HTTP: a worker each for its orders and answers, one thread that runs them all."""

import asyncio
from collections.abc import Iterator, Mapping
from queue import Empty
from threading import Event, Thread

import torch

from engine.model.allocation import shortage
from engine.serve.sampling import SpoiledError
from engine.server.account import Account
from engine.server.errors import broken
from engine.server.metrics import Metrics
from engine.server.worker import Job, Order, Worker
from engine.variants.ledger import WaitLedger
from engine.variants.seat import Seat
from engine.variants.serving import VariantsEngine

RECONFIGURATIONS = "moesim:reconfigurations_total"
HITS, MISSES = "moesim:expert_hits_total", "moesim:expert_misses_total"


class VariantAccount(WaitLedger, Account):
    """The server's ledger of one variant."""


class VariantWorker(Worker):
    """A worker whose engine has the device in turns: its orders wake the thread of all."""

    def __init__(
        self, name: str, seat: Seat, account: Account, metrics: Metrics, conductor: "Conductor"
    ) -> None:
        super().__init__(name, seat, account, metrics)
        self._conductor = conductor

    def start(self) -> None:
        """Answer to the event loop that runs now; the first to be started starts the thread."""
        self._loop = asyncio.get_running_loop()
        self._conductor.start()

    def submit(self, job: Job) -> None:
        """Hand over a prompt that the engine has nothing against."""
        super().submit(job)
        self._conductor.wake()

    def cancel(self, request_id: int) -> None:
        """Let go of a request; one that has ended by then is gone already."""
        super().cancel(request_id)
        self._conductor.wake()

    async def stop(self) -> None:
        """End the thread of all variants after its current iteration."""
        self._conductor.stop()
        await asyncio.to_thread(self._conductor.thread.join)

    def take_in(self) -> None:
        """Follow all orders."""
        self._take_in()

    def deliver(self) -> None:
        """Send an iteration's tokens to the event loop, close what has ended."""
        self._deliver()

    def shed(self, why: str) -> None:
        """End what runs with an error: the device's memory has run out."""
        self._shed(f"out of device memory: an iteration {why}")

    def drop(self, wrong: SpoiledError) -> None:
        """End the requests with an error from whose logits no token can be chosen."""
        self._drop(wrong.requests, str(wrong), broken)

    def let_go(self) -> None:
        """Cancel everything: there is no more time."""
        for request_id in list(self._jobs):
            self._cancel(request_id)

    def fail(self) -> None:
        """End every open answer with an error, unless nobody is there any more."""
        if not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._fail)

    def tally(self, counts: Mapping[str, int]) -> None:
        """Add to the variant's counters."""
        with self._metrics.together():
            for name, amount in counts.items():
                self._metrics.count(name, amount)

    def _pending(self) -> Iterator[Order]:
        """Yield the orders there are; it is the conductor that waits for some."""
        while True:
            try:
                yield self._orders.get_nowait()
            except Empty:
                return


class Conductor:
    """The thread that runs the variants' iterations, whoever's turn it is."""

    def __init__(self, engine: VariantsEngine) -> None:
        self.engine = engine
        self.workers: dict[str, VariantWorker] = {}
        self.thread = Thread(target=self._run, name="engine of variants", daemon=True)
        self._stopped = False
        self._ordered = Event()

    def start(self) -> None:
        """Start the thread, if it has not been."""
        if self.thread.ident is None:
            self.thread.start()

    def wake(self) -> None:
        """Have the orders looked at."""
        self._ordered.set()

    def stop(self) -> None:
        """End the thread after its current iteration; what is still open is cancelled."""
        self._stopped = True
        self.wake()

    def _run(self) -> None:
        try:
            while self._take_in():
                self._step()
                for worker in self.workers.values():
                    worker.deliver()
        except BaseException:
            # Clients must not wait for a thread that is gone; its own hook prints the traceback.
            for worker in self.workers.values():
                worker.fail()
            raise

    def _take_in(self) -> bool:
        """Follow all orders, waiting for one if there is nothing to do; False to stop."""
        if self.engine.idle:
            self._ordered.wait()
        self._ordered.clear()
        for worker in self.workers.values():
            worker.take_in()
            if self._stopped:
                worker.let_go()
        return not self._stopped

    def _step(self) -> None:
        """Run an iteration; where memory runs out, drop who runs and go on with who waits."""
        store = self.engine.family.store
        hit, missed = store.hit, store.missed
        try:
            self.engine.step()
        except SpoiledError as wrong:
            self.workers[self.engine.loaded].drop(wrong)
        except RuntimeError as wrong:
            why = shortage(wrong, next(iter(self.engine.family.decoders.values())).device)
            if why is None:
                raise
            self.workers[self.engine.loaded].shed(why)
            torch.cuda.empty_cache()
        loads = self.engine.loads[self.engine.loaded]
        counts = {
            RECONFIGURATIONS: len(loads),
            HITS: store.hit - hit,
            MISSES: store.missed - missed,
        }
        self.workers[self.engine.loaded].tally(counts)
        loads.clear()  # a server may run for months
