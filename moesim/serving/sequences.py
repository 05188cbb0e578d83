"""What passes through a replica: sequences, and the chunks of them that make up an iteration."""

from dataclasses import dataclass, field


@dataclass(slots=True, eq=False)
class Sequence:
    """A request inside a replica.

    `computed` tokens have their keys and values in the cache; `output_tokens` is the length at
    which generation ends. `prefix` names the content of the prompt's full blocks, equal names for
    equal prompts up to there; the first `shared` of the sequence's `blocks` are shared by name.
    `number` is the order of arrival; `last_token_s` is kept by whoever keeps the clock.
    """

    request_id: int
    prompt_tokens: int
    output_tokens: int
    tenant: str = ""
    priority: int = 0
    prefix: tuple[int, ...] = ()
    number: int = 0
    computed: int = 0
    generated: int = 0
    blocks: int = 0
    shared: int = 0
    cached_tokens: int = 0
    preemptions: int = 0
    swaps: int = 0
    swapped: bool = False
    last_token_s: float = float("nan")

    @property
    def known(self) -> int:
        """Tokens known so far, prompt and generated."""
        return self.prompt_tokens + self.generated

    @property
    def pending(self) -> int:
        """Known tokens that still have to pass through the model."""
        return self.prompt_tokens + self.generated - self.computed

    @property
    def decodes(self) -> bool:
        """Whether only its latest token has to pass through the model."""
        return self.generated > 0 and self.pending == 1

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
    """One iteration: its chunks in order, and who was moved to make room or brought back.

    `preempted` sequences lost their blocks. Of these `swapped_out` went to host memory with
    theirs, and `swapped_in` came back from there; `swapped_blocks` are copied in all.
    """

    chunks: list[Chunk] = field(default_factory=list)
    preempted: list[Sequence] = field(default_factory=list)
    swapped_out: list[Sequence] = field(default_factory=list)
    swapped_in: list[Sequence] = field(default_factory=list)
    swapped_blocks: int = 0
    evicted: list[int] = field(default_factory=list)
    """Names of kept blocks whose room was needed, for whoever keeps their content."""
    cached_tokens: int = 0
    """Tokens in the KV cache before the iteration, those that sequences share counted once."""
    padded_to: int = 0
    """Tokens that every chunk is computed with if it has fewer; 0 where none is padded."""

    @property
    def tokens(self) -> int:
        """Tokens that enter the model in this iteration, padding not counted."""
        return sum(chunk.new_tokens for chunk in self.chunks)
