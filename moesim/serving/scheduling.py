"""Which sequences run in the next iteration, and with how many tokens.

Continuous batching with chunked prefill under a token budget, as vLLM v1 and Sarathi do it:
sequences already running go first (a decode is a chunk of one token), what is left of the budget
admits waiting ones in order of arrival, and prompts longer than what is left are prefilled in
chunks over several iterations. When the KV cache is full the youngest running sequence is
preempted: its blocks are freed and it is computed again from its first token.

An iteration is `schedule()`, then the forward pass (or its duration), then `advance()`.
"""

from collections import deque
from dataclasses import dataclass, field

from moesim.serving.kv_cache import KvCache


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one replica accepts.

    `max_num_seqs` sequences run at once; `max_batched_tokens` tokens enter one iteration;
    `max_model_len` tokens (prompt + output) make the longest sequence.
    """

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside a replica.

    `computed` tokens have their keys and values in the cache; `output_tokens` is the length at
    which generation ends.
    """

    request_id: int
    prompt_tokens: int
    output_tokens: int
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    preemptions: int = 0

    @property
    def known(self) -> int:
        """Tokens known so far, prompt and generated."""
        return self.prompt_tokens + self.generated

    @property
    def pending(self) -> int:
        """Known tokens that still have to pass through the model."""
        return self.prompt_tokens + self.generated - self.computed

    @property
    def finished(self) -> bool:
        """Whether every token asked for has been generated."""
        return self.generated >= self.output_tokens


@dataclass(frozen=True, slots=True)
class Chunk:
    """The part of one sequence that runs in one iteration: `new_tokens` after `context` cached."""

    sequence: Sequence
    new_tokens: int
    context: int

    @property
    def emits(self) -> bool:
        """Whether a token is sampled at the end of this chunk."""
        return self.context + self.new_tokens == self.sequence.known


@dataclass(slots=True)
class Batch:
    """One iteration: its chunks in order, and the sequences preempted to make room for them."""

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        """Tokens that enter the model in this iteration."""
        return sum(chunk.new_tokens for chunk in self.chunks)


def refusal(prompt_tokens: int, output_tokens: int, limits: Limits, cache: KvCache) -> str | None:
    """Say why a request can never be served, or None if it can.

    A server answers such a request with an error and goes on with the others.
    """
    if prompt_tokens < 1:
        return "empty prompt"
    if output_tokens < 1:
        return "no output tokens asked for"
    if prompt_tokens + output_tokens > limits.max_model_len:
        return (
            f"prompt {prompt_tokens} + output {output_tokens} tokens exceed the model's maximum "
            f"of {limits.max_model_len}"
        )
    needed = cache.blocks_for(prompt_tokens + output_tokens - 1)
    if needed > cache.num_blocks:
        return f"needs {needed} KV blocks, the whole cache has {cache.num_blocks}"
    return None


class Scheduler:
    """The waiting and running sequences of one replica.

    A worked iteration: budget 8, block size 4, a decode and a 10-token prompt waiting; the decode
    takes one token and the prompt's first chunk the other seven.

    >>> limits = Limits(max_num_seqs=4, max_batched_tokens=8, max_model_len=64)
    >>> scheduler = Scheduler(limits, KvCache(num_blocks=16, block_size=4))
    >>> scheduler.submit(Sequence(0, prompt_tokens=3, output_tokens=5))
    >>> _ = scheduler.advance(scheduler.schedule())
    >>> scheduler.submit(Sequence(1, prompt_tokens=10, output_tokens=2))
    >>> [(c.sequence.request_id, c.new_tokens, c.emits) for c in scheduler.schedule().chunks]
    [(0, 1, True), (1, 7, False)]
    """

    def __init__(self, limits: Limits, cache: KvCache) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting: deque[Sequence] = deque()
        self.running: list[Sequence] = []

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence that `refusal` has nothing against."""
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """Choose the next iteration's chunks and reserve their blocks."""
        batch = Batch()
        budget = self._schedule_running(batch)
        if not batch.preempted:
            self._admit_waiting(batch, budget)
        return batch

    def advance(self, batch: Batch) -> tuple[list[Sequence], list[Sequence]]:
        """Account for an iteration that ran; return who emitted a token and who finished."""
        emitted = []
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.new_tokens
            if sequence.computed == sequence.prompt_tokens + sequence.generated:
                sequence.generated += 1
                emitted.append(sequence)
        return emitted, self.retire()

    def retire(self) -> list[Sequence]:
        """Free the blocks of every running sequence that is finished, and return those."""
        finished = [sequence for sequence in self.running if sequence.finished]
        for sequence in finished:
            self._release(sequence)
        if finished:
            self.running = [sequence for sequence in self.running if not sequence.finished]
        return finished

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence, waiting or running, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
        else:
            self.waiting.remove(sequence)
        self._release(sequence)

    def _schedule_running(self, batch: Batch) -> int:
        budget = self.limits.max_batched_tokens
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            new_tokens = min(sequence.pending, budget)
            if not self._make_room(sequence, new_tokens, batch):
                break
            batch.chunks.append(Chunk(sequence, new_tokens, sequence.computed))
            budget -= new_tokens
            index += 1
        return budget

    def _make_room(self, sequence: Sequence, new_tokens: int, batch: Batch) -> bool:
        """Reserve blocks, preempting from the youngest; False if `sequence` itself had to go."""
        while not self._reserve(sequence, new_tokens):
            victim = self.running.pop()
            self._release(victim)
            victim.computed = 0
            victim.preemptions += 1
            self.waiting.appendleft(victim)
            batch.preempted.append(victim)
            if victim is sequence:
                return False
        return True

    def _admit_waiting(self, batch: Batch, budget: int) -> None:
        while self.waiting and budget and len(self.running) < self.limits.max_num_seqs:
            sequence = self.waiting[0]
            new_tokens = min(sequence.pending, budget)
            if not self._reserve(sequence, new_tokens):
                break
            self.running.append(self.waiting.popleft())
            batch.chunks.append(Chunk(sequence, new_tokens, sequence.computed))
            budget -= new_tokens

    def _reserve(self, sequence: Sequence, new_tokens: int) -> bool:
        wanted = self.cache.blocks_for(sequence.computed + new_tokens)
        if not self.cache.resize(sequence.blocks, wanted):
            return False
        sequence.blocks = wanted
        return True

    def _release(self, sequence: Sequence) -> None:
        self.cache.resize(sequence.blocks, 0)
        sequence.blocks = 0
