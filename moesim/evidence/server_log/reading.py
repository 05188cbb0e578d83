"""Reading a server's log as records.

The log is what vLLM keeps of each request (its `RequestStateStats`), one JSON object a line:

    request_id, input_toks, output_toks    what was asked
    arrival_time                           when the front end took it in, wall clock
    queued_ts, scheduled_ts,
    first_token_ts, last_token_ts          what the engine did, a clock of its own

`queued_ts` is no arrival: the engine looks into its mailbox between iterations only. So arrivals
are `arrival_time`, moved onto the engine's clock by the least delay that any request shows between
the two; TTFT and turnaround count from there, as a client's would but for that delay.
"""

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from moesim.errors import ScenarioError
from moesim.serving.kv_cache import KvCache
from moesim.serving.records import COMPLETED, Record, records_frame
from moesim.serving.scheduling import Limits, refusal

BLOCK_SIZE = 16
"""Tokens of a KV block, vLLM's default."""

AHEAD_SINCE = (0, 14)
"""vLLM schedules ahead by default since this version (its release notes)."""

MOST = 2**20
"""More tokens than this, or sequences at once, is a mistake."""

LATEST_S = 1e11
"""Clock times beyond this are in other units than seconds."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerLog:
    """What a server did: its requests in order of arrival, counted from the first, and its limits.

    `ahead` says whether it composes an iteration while the one before still runs. Of `kv_blocks`
    there are as many as the server had, or enough for any batch of these requests.
    """

    records: pd.DataFrame
    limits: Limits
    kv_blocks: int
    ahead: bool


class _Engine(BaseModel):
    model_config = ConfigDict(frozen=True)

    max_num_seqs: int = Field(gt=0, le=MOST)
    max_num_batched_tokens: int = Field(gt=0, le=MOST)
    max_model_len: int | None = Field(default=None, gt=0)
    async_scheduling: bool | None = None


class _Meta(BaseModel):
    model_config = ConfigDict(frozen=True)

    vllm_version: str = ""
    engine_kwargs: _Engine

    @property
    def ahead(self) -> bool:
        """Whether the engine scheduled ahead: as it was told, or as its version does."""
        if self.engine_kwargs.async_scheduling is not None:
            return self.engine_kwargs.async_scheduling
        parts = self.vllm_version.split(".")[:2]
        return (
            len(parts) == 2
            and all(map(str.isdecimal, parts))
            and (tuple(map(int, parts)) >= AHEAD_SINCE)
        )


class _Row(BaseModel):
    model_config = ConfigDict(frozen=True, strict=True, allow_inf_nan=False)

    input_toks: int = Field(gt=0, le=MOST)
    output_toks: int = Field(gt=0, le=MOST)
    arrival_time: float = Field(ge=0, le=LATEST_S)
    queued_ts: float = Field(ge=0, le=LATEST_S)
    scheduled_ts: float = Field(ge=0, le=LATEST_S)
    first_token_ts: float = Field(ge=0, le=LATEST_S)
    last_token_ts: float = Field(ge=0, le=LATEST_S)

    @property
    def in_order(self) -> bool:
        """Whether the engine's times follow each other."""
        return self.queued_ts <= self.scheduled_ts <= self.first_token_ts <= self.last_token_ts


def load_server_log(path: Path, meta: Path, kv_blocks: int | None = None) -> ServerLog:
    """Load a log (`.jsonl` or `.jsonl.gz`) and the description of the run (JSON) beside it.

    Without `kv_blocks` there are enough of them for any batch. ScenarioError names what is wrong.
    """
    run = _read_meta(meta)
    records = _records(list(_rows(path)))
    longest = int((records["prompt_tokens"] + records["output_tokens"]).max())
    limits = Limits(
        max_num_seqs=run.engine_kwargs.max_num_seqs,
        max_batched_tokens=run.engine_kwargs.max_num_batched_tokens,
        max_model_len=run.engine_kwargs.max_model_len or longest,
    )
    plenty = limits.max_num_seqs * -(-longest // BLOCK_SIZE)
    log = ServerLog(records=records, limits=limits, kv_blocks=kv_blocks or plenty, ahead=run.ahead)
    _check_limits(log, path)
    return log


def _check_limits(log: ServerLog, path: Path) -> None:
    """Raise ScenarioError for a request that a server of these limits would have refused."""
    cache = KvCache(log.kv_blocks, BLOCK_SIZE)
    lengths = zip(log.records["prompt_tokens"], log.records["output_tokens"], strict=True)
    for prompt, output in lengths:
        reason = refusal(prompt, output, log.limits, cache)
        if reason:
            raise ScenarioError(f"{path}: {reason}, yet it was served; correct the limits")


def _read_meta(path: Path) -> _Meta:
    try:
        return _Meta.model_validate(json.loads(_text(path)))
    except ValidationError as wrong:
        raise ScenarioError(f"{path}: {_first(wrong)}") from None
    except (ValueError, RecursionError) as wrong:
        raise ScenarioError(f"{path}: not a JSON description of a run ({wrong})") from None


def _rows(path: Path) -> Iterator[_Row]:
    empty = True
    for number, line in enumerate(_text(path).splitlines(), start=1):
        if line.strip():
            empty = False
            yield _row(line, f"{path}: line {number}")
    if empty:
        raise ScenarioError(f"{path}: no request in it; give a server's log, a request a line")


def _row(line: str, where: str) -> _Row:
    try:
        row = _Row.model_validate_json(line)
    except ValidationError as wrong:
        raise ScenarioError(f"{where}: {_first(wrong)}") from None
    if not row.in_order:
        raise ScenarioError(
            f"{where}: queued, scheduled, first and last token must follow each other"
        )
    return row


def _text(path: Path) -> str:
    try:
        raw = path.read_bytes()
        return (gzip.decompress(raw) if path.suffix == ".gz" else raw).decode()
    except FileNotFoundError:
        raise ScenarioError(f"{path}: no such file") from None
    except (OSError, EOFError, UnicodeDecodeError, zlib.error) as wrong:
        raise ScenarioError(f"{path}: not readable ({wrong})") from None


def _first(wrong: ValidationError) -> str:
    error = wrong.errors()[0]
    field = ".".join(map(str, error["loc"]))
    return f"{field + ': ' if field else ''}{error['msg']}"


def _records(rows: list[_Row]) -> pd.DataFrame:
    """Lay the log out as a record table, times counted from the first arrival."""
    delay_s = min(row.queued_ts - row.arrival_time for row in rows)
    rows = sorted(rows, key=lambda row: row.arrival_time)
    start_s = rows[0].arrival_time + delay_s
    return records_frame(
        Record(
            request_id=number,
            replica="server",
            arrival_s=row.arrival_time + delay_s - start_s,
            scheduled_s=row.scheduled_ts - start_s,
            first_token_s=row.first_token_ts - start_s,
            finish_s=row.last_token_ts - start_s,
            prompt_tokens=row.input_toks,
            output_tokens=row.output_toks,
            outcome=COMPLETED,
        )
        for number, row in enumerate(rows)
    )
