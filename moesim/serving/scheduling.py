"""Which sequences run in the next iteration, and with how many tokens.

Continuous batching under a budget of tokens. How prompts enter is the policy's
(`moesim.serving.policies`), who is next the queue's (`moesim.serving.queues`). When the KV cache is
full, a running sequence is preempted, the youngest of the least urgent: its blocks are freed and it
is computed again from its first token (recompute), or they are copied to host memory and back
(swap, as vLLM v0 does it).

An iteration is `schedule()`, then the forward pass (or its duration), then `advance()`.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from moesim.serving.kv_cache import KvCache
from moesim.serving.policies import CHUNKED_PREFILL, Policy
from moesim.serving.queues import FirstCome, Queue
from moesim.serving.sequences import Batch, Chunk, Sequence


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one replica accepts.

    `max_num_seqs` sequences run at once; `max_batched_tokens` tokens enter one iteration;
    `max_model_len` tokens (prompt + output) make the longest sequence. `swap_blocks` of host memory
    take the blocks of preempted sequences; 0 means that they are computed again.
    """

    max_num_seqs: int
    max_batched_tokens: int
    max_model_len: int
    policy: Policy = CHUNKED_PREFILL
    swap_blocks: int = 0


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
    whole = longest_whole(prompt_tokens, output_tokens, limits)
    if whole > limits.max_batched_tokens:
        return (
            f"{whole} tokens to compute at once exceed the iteration's maximum of "
            f"{limits.max_batched_tokens}, and this policy does not split prompts"
        )
    needed = cache.blocks_for(prompt_tokens + output_tokens - 1)
    if needed > cache.num_blocks:
        return f"needs {needed} KV blocks, the whole cache has {cache.num_blocks}"
    return None


def longest_whole(prompt_tokens: int, output_tokens: int, limits: Limits) -> int:
    """Return the most tokens of a request that must enter one iteration together.

    The prompt, if the policy does not split it; all but the last token, if a preempted answer may
    have to be computed again.
    """
    policy = limits.policy
    if policy.chunked:
        return 1
    return prompt_tokens + output_tokens - 1 if policy.preempts else prompt_tokens


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

    def __init__(self, limits: Limits, cache: KvCache, queue: Queue | None = None) -> None:
        self.limits = limits
        self.cache = cache
        self.waiting: Queue = FirstCome() if queue is None else queue
        self.running: list[Sequence] = []
        self.free_swap_blocks = limits.swap_blocks
        self._submitted = 0

    @property
    def idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return not self.running and not self.waiting

    def submit(self, sequence: Sequence) -> None:
        """Queue a sequence that `refusal` has nothing against."""
        sequence.number = self._submitted
        self._submitted += 1
        self.waiting.append(sequence)

    def schedule(self) -> Batch:
        """Choose the next iteration's chunks and reserve their blocks."""
        batch, budget = Batch(), self.limits.max_batched_tokens
        if self.limits.policy.mixed:
            left = self._continue_running(batch, budget)
            self._admit(batch, left)
        else:
            self._admit(batch, budget)
            if not batch.chunks:
                left = self._continue_running(batch, budget)
                self._admit(batch, left, swapped_only=True)
        batch.evicted = self.cache.take_evicted()
        batch.cached_tokens = self.cached_tokens()
        return batch

    def cached_tokens(self) -> int:
        """Return the tokens in the KV cache, those that sequences share counted once."""
        own = sum([s.computed - s.shared * self.cache.block_size for s in self.running])
        return own + self.cache.shared_in_use * self.cache.block_size

    def advance(self, batch: Batch) -> tuple[list[Sequence], list[Sequence]]:
        """Account for an iteration that ran; return who emitted a token and who finished."""
        emitted = []
        for chunk in batch.chunks:
            sequence = chunk.sequence
            sequence.computed += chunk.new_tokens
            if sequence.prefix and sequence.shared < len(sequence.prefix):
                self._share(sequence)
            if sequence.computed == sequence.prompt_tokens + sequence.generated:
                sequence.generated += 1
                self.waiting.served(sequence, 1)
                emitted.append(sequence)
        return emitted, self._retire(emitted)

    def retire(self) -> list[Sequence]:
        """Free the blocks of every running sequence that is finished, and return those."""
        return self._retire(self.running)

    def _retire(self, among: Iterable[Sequence]) -> list[Sequence]:
        finished = [sequence for sequence in among if sequence.finished]
        for sequence in finished:
            self._release(sequence)
        if finished:
            self.running = [sequence for sequence in self.running if not sequence.finished]
        return finished

    def cancel(self, sequence: Sequence) -> None:
        """Drop a sequence, waiting or running, and free its blocks."""
        if sequence in self.running:
            self.running.remove(sequence)
            self._release(sequence)
            return
        self.waiting.remove(sequence)
        if sequence.swapped:
            self.free_swap_blocks += sequence.blocks
            sequence.blocks, sequence.swapped = 0, False

    def may_admit(self, free_blocks: int) -> bool:
        """Whether the queue's head may enter beside the running sequences while all decode.

        `free_blocks` are those that the head would find. Decodes that take blocks may evict some
        that the head would share, so that it needs fewer at once: any part of them may be left.
        """
        policy, running = self.limits.policy, len(self.running)
        if not self.waiting or running >= self.limits.max_num_seqs:
            return False
        if policy.admission == "idle" and running:
            return False
        head = self.waiting.head()
        beside = running if policy.mixed or head.swapped else 0
        budget = self.limits.max_batched_tokens - beside
        unused = 0
        for shared in range(self._shared(head) + 1):
            unused += self.cache.unused(head.prefix[shared - 1 : shared]) if shared else 0
            opening = self._opening(head, budget, shared)
            if opening is None:
                continue
            if self._blocks_to_enter(head, *opening) - shared + unused <= free_blocks:
                return True
        return False

    def _continue_running(self, batch: Batch, budget: int) -> int:
        """Give each running sequence its next tokens; return what is left of the budget."""
        index = 0
        while index < len(self.running) and budget:
            sequence = self.running[index]
            new_tokens = min(sequence.pending, budget)
            wanted = self.cache.blocks_for(sequence.computed + new_tokens)
            while not self._grow(sequence, wanted):
                taken, returned = self._preempt(batch)
                index -= taken
                budget += returned
                if sequence not in self.running:
                    break
            else:
                batch.chunks.append(Chunk(sequence, new_tokens, sequence.computed))
                budget -= new_tokens
                index += 1
        return budget

    def _preempt(self, batch: Batch) -> tuple[int, int]:
        """Take the blocks of the youngest of the least urgent sequences.

        Returns 1 and the tokens given back if it was in the batch already, else zeros.
        """
        victim = max(reversed(self.running), key=lambda sequence: sequence.priority)
        self.running.remove(victim)
        victim.preemptions += 1
        batch.preempted.append(victim)
        if victim.blocks <= self.free_swap_blocks:
            self._swap_out(victim, batch)
        else:
            self._release(victim)
            victim.computed = 0
        self.waiting.restore(victim)
        for place, chunk in enumerate(batch.chunks):
            if chunk.sequence is victim:
                del batch.chunks[place]
                return 1, chunk.new_tokens
        return 0, 0

    def _admit(self, batch: Batch, budget: int, *, swapped_only: bool = False) -> None:
        """Let waiting sequences in while there is budget, a seat and room; nobody after preempting.

        `swapped_only` stops before the first whose blocks are not in host memory.
        """
        policy, limits = self.limits.policy, self.limits
        if batch.preempted or (policy.admission == "idle" and self.running):
            return
        while self.waiting and budget and len(self.running) < limits.max_num_seqs:
            sequence = self.waiting.head()
            opening = self._opening(sequence, budget, self._shared(sequence))
            if opening is None or (swapped_only and not sequence.swapped):
                return
            if not policy.mixed and sequence.swapped and not swapped_only:
                return
            padded_to = 0 if swapped_only else self._padded_to(batch, opening[1])
            if padded_to is None or not self._enter(sequence, *opening, batch):
                return
            batch.padded_to = padded_to
            batch.chunks.append(Chunk(sequence, opening[1], sequence.computed))
            budget -= opening[1]

    def _padded_to(self, batch: Batch, new_tokens: int) -> int | None:
        """Return what prompts are padded to with one more beside them, None if that is too much."""
        most = self.limits.policy.padding
        if most is None:
            return 0
        longest = max(batch.padded_to, new_tokens)
        computed = (len(batch.chunks) + 1) * longest
        padding = computed - batch.tokens - new_tokens
        fits = computed <= self.limits.max_batched_tokens and padding <= most
        return longest if fits else None

    def _shared(self, sequence: Sequence) -> int:
        """Return how many kept blocks a sequence would share if it entered now."""
        if not sequence.prefix or sequence.swapped:
            return 0
        # At least one token has to pass through the model, or there would be no logits.
        most = (sequence.known - 1) // self.cache.block_size
        return self.cache.match(sequence.prefix[:most])

    def _opening(self, sequence: Sequence, budget: int, shared: int) -> tuple[int, int] | None:
        """Return the shared blocks and the new tokens with which a sequence would enter."""
        pending = sequence.pending - shared * self.cache.block_size
        if budget < 1 or (pending > budget and not self.limits.policy.chunked):
            return None
        return shared, min(pending, budget)

    def _blocks_to_enter(self, sequence: Sequence, shared: int, new_tokens: int) -> int:
        cached = sequence.computed + shared * self.cache.block_size
        if self.limits.policy.preempts:
            return self.cache.blocks_for(cached + new_tokens)
        return self.cache.blocks_for(sequence.prompt_tokens + sequence.output_tokens - 1)

    def _enter(self, sequence: Sequence, shared: int, new_tokens: int, batch: Batch) -> bool:
        """Take the blocks with which a sequence enters; False if too few are free."""
        wanted = self._blocks_to_enter(sequence, shared, new_tokens)
        if not self.cache.hold(sequence.prefix[:shared], wanted):
            return False
        self.running.append(self.waiting.pop())
        if sequence.swapped:
            batch.swapped_in.append(sequence)
            batch.swapped_blocks += sequence.blocks
            self.free_swap_blocks += sequence.blocks
            sequence.swapped = False
        elif shared:
            sequence.computed = shared * self.cache.block_size
            if not sequence.preemptions:
                sequence.cached_tokens = sequence.computed
        sequence.shared, sequence.blocks = shared, wanted
        return True

    def _grow(self, sequence: Sequence, wanted: int) -> bool:
        if wanted > sequence.blocks:
            if not self.cache.resize(sequence.blocks, wanted):
                return False
            sequence.blocks = wanted
        return True

    def _share(self, sequence: Sequence) -> None:
        """Offer the prompt's blocks that are computed by now to those who come later."""
        full = min(len(sequence.prefix), sequence.computed // self.cache.block_size)
        sequence.shared = self.cache.commit(sequence.prefix[:full], sequence.shared)

    def _swap_out(self, sequence: Sequence, batch: Batch) -> None:
        self.cache.release((), sequence.blocks)
        self.free_swap_blocks -= sequence.blocks
        sequence.swapped = True
        sequence.swaps += 1
        batch.swapped_out.append(sequence)
        batch.swapped_blocks += sequence.blocks

    def _release(self, sequence: Sequence) -> None:
        self.cache.release(sequence.prefix[: sequence.shared], sequence.blocks)
        sequence.blocks = sequence.shared = 0
