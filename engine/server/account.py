"""The server's ledger: what the records say is what the metrics count."""

from collections.abc import Iterable

from engine.server.metrics import Metrics
from moesim.serving.records import Ledger, Record
from moesim.serving.sequences import Batch, Sequence


class Account(Ledger):
    """A ledger that forgets what has ended, so that a server may run for months.

    A record is here while its request is, and goes to `kept` afterwards where records are wanted.
    There is no log of iterations.
    """

    def __init__(self, metrics: Metrics, kept: list[Record] | None = None) -> None:
        super().__init__()
        self._metrics = metrics
        self._kept = kept

    def advanced(
        self,
        batch: Batch,
        emitted: Iterable[Sequence],
        finished: Iterable[Sequence],
        now: float,
    ) -> None:
        """Stamp the tokens of an iteration that ended at `now`, and count them."""
        last_s = [(sequence, sequence.last_token_s) for sequence in emitted]
        super().advanced(batch, (sequence for sequence, _ in last_s), finished, now)
        self._runs.clear()
        self._late.clear()
        with self._metrics.together():
            self._metrics.count("vllm:num_preemptions_total", len(batch.preempted))
            self._metrics.count("vllm:generation_tokens_total", len(last_s))
            for sequence, before_s in last_s:
                self._count_token(sequence, now, before_s)
            for sequence in finished:
                self._count_answer(self.records[sequence.request_id])

    def close(self, request_id: int) -> None:
        """Let go of a request that has ended."""
        record = self.records.pop(request_id)
        if self._kept is not None:
            self._kept.append(record)

    def _count_token(self, sequence: Sequence, now: float, before_s: float) -> None:
        if sequence.generated > 1:
            self._metrics.observe("vllm:inter_token_latency_seconds", now - before_s)
            return
        record = self.records[sequence.request_id]
        waited_s = record.scheduled_s - record.arrival_s
        self._metrics.count("vllm:prompt_tokens_total", record.prompt_tokens)
        self._metrics.observe("vllm:request_queue_time_seconds", waited_s)
        self._metrics.observe("vllm:time_to_first_token_seconds", now - record.arrival_s)

    def _count_answer(self, record: Record) -> None:
        lasted_s = record.finish_s - record.arrival_s
        self._metrics.observe("vllm:e2e_request_latency_seconds", lasted_s)
        if record.output_tokens > 1:
            mean_s = (record.finish_s - record.first_token_s) / (record.output_tokens - 1)
            self._metrics.observe("vllm:request_time_per_output_token_seconds", mean_s)
