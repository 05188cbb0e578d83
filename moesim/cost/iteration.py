"""How long one iteration takes: the sum over its operations, from a profile.

    host(sequences) + embedding(T)
    + sum over layers [projections(T) + router(T) + experts(T, distinct)
                       + attention_decode(sequences, context) + attention_prefill(each chunk)]
    + head(emitting) + sampling(emitting)

T counts all tokens of the mixed batch: prefill and decode share one pass. Decode attention is
linear in the summed context, so its duration over many iterations has a closed form.
"""

from dataclasses import dataclass, field

from moesim.cost.curves import Curve, Fan, Sheet
from moesim.cost.experts import experts_curve
from moesim.cost.profile import COORDINATES, Profile
from moesim.serving.scheduling import Batch


@dataclass(slots=True)
class Extent:
    """The range of a coordinate that was asked for."""

    low: float = float("inf")
    high: float = float("-inf")

    def include(self, value: float) -> None:
        """Widen the range to hold `value`."""
        if value < self.low:
            self.low = value
        if value > self.high:
            self.high = value

    @property
    def used(self) -> bool:
        """Whether anything was included."""
        return self.high >= self.low


@dataclass(slots=True)
class Asked:
    """What a simulation asked of a cost model; says on what its answers rest."""

    tokens: Extent = field(default_factory=Extent)
    sequences: Extent = field(default_factory=Extent)
    emitting: Extent = field(default_factory=Extent)
    decodes: Extent = field(default_factory=Extent)
    context: Extent = field(default_factory=Extent)
    new_tokens: Extent = field(default_factory=Extent)
    cached: Extent = field(default_factory=Extent)


class CostModel:
    """The duration of any batch on the profiled device [s].

    Tables over whole numbers (tokens, sequences) are laid out once, so that an iteration costs a
    few look-ups.
    """

    def __init__(self, profile: Profile, *, max_batched_tokens: int, max_num_seqs: int) -> None:
        self.asked = Asked()
        self._layers = profile.spec.num_hidden_layers
        cells = profile.operations
        self._curves = {
            name: Curve.through(cells[name])
            for name, coordinates in COORDINATES.items()
            if len(coordinates) == 1
        }
        self._curves["experts"] = experts_curve(cells["experts"], profile.router.popularity)
        self._decode = Fan.through(cells["attention_decode"])
        self._prefill = Sheet.through(cells["attention_prefill"])
        self._by_tokens = [0.0, *map(self._tokens_s, range(1, max_batched_tokens + 1))]
        sequences = range(max_num_seqs + 1)
        self._by_sequences = [self._curves["host"](n) for n in sequences]
        self._by_emitting = [
            self._curves["head"](n) + self._curves["sampling"](n) if n else 0.0 for n in sequences
        ]
        lines = [self._decode.line(n) for n in sequences]
        self._by_decodes = [(self._layers * a, self._layers * b) for a, b in lines]

    def _tokens_s(self, tokens: int) -> float:
        """Return the duration of all that depends on the iteration's tokens alone [s]."""
        per_layer = sum(self._curves[name](tokens) for name in ("projections", "router", "experts"))
        return self._curves["embedding"](tokens) + self._layers * per_layer

    def iteration_s(self, batch: Batch) -> float:
        """Return the duration of one iteration [s]."""
        tokens = emitting = decodes = context = 0
        prefill_s = 0.0
        for chunk in batch.chunks:
            tokens += chunk.new_tokens
            emitting += chunk.emits
            if chunk.new_tokens == 1:
                decodes += 1
                context += chunk.context + 1
            else:
                prefill_s += self.prefill_attention_s(chunk.new_tokens, chunk.context)
        return prefill_s + self.but_prefill_attention_s(
            tokens, len(batch.chunks), emitting, decodes, context
        )

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        self.asked.new_tokens.include(new_tokens)
        self.asked.cached.include(cached)
        return self._layers * self._prefill(new_tokens, cached)

    def but_prefill_attention_s(
        self, tokens: int, sequences: int, emitting: int, decodes: int, context: int
    ) -> float:
        """Return all of an iteration but its chunks' attention [s].

        `context` is summed over the `decodes` sequences, the new token of each included.
        """
        asked = self.asked
        asked.tokens.include(tokens)
        asked.sequences.include(sequences)
        seconds = self._by_sequences[sequences] + self._by_tokens[tokens]
        if emitting:
            asked.emitting.include(emitting)
            seconds += self._by_emitting[emitting]
        if decodes:
            asked.decodes.include(decodes)
            asked.context.include(context)
            intercept, slope = self._by_decodes[decodes]
            seconds += intercept + slope * context
        return seconds

    def basis(self) -> dict[str, str]:
        """Say for each operation asked for whether its answers were measured or not.

        One of `measured`, `interpolated`, `extrapolated`, the weakest of all answers.
        """
        asked = self.asked
        one = dict.fromkeys(("embedding", "projections", "router", "experts"), asked.tokens)
        one |= dict.fromkeys(("head", "sampling"), asked.emitting)
        one["host"] = asked.sequences
        bases = {
            name: self._curves[name].basis(extent.low, extent.high)
            for name, extent in one.items()
            if extent.used
        }
        if asked.decodes.used:
            bases["attention_decode"] = self._decode.basis(*_ranges(asked.decodes, asked.context))
        if asked.new_tokens.used:
            bases["attention_prefill"] = self._prefill.basis(
                *_ranges(asked.new_tokens, asked.cached)
            )
        return bases


def _ranges(x: Extent, y: Extent) -> tuple[tuple[float, float], tuple[float, float]]:
    return (x.low, x.high), (y.low, y.high)
