"""A brute-force world: few rules, iteration by iteration, so that every token's time is known."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
import pytest

from moesim.serving.iterations import Iterations, iterations_of
from moesim.serving.records import COMPLETED, Record, records_frame

BASE_S, PER_TOKEN_S, PER_CACHED_S = 0.01, 0.002, 1e-5
MOST_RUNNING, BUDGET, CACHE = 4, 6, 40


@dataclass
class World:
    """A served stream: its records, its log, and when each request got each of its tokens."""

    records: pd.DataFrame
    log: Iterations
    tokens_s: dict[int, list[float]]

    def gaps(self, requests: Iterable[int]) -> list[float]:
        """Return every gap of some requests, one by one."""
        return [gap for request in requests for gap in np.diff(self.tokens_s[request]).tolist()]


@dataclass
class _Answer:
    record: Record
    computed: int = 0
    tokens_s: list[float] = field(default_factory=list)

    @property
    def pending(self) -> int:
        return self.record.prompt_tokens + len(self.tokens_s) - self.computed


@dataclass
class _Server:
    """Runs 4 sequences with 6 tokens an iteration and 40 in the cache, the oldest first.

    An iteration lasts 10 ms, 2 ms a token and 10 us a token of context. Consecutive decodes of one
    batch are one row of the log.
    """

    arriving: list[_Answer]
    now: float = 0.0
    waiting: list[_Answer] = field(default_factory=list)
    running: list[_Answer] = field(default_factory=list)
    runs: list[list[float]] = field(default_factory=list)
    late: list[tuple[int, float, float]] = field(default_factory=list)
    before: list[_Answer] = field(default_factory=list)

    def serve(self) -> None:
        while self.arriving or self.waiting or self.running:
            if not (self.waiting or self.running):
                self.now = max(self.now, self.arriving[0].record.arrival_s)
                self.before = []
            while self.arriving and self.arriving[0].record.arrival_s <= self.now:
                self.waiting.append(self.arriving.pop(0))
            self._iterate(self._batch())

    def _batch(self) -> list[tuple[_Answer, int]]:
        while sum(answer.computed + answer.pending for answer in self.running) > CACHE:
            victim = self.running.pop()
            victim.computed = 0
            victim.record.preemptions += 1
            self.waiting.insert(0, victim)
        held = sum(answer.computed + answer.pending for answer in self.running)
        while self.waiting and len(self.running) < MOST_RUNNING:
            held += self.waiting[0].pending
            if held > CACHE:
                break
            self.running.append(self.waiting.pop(0))
        batch, budget = [], BUDGET
        for answer in self.running:
            batch.append((answer, min(answer.pending, budget)))
            budget -= batch[-1][1]
        return [(answer, tokens) for answer, tokens in batch if tokens]

    def _iterate(self, batch: list[tuple[_Answer, int]]) -> None:
        context = sum(answer.computed for answer in self.running)
        total = sum(tokens for _, tokens in batch)
        start, duration = self.now, BASE_S + PER_TOKEN_S * total + PER_CACHED_S * context
        self.now += duration
        regular = [answer for answer, tokens in batch if self._advance(answer, tokens, start)]
        if regular == self.before and total == len(regular):
            self.runs[-1][3] += 1
        else:
            growth = PER_CACHED_S * total
            self.runs.append([start, duration, growth, 1, len(regular), total, context])
        unchanged = total == len(regular) and all(answer in self.running for answer in regular)
        self.before = regular if unchanged else []

    def _advance(self, answer: _Answer, tokens: int, start: float) -> bool:
        """Say whether the request got a token that follows its last one at once."""
        record = answer.record
        if record.scheduled_s != record.scheduled_s:
            record.scheduled_s = start
        answer.computed += tokens
        if answer.pending:
            return False
        regular = start in answer.tokens_s[-1:]
        if not answer.tokens_s:
            record.first_token_s = self.now
        elif not regular:
            self.late.append((record.request_id, answer.tokens_s[-1], self.now))
        answer.tokens_s.append(self.now)
        if len(answer.tokens_s) == record.output_tokens:
            record.finish_s, record.outcome = self.now, COMPLETED
            self.running.remove(answer)
        return regular


def _answer(number: int, arrival: float, prompt: int, output: int) -> _Answer:
    record = Record(request_id=number, tenant="ab"[number % 2], replica="m/0", arrival_s=arrival)
    record.prompt_tokens, record.output_tokens = prompt, output
    return _Answer(record)


@pytest.fixture(scope="session")
def serve() -> Callable[[Sequence[tuple[float, int, int]]], World]:
    """Serve rows of `(arrival, prompt, output)`, even ones of tenant a and odd ones of b."""

    def served(rows: Sequence[tuple[float, int, int]]) -> World:
        answers = [_answer(number, *row) for number, row in enumerate(rows)]
        server = _Server(sorted(answers, key=lambda answer: answer.record.arrival_s))
        server.serve()
        return World(
            records=records_frame(answer.record for answer in answers),
            log=iterations_of([tuple(run) for run in server.runs], server.late),
            tokens_s={answer.record.request_id: answer.tokens_s for answer in answers},
        )

    return served
