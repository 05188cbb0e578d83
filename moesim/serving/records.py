"""Records: one flat row per request, the same columns from simulator, engine and real servers."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import pandas as pd

from moesim.errors import ScenarioError
from moesim.files import atomic_path
from moesim.serving.iterations import Iterations, iterations_of
from moesim.serving.sequences import Batch, Sequence

COMPLETED = "completed"
REFUSED = "refused"
UNFINISHED = "unfinished"


@dataclass(slots=True, kw_only=True)
class Record:
    """What happened to one request; times in seconds from the start of the run, NaN if never."""

    request_id: int
    tenant: str = ""
    model: str = ""
    replica: str = ""
    arrival_s: float = 0.0
    scheduled_s: float = float("nan")
    first_token_s: float = float("nan")
    finish_s: float = float("nan")
    prompt_tokens: int = 0
    output_tokens: int = 0
    preemptions: int = 0
    cached_tokens: int = 0
    swaps: int = 0
    expert_misses: int = 0
    outcome: str = UNFINISHED
    detail: str = ""


COLUMNS = tuple(field.name for field in fields(Record))
TEXTS = ("tenant", "model", "replica", "outcome", "detail")


class Ledger:
    """Stamps records and logs iterations as they begin and end; engine and simulator both use it.

    An iteration that follows another without a pause is taken to begin where that one ended, so
    that a gap between tokens is an iteration's duration.
    """

    def __init__(self) -> None:
        self.records: dict[int, Record] = {}
        self._runs: list[tuple[float, ...]] = []
        self._late: list[tuple[int, float, float]] = []
        self._begun_s = self._ended_s = float("nan")

    def open(self, record: Record) -> None:
        """Enter a request that has arrived."""
        self.records[record.request_id] = record

    def refuse(self, request_id: int, reason: str) -> None:
        """Close a request that can never be served."""
        record = self.records[request_id]
        record.outcome, record.detail = REFUSED, reason

    def scheduled(self, batch: Batch, now: float) -> None:
        """Stamp the requests of an iteration that begins at `now`."""
        goes_on = any(chunk.sequence.last_token_s == self._ended_s for chunk in batch.chunks)
        self._begun_s = self._ended_s if goes_on else now
        for chunk in batch.chunks:
            record = self.records[chunk.sequence.request_id]
            if record.scheduled_s != record.scheduled_s:
                record.scheduled_s = now
                record.cached_tokens = chunk.context

    def paused(self) -> None:
        """Note that the device turns to something else: the next iteration follows no other."""
        self._ended_s = float("nan")

    def advanced(
        self,
        batch: Batch,
        emitted: Iterable[Sequence],
        finished: Iterable[Sequence],
        now: float,
    ) -> None:
        """Stamp the tokens of an iteration that ended at `now`."""
        regular = 0
        for sequence in emitted:
            if sequence.generated == 1:
                self.records[sequence.request_id].first_token_s = now
            elif sequence.last_token_s == self._begun_s:
                regular += 1
            else:
                self._late.append((sequence.request_id, sequence.last_token_s, now))
            sequence.last_token_s = now
        for sequence in finished:
            record = self.records[sequence.request_id]
            record.finish_s = now
            record.preemptions = sequence.preemptions
            record.swaps = sequence.swaps
            record.outcome = COMPLETED
        self._log(batch, regular, now)

    def _log(self, batch: Batch, regular: int, now: float) -> None:
        duration_s = now - self._begun_s
        row = (self._begun_s, duration_s, 0.0, 1, regular, batch.tokens, batch.cached_tokens)
        self._runs.append(row)
        self._ended_s = now

    def log(self) -> Iterations:
        """Return the log of all iterations."""
        return iterations_of(self._runs, self._late)

    def frame(self) -> pd.DataFrame:
        """Return all records in order of request id."""
        return records_frame(self.records[key] for key in sorted(self.records))


def records_frame(records: Iterable[Record]) -> pd.DataFrame:
    """Return a record table with every column of `Record`, in its order."""
    return pd.DataFrame([asdict(record) for record in records], columns=list(COLUMNS))


_WRITERS: Mapping[str, Callable[[pd.DataFrame, Path], None]] = {
    ".parquet": lambda frame, path: frame.to_parquet(path, index=False),
    ".csv": lambda frame, path: frame.to_csv(path, index=False),
}


def write_records(frame: pd.DataFrame, path: Path) -> None:
    """Write a record table as `.parquet` or `.csv`; the file appears whole or not at all."""
    writer = _WRITERS.get(path.suffix)
    if writer is None:
        raise ScenarioError(f"{path}: records are written as .parquet or .csv")
    with atomic_path(path) as draft:
        writer(frame, draft)


def _read_csv(path: Path) -> pd.DataFrame:
    # A tenant may be called NA; only a missing time is a missing value.
    times = {name: [""] for name in COLUMNS if name.endswith("_s")}
    return pd.read_csv(
        path, keep_default_na=False, na_values=times, dtype=dict.fromkeys(TEXTS, str)
    )


_READERS: Mapping[str, Callable[[Path], pd.DataFrame]] = {".parquet": pd.read_parquet}


def read_records(path: Path) -> pd.DataFrame:
    """Read a record table; ScenarioError where a column is missing."""
    try:
        frame = _READERS.get(path.suffix, _read_csv)(path)
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such record table") from None
    except (OSError, ValueError) as wrong:
        raise ScenarioError(f"{path}: not a record table ({wrong})") from None
    if "cached_tokens" not in frame:
        frame["cached_tokens"] = 0  # tables written before prompts could share blocks
    missing = [name for name in COLUMNS if name not in frame]
    if missing:
        raise ScenarioError(f"{path}: not a record table, column {missing[0]!r} is missing")
    return frame
