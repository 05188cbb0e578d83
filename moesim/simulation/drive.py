"""A replica driven by its scheduler: what it does next, and what has become of it afterwards.

While every running sequence decodes and nobody can enter, the scheduler's next decisions are known:
the same batch again, until a sequence finishes, somebody arrives who could enter, or the free
blocks no longer hold the next token of each. Those iterations are one `Pass`. Decode attention is
linear in the summed context, so k iterations of n sequences last

    k * base + slope * n * k * (k - 1) / 2

Whoever drives has the clock: the next known arrival (`moesim.simulation.pressure`) or simpy
(`moesim.simulation.site`).
"""

from dataclasses import dataclass

import numpy as np

from moesim.cost.iteration import Cost
from moesim.serving.sequences import Batch, Sequence
from moesim.simulation.course import Course, Stream
from moesim.simulation.replica import Replica


@dataclass(frozen=True, slots=True)
class Pass:
    """The next iterations: `most` of a batch that does not change, or the one of `batch`."""

    base_s: float
    growth_s: float = 0.0
    most: int = 1
    batch: Batch | None = None

    def duration_s(self, iterations: int) -> float:
        """Return how long the first iterations last together."""
        return iterations * (self.base_s + self.growth_s * (iterations - 1) / 2)


class Drive:
    """A replica's scheduler at work on a stream, from wherever its course stands."""

    def __init__(self, replica: Replica, stream: Stream, course: Course) -> None:
        self.replica = replica
        self.stream = stream
        self.course = course
        self.scheduler = replica.scheduler()
        self.scheduler.running = course.running
        self._rows: list[tuple[float, ...]] = []

    def submit(self, index: int) -> None:
        """Queue a request of the stream."""
        self.scheduler.submit(self.stream.sequence(index))

    @property
    def takes_arrivals(self) -> bool:
        """Whether it matters at once that somebody arrives, before the batch changes by itself."""
        scheduler, limits = self.scheduler, self.scheduler.limits
        if scheduler.waiting.reorders:
            return True  # the order of service takes note of when somebody arrived
        if limits.policy.admission == "idle" or len(scheduler.running) >= limits.max_num_seqs:
            return False
        return scheduler.waiting.overtakes or not scheduler.waiting

    @property
    def cost(self) -> Cost:
        """What iterations cost now."""
        return self.course.cost or self.replica.cost

    def plan(self) -> Pass:
        """Return what the replica does next; something must run or wait."""
        return self._same_again() or self._one()

    def priced(self, step: Pass) -> Pass:
        """Return a step that has not begun at what it costs now."""
        if step.batch is not None:
            return Pass(self._iteration_s(step.batch), batch=step.batch)
        return self._repeating(step.most)

    def finish(self, step: Pass, iterations: int, now_s: float) -> list[Sequence]:
        """Account for iterations of a pass that ran until `now_s`; return who finished."""
        course, start_s = self.course, self.course.now_s
        course.now_s = now_s
        course.busy_s += now_s - start_s
        course.iterations += iterations
        course.peak_running = max(course.peak_running, len(self.scheduler.running))
        if course.ran is not None:
            batch = step.batch
            tokens = batch.tokens if batch else len(self.scheduler.running)
            course.ran(start_s, tokens, iterations)
        if step.batch is None:
            finished = self._repeated(step, iterations, start_s)
        else:
            finished = self._ran(step.batch, step.base_s, start_s)
        for sequence in finished:
            self._close(sequence)
        return finished

    def leave(self) -> None:
        """Hand over the running sequences and the log."""
        self.course.running = self.scheduler.running
        for sequence in self.scheduler.running:
            self._note(sequence)
        if self._rows:
            self.course.runs.append(np.array(self._rows).T)
            self._rows = []

    def _one(self) -> Pass:
        batch = self.scheduler.schedule()
        stream, now_s = self.stream, self.course.now_s
        for chunk in batch.chunks:
            sequence = chunk.sequence
            if chunk.context == sequence.cached_tokens and not sequence.preemptions:
                stream.scheduled_s[sequence.request_id] = now_s
        return Pass(self._iteration_s(batch), batch=batch)

    def _iteration_s(self, batch: Batch) -> float:
        return self.replica.iteration_s(batch, self.course.cost)

    def _same_again(self) -> Pass | None:
        """Return the pass of as many equal iterations as are foreseen, None unless all decode."""
        scheduler = self.scheduler
        running = scheduler.running
        if self._somebody_enters() or len(running) > scheduler.limits.max_batched_tokens:
            return None
        for sequence in running:
            if not sequence.decodes:
                return None
        most = min([s.output_tokens - s.generated for s in running], default=0)
        most = self._most_before_blocks_run_out(most)
        return self._repeating(most) if most else None

    def _repeating(self, most: int) -> Pass:
        """Return the pass of `most` iterations in which all who run decode."""
        running, cost = self.scheduler.running, self.cost
        count = len(running)
        context = sum([sequence.computed for sequence in running]) + count
        base_s = cost.but_prefill_attention_s(count, count, count, count, context)
        return Pass(base_s, count * cost.tables.lines[count][1], most)

    def _somebody_enters(self) -> bool:
        """Whether the scheduler would let somebody in, now or during the iterations to come."""
        scheduler = self.scheduler
        if not scheduler.waiting or len(scheduler.running) >= scheduler.limits.max_num_seqs:
            return False
        if scheduler.waiting.reorders:
            return True  # service changes who is next, so ask the scheduler every time
        apart = not scheduler.limits.policy.mixed and not scheduler.waiting.head().swapped
        growth = 0 if apart else self._growth(self._room(), 1)
        return scheduler.may_admit(scheduler.cache.free_blocks - growth)

    def _room(self) -> list[int]:
        """Return the tokens that each running sequence's blocks still hold."""
        size = self.scheduler.cache.block_size
        return [s.blocks * size - s.computed for s in self.scheduler.running]

    def _growth(self, room: list[int], iterations: int) -> int:
        """Return the blocks that sequences with so much room need for their next tokens."""
        size = self.scheduler.cache.block_size
        return sum([-((left - iterations) // size) for left in room if left < iterations])

    def _most_before_blocks_run_out(self, most: int) -> int:
        """Return how many of `most` iterations the free blocks last for."""
        room, free = self._room(), self.scheduler.cache.free_blocks
        if self._growth(room, most) <= free:
            return most
        fits, beyond = 0, most
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self._growth(room, middle) <= free:
                fits = middle
            else:
                beyond = middle
        return fits

    def _repeated(self, step: Pass, iterations: int, start_s: float) -> list[Sequence]:
        """Account for a batch of decodes that ran several times."""
        scheduler, course = self.scheduler, self.course
        running = scheduler.running
        count = len(running)
        self._log(step, iterations, start_s)
        course.batched_tokens += iterations * count
        context = sum([sequence.computed for sequence in running])
        self.replica.cost.asked.include(context=context + count * iterations)
        for sequence in running:
            sequence.computed += iterations
            sequence.generated += iterations
            sequence.last_token_s = course.now_s
            blocks = scheduler.cache.blocks_for(sequence.computed)
            if blocks > sequence.blocks:
                scheduler.cache.resize(sequence.blocks, blocks)
                sequence.blocks = blocks
            scheduler.waiting.served(sequence, iterations)
        return scheduler.retire()

    def _log(self, step: Pass, iterations: int, start_s: float) -> None:
        """Log decodes that ran several times; who was passed over before has one late gap first."""
        running, cached = self.scheduler.running, self.scheduler.cached_tokens()
        count, first_s, growth_s = len(running), step.base_s, step.growth_s
        waited = [sequence for sequence in running if sequence.last_token_s != start_s]
        if waited:
            until_s = start_s + first_s
            self.course.late.extend([(s.request_id, s.last_token_s, until_s) for s in waited])
            self._rows.append((start_s, first_s, 0.0, 1, count - len(waited), count, cached))
            start_s, first_s = until_s, first_s + growth_s
            iterations, cached = iterations - 1, cached + count
        if iterations:
            self._rows.append((start_s, first_s, growth_s, iterations, count, count, cached))

    def _ran(self, batch: Batch, duration_s: float, start_s: float) -> list[Sequence]:
        """Account for one iteration that the scheduler put together."""
        course, stream = self.course, self.stream
        tokens = batch.tokens
        if batch.swapped_blocks:
            copied_s = batch.swapped_blocks * self.replica.swap_block_s
            course.copies.append((start_s, copied_s, batch.swapped_blocks))
        emitted, finished = self.scheduler.advance(batch)
        regular = 0
        for sequence in emitted:
            if sequence.generated == 1:
                stream.first_token_s[sequence.request_id] = course.now_s
            elif sequence.last_token_s == start_s:
                regular += 1
            else:
                gap = (sequence.request_id, sequence.last_token_s, course.now_s)
                course.late.append(gap)
            sequence.last_token_s = course.now_s
        self._rows.append((start_s, duration_s, 0.0, 1, regular, tokens, batch.cached_tokens))
        course.batched_tokens += tokens
        return finished

    def _close(self, sequence: Sequence) -> None:
        self.stream.finish_s[sequence.request_id] = self.course.now_s
        self._note(sequence)

    def _note(self, sequence: Sequence) -> None:
        if sequence.preemptions:
            self.stream.preemptions[sequence.request_id] = sequence.preemptions
        if sequence.swaps:
            self.stream.swaps[sequence.request_id] = sequence.swaps
        if sequence.cached_tokens:
            self.stream.cached_tokens[sequence.request_id] = sequence.cached_tokens
