"""Under pressure: blocks may run out, so the scheduler decides, as often as it must.

While every running sequence decodes and nobody can be admitted, its next decision is known: the
same batch again, until a sequence finishes, a request arrives that could be admitted, or the free
blocks no longer hold the next token of each. Those iterations are taken in one jump.
"""

from moesim.cost.iteration import CostModel
from moesim.serving.kv_cache import KvCache
from moesim.serving.scheduling import Limits, Scheduler, Sequence
from moesim.simulation.course import Course, Stream, iterations_until


class Pressed:
    """A replica's course, driven by the scheduler until the pressure is gone."""

    def __init__(
        self, stream: Stream, course: Course, limits: Limits, cache: KvCache, cost: CostModel
    ) -> None:
        self.stream = stream
        self.course = course
        self.limits = limits
        self.cache = cache
        self.cost = cost
        self.scheduler = Scheduler(limits, cache)
        self.scheduler.running = course.running
        self.arrived = course.admitted

    def run(self, *, stay: bool = False) -> bool:
        """Run until the stream is served (True), or the pressure is gone (False).

        `stay` keeps to the scheduler even when it is.
        """
        while self._receive():
            finished = self._jump()
            if finished is None:
                finished = self._iterate()
            if finished and not stay and self._relieved():
                self._hand_over()
                return False
        return True

    def _hand_over(self) -> None:
        """Leave the course where sums can take it up."""
        self.course.running = self.scheduler.running
        self.course.admitted = self.arrived - len(self.scheduler.waiting)
        for sequence in self.scheduler.running:
            if sequence.preemptions:
                self.stream.preemptions[sequence.request_id] = sequence.preemptions

    def _receive(self) -> bool:
        """Take in who has arrived, waiting for the next if idle; False if there is no next."""
        arrival_s, course = self.stream.arrival_s, self.course
        if self.scheduler.idle and arrival_s[self.arrived] > course.now_s:
            if self.arrived == len(self.stream):
                return False
            course.now_s = arrival_s[self.arrived]
        while arrival_s[self.arrived] <= course.now_s:
            self.scheduler.submit(self.stream.sequence(self.arrived))
            self.arrived += 1
        return True

    def _iterate(self) -> list[Sequence]:
        """Run one iteration as the scheduler has it; return who finished."""
        course, stream = self.course, self.stream
        batch = self.scheduler.schedule()
        for chunk in batch.chunks:
            sequence = chunk.sequence
            if chunk.context == 0 and not sequence.preemptions:
                stream.scheduled_s[sequence.request_id] = course.now_s
        self._pass(self.cost.iteration_s(batch), 1, batch.tokens)
        emitted, finished = self.scheduler.advance(batch)
        for sequence in emitted:
            if sequence.generated == 1:
                stream.first_token_s[sequence.request_id] = course.now_s
        return self._close(finished)

    def _jump(self) -> list[Sequence] | None:
        """Take the iterations until the batch changes in one; return who finished, None if few."""
        running = self.scheduler.running
        most = min((s.output_tokens - s.generated for s in running), default=0)
        if not most or not all(map(_decodes, running)) or self._admits():
            return None
        most = self._most_before_blocks_run_out(most)
        if most < 2:
            return None
        sequences = len(running)
        context = sum(sequence.computed for sequence in running) + sequences
        base_s = self.cost.but_prefill_attention_s(
            sequences, sequences, sequences, sequences, context
        )
        growth_s = sequences * self.cost.tables[3][sequences][1]
        arrival_s = self.stream.arrival_s[self.arrived] - self.course.now_s
        if not self.scheduler.waiting and sequences < self.limits.max_num_seqs:
            most = iterations_until(arrival_s, base_s, growth_s, most)
        self._pass(most * (base_s + growth_s * (most - 1) / 2), most, most * sequences)
        self.cost.asked.include(context=context + sequences * (most - 1))
        for sequence in running:
            sequence.computed += most
            sequence.generated += most
            blocks = self.cache.blocks_for(sequence.computed)
            self.cache.resize(sequence.blocks, blocks)
            sequence.blocks = blocks
        return self._close(self.scheduler.retire())

    def _admits(self) -> bool:
        """Whether the head of the queue would be admitted beside the running decodes."""
        scheduler, cache = self.scheduler, self.cache
        left = self.limits.max_batched_tokens - len(scheduler.running)
        if left < 0:
            return True  # not every decode gets its token: leave it to the scheduler
        if not (scheduler.waiting and left) or len(scheduler.running) >= self.limits.max_num_seqs:
            return False
        head = scheduler.waiting[0]
        return cache.blocks_for(min(head.pending, left)) <= cache.free_blocks - self._growth(1)

    def _growth(self, iterations: int) -> int:
        """Return the blocks that the running sequences need for their next tokens."""
        blocks_for = self.cache.blocks_for
        return sum(blocks_for(s.computed + iterations) - s.blocks for s in self.scheduler.running)

    def _most_before_blocks_run_out(self, most: int) -> int:
        """Return how many of `most` iterations the free blocks last for."""
        fits, beyond = 0, most + 1
        while beyond - fits > 1:
            middle = (fits + beyond) // 2
            if self._growth(middle) <= self.cache.free_blocks:
                fits = middle
            else:
                beyond = middle
        return fits

    def _pass(self, duration_s: float, iterations: int, tokens: int) -> None:
        course = self.course
        course.now_s += duration_s
        course.busy_s += duration_s
        course.iterations += iterations
        course.batched_tokens += tokens
        course.peak_running = max(course.peak_running, len(self.scheduler.running))

    def _close(self, finished: list[Sequence]) -> list[Sequence]:
        for sequence in finished:
            self.stream.finish_s[sequence.request_id] = self.course.now_s
            if sequence.preemptions:
                self.stream.preemptions[sequence.request_id] = sequence.preemptions
        return finished

    def _relieved(self) -> bool:
        """Whether sums would do again: only decodes and fresh prompts, and room for all of them."""
        running, waiting = self.scheduler.running, self.scheduler.waiting
        if waiting and waiting[0].preemptions:
            return False
        fresh = [sequence for sequence in running if not _decodes(sequence)]
        if any(sequence.generated for sequence in fresh):
            return False
        need = self.stream.blocks
        promised = sum(need[sequence.request_id] for sequence in running)
        head = need[waiting[0].request_id] if waiting else 0
        return promised + head <= self.cache.num_blocks


def _decodes(sequence: Sequence) -> bool:
    return sequence.generated > 0 and sequence.pending == 1
