"""How long one iteration takes: the sum over its operations, from a profile.

    host(sequences) + embedding(T)
    + sum over layers [projections(T) + router(T) + experts(T, distinct)
                       + attention_decode(sequences, context) + attention_prefill(each chunk)]
    + head(emitting) + sampling(emitting)

T counts all tokens of the mixed batch: prefill and decode share one pass. Decode attention is
linear in the summed context, so its duration over many iterations has a closed form.
"""

from dataclasses import dataclass, field

from moesim.cost.curves import Curve, Fan
from moesim.cost.experts import expected_distinct
from moesim.cost.profile import Profile
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
        self._curves, self._fans = _curves(profile)
        self._by_tokens = self._tokens_table(profile, max_batched_tokens)
        sequences = range(max_num_seqs + 1)
        self._by_sequences = [self._curves["host"](n) for n in sequences]
        self._by_emitting = [
            self._curves["head"](n) + self._curves["sampling"](n) if n else 0.0 for n in sequences
        ]
        decode = self._fans["attention_decode"]
        self._decode = [
            (self._layers * decode.intercepts(n), self._layers * max(0.0, decode.slopes(n)))
            for n in sequences
        ]
        self._prefill = self._fans["attention_prefill"]

    def _tokens_table(self, profile: Profile, max_tokens: int) -> list[float]:
        """Return the duration of all that depends on the iteration's tokens alone, by tokens."""
        distinct = expected_distinct(profile.router.popularity, max_tokens).sum(axis=0)
        experts = self._fans["experts"]
        return [0.0] + [
            self._curves["embedding"](tokens)
            + self._layers
            * (
                self._curves["projections"](tokens)
                + self._curves["router"](tokens)
                + experts(tokens, float(distinct[tokens]) / self._layers)
            )
            for tokens in range(1, max_tokens + 1)
        ]

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
            intercept, slope = self._decode[decodes]
            seconds += intercept + slope * context
        return seconds

    def basis(self) -> dict[str, str]:
        """Say for each operation asked for whether its answers were measured or not.

        One of `measured`, `interpolated`, `extrapolated`, the weakest of all answers.
        """
        asked = self.asked
        one = {
            "embedding": asked.tokens,
            "projections": asked.tokens,
            "router": asked.tokens,
            "head": asked.emitting,
            "sampling": asked.emitting,
            "host": asked.sequences,
        }
        bases = {
            name: self._curves[name].basis(extent.low, extent.high)
            for name, extent in one.items()
            if extent.high >= extent.low
        }
        two = {
            "attention_decode": (asked.decodes, asked.context),
            "attention_prefill": (asked.new_tokens, asked.cached),
        }
        for name, (x, y) in two.items():
            if x.high >= x.low:
                bases[name] = self._fans[name].basis((x.low, x.high), (y.low, y.high))
        if asked.tokens.high >= asked.tokens.low:
            fan = self._fans["experts"]
            bases["experts"] = fan.intercepts.basis(asked.tokens.low, asked.tokens.high)
        return bases


def _curves(profile: Profile) -> tuple[dict[str, Curve], dict[str, Fan]]:
    curves, fans = {}, {}
    for name, cells in profile.operations.items():
        if len(cells[0].at) == 1:
            curves[name] = Curve.through(cells)
        else:
            fans[name] = Fan.through(cells)
    return curves, fans
