"""One variant's engine on a device that it has in turns with others."""

from collections.abc import Collection
from collections.abc import Sequence as Row

from engine.model.decoder import Decoder
from engine.model.stopwatch import Lap
from engine.serve.clock import Clock
from engine.serve.engine import Engine, EngineConfig, Reader
from engine.serve.sampling import Sampling
from engine.variants.ledger import WaitLedger
from moesim.serving.records import Record
from moesim.serving.turns import Standing


class Seat(Engine):
    """An engine that says how it stands; between its iterations others may have the device."""

    def __init__(
        self, model: Decoder, config: EngineConfig, clock: Clock, ledger: WaitLedger
    ) -> None:
        super().__init__(model, config, clock, ledger)
        self.waits = ledger
        # By request, in order of submission: when it arrived, and how urgent it is.
        self._unfinished: dict[int, tuple[float, int]] = {}

    def submit(
        self,
        record: Record,
        prompt: Row[int],
        names: Row[int] | None = None,
        *,
        sampling: Sampling | None = None,
        reader: Reader | None = None,
    ) -> bool:
        """Queue a request; False if it can never run, its record says why."""
        if not super().submit(record, prompt, names, sampling=sampling, reader=reader):
            return False
        urgency = self.config.priorities.get(record.tenant, 0)
        self._unfinished[record.request_id] = (record.arrival_s, urgency)
        return True

    def cancel(self, request_id: int) -> bool:
        """Drop a request between two iterations and free its blocks; False if it is not here."""
        if not super().cancel(request_id):
            return False
        del self._unfinished[request_id]
        self.waits.ended(request_id)
        return True

    def standing(self, *, urgent: bool, without: Collection[int] = ()) -> Standing:
        """Return how the variant stands; `urgent` is whether priorities go before turns."""
        unfinished = [one for key, one in self._unfinished.items() if key not in without]
        if not unfinished:
            return Standing()
        oldest_s = unfinished[0][0]
        urgency = min(level for _, level in unfinished) if urgent else 0
        return Standing(len(unfinished), oldest_s, urgency)

    def ending(self) -> set[int]:
        """Return who will finish in the next iteration, if all who run are in it.

        An end that the model chooses by itself is not foreseen.
        """
        return {
            sequence.request_id
            for sequence in self.scheduler.running
            if sequence.output_tokens - sequence.generated == 1
        }

    def iterate(self, lap: Lap) -> list[int]:
        """Run one iteration; return who finished."""
        finished = [sequence.request_id for sequence in self._iterate(lap) or ()]
        for request_id in finished:
            del self._unfinished[request_id]
        return finished

    def pause(self) -> None:
        """Note that another variant has the device now."""
        self.ledger.paused()
