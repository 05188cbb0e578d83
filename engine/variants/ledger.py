"""Records that say what each request waited for: absent experts, and changes of variant."""

from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, fields
from typing import Any, NamedTuple

import pandas as pd

from moesim.serving.records import Ledger, Record
from moesim.serving.sequences import Batch, Sequence


@dataclass(slots=True, kw_only=True)
class VariantRecord(Record):
    """A record that also has how long absent experts were waited for, and reconfigurations.

    Those of its variant count that began while the request was there.
    """

    expert_wait_s: float = 0.0
    reconfigurations: int = 0
    reconfiguration_s: float = 0.0


class Tally(NamedTuple):
    """How often something happened so far, and how long it took together [s]."""

    times: int = 0
    seconds: float = 0.0

    def plus(self, other: "Tally") -> "Tally":
        """Return both together."""
        return Tally(self.times + other.times, self.seconds + other.seconds)

    def since(self, before: "Tally") -> "Tally":
        """Return what has been added."""
        return Tally(self.times - before.times, self.seconds - before.seconds)


class WaitLedger(Ledger):
    """A ledger of one variant whose records end as `VariantRecord`.

    `missed` is told by the store, whoever is served. As in the simulator, a request waits for the
    misses of every iteration of its variant from the one that it entered in to the one that
    finished it, whoever needed them.
    """

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.missed: Callable[[], Tally] = Tally
        self._before = Tally()
        # Of this variant so far, and as they were when each request entered or came.
        self._misses, self._loads = Tally(), Tally()
        self._entered: dict[int, Tally] = {}
        self._came: dict[int, Tally] = {}

    def open(self, record: Record) -> None:
        """Enter a request that has arrived."""
        super().open(record)
        self._came[record.request_id] = self._loads

    def refuse(self, request_id: int, reason: str) -> None:
        """Close a request that can never be served."""
        super().refuse(request_id, reason)
        del self._came[request_id]

    def reconfigured(self, seconds: float) -> None:
        """Note that the variant has been loaded."""
        self._loads = self._loads.plus(Tally(1, seconds))

    def scheduled(self, batch: Batch, now: float) -> None:
        """Stamp the requests of an iteration that begins at `now`."""
        super().scheduled(batch, now)
        self._before = self.missed()
        for chunk in batch.chunks:
            self._entered.setdefault(chunk.sequence.request_id, self._misses)

    def advanced(
        self,
        batch: Batch,
        emitted: Iterable[Sequence],
        finished: Iterable[Sequence],
        now: float,
    ) -> None:
        """Stamp the tokens of an iteration that ended at `now`."""
        self._misses = self._misses.plus(self.missed().since(self._before))
        super().advanced(batch, emitted, finished, now)
        for sequence in finished:
            self.ended(sequence.request_id)

    def ended(self, request_id: int) -> None:
        """Note what a request has waited for, which ends here."""
        record = self.records[request_id]
        waited = self._misses.since(self._entered.pop(request_id, self._misses))
        loads = self._loads.since(self._came.pop(request_id))
        record.expert_misses = waited.times
        self.records[request_id] = VariantRecord(
            **asdict(record),
            expert_wait_s=waited.seconds,
            reconfigurations=loads.times,
            reconfiguration_s=loads.seconds,
        )


def variants_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a record table with every column of `VariantRecord`, in its order."""
    columns = [field.name for field in fields(VariantRecord)]
    whole = (
        record if isinstance(record, VariantRecord) else VariantRecord(**asdict(record))
        for record in records
    )
    return pd.DataFrame([asdict(record) for record in whole], columns=columns)
