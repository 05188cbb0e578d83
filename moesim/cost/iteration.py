"""How long one iteration takes: the sum over its operations, from a profile.

    host(sequences) + embedding(T)
    + sum over layers [projections(T) + router(T) + experts(T, distinct) + collectives(T)
                       + attention_decode(sequences, context) + attention_prefill(each chunk)]
    + head(emitting) + sampling(emitting)

T counts all tokens of the mixed batch: prefill and decode share one pass. Collectives are those of
a group of devices, if there is one. Decode attention is
linear in the summed context, so its duration over many iterations has a closed form.

An engine with CUDA graphs replays one for decodes alone, padded to the next captured size, and
launches all else. Where replays were timed, decodes alone take what they took:

    replay(size, context size / n)     n decodes in the graph of `size`

The filling are copies of one of them, so that all rows attend to as much as the n do on average.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from moesim.cost.curves import WEAKEST, Curve, Fan, Sheet
from moesim.cost.experts import experts_curve
from moesim.cost.profile import COORDINATES, OPTIONAL, REPLAY, Profile
from moesim.serving.sequences import Batch

Floats = NDArray[np.float64]


class Tables(NamedTuple):
    """Durations laid out over whole numbers, for a loop that adds them up itself [s].

    `sequences`, `tokens` and `emitting` add up to a mixed iteration without attention; `lines` are
    intercept and slope of decode attention over the summed context, by decodes. The two others are
    sums of these, as a duration when nothing was cached before and the slope over what was:
    `decoding` of n decodes alone, which may run as a captured graph; `joined` of n decodes and one
    whole prompt, without what depends on the tokens.
    """

    sequences: list[float]
    tokens: list[float]
    emitting: list[float]
    lines: list[tuple[float, float]]
    decoding: list[tuple[float, float]]
    joined: list[tuple[float, float]]

    @classmethod
    def of(
        cls,
        *,
        sequences: Floats,
        tokens: Floats,
        emitting: Floats,
        alone: Floats,
        intercepts: Floats,
        slopes: Floats,
    ) -> "Tables":
        """Lay the tables out; `alone` is n decodes alone, without attention."""
        context = slopes * np.arange(len(slopes))
        attention = intercepts + context
        beside = sequences[1:] + emitting[1 : len(sequences)] + attention[:-1]
        each = slopes.tolist()
        return cls(
            sequences=sequences.tolist(),
            tokens=tokens.tolist(),
            emitting=emitting.tolist(),
            lines=list(zip(intercepts.tolist(), each, strict=True)),
            decoding=list(zip((alone + attention[: len(alone)]).tolist(), each, strict=False)),
            joined=list(zip(beside.tolist(), each, strict=False)),
        )


def padded_to(graphs: Iterable[int], count: int) -> NDArray[np.intp]:
    """Return the size at which 0, 1, ... `count - 1` decodes run: the next captured, or their own.

    >>> padded_to([1, 2, 4], 7).tolist()
    [0, 1, 2, 4, 4, 5, 6]
    """
    sizes = np.array(sorted(graphs), dtype=np.intp)
    own = np.arange(count)
    if not len(sizes):
        return own
    place = np.searchsorted(sizes, own)
    padded = np.append(sizes, 0)[place]
    return np.where((place < len(sizes)) & (own > 0), padded, own)


@dataclass(slots=True)
class Asked:
    """The largest of each coordinate that was asked of a cost model; 0 if none was."""

    tokens: int = 0
    sequences: int = 0
    emitting: int = 0
    decodes: int = 0
    context: int = 0
    new_tokens: int = 0
    cached: int = 0

    def include(
        self,
        *,
        tokens: int = 0,
        sequences: int = 0,
        emitting: int = 0,
        decodes: int = 0,
        context: int = 0,
    ) -> None:
        """Reach at least as far as this."""
        if tokens > self.tokens:
            self.tokens = tokens
        if sequences > self.sequences:
            self.sequences = sequences
        if emitting > self.emitting:
            self.emitting = emitting
        if decodes > self.decodes:
            self.decodes = decodes
        if context > self.context:
            self.context = context


class Cost(ABC):
    """How long a replica's iterations take, from tables that are laid out once."""

    def __init__(self, tables: Tables) -> None:
        self.asked = Asked()
        self.tables = tables

    @abstractmethod
    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk of a prompt over all layers [s]."""

    @abstractmethod
    def basis(self) -> dict[str, str]:
        """Say for each operation asked for what its answers rest on."""

    def iteration_s(self, batch: Batch) -> float:
        """Return the duration of one iteration, padding computed like tokens [s]."""
        tokens = emitting = decodes = context = 0
        prefill_s = 0.0
        for chunk in batch.chunks:
            new_tokens = max(chunk.new_tokens, batch.padded_to)
            tokens += new_tokens
            emitting += chunk.emits
            if new_tokens == 1:
                decodes += 1
                context += chunk.context + 1
            else:
                prefill_s += self.prefill_attention_s(new_tokens, chunk.context)
        return prefill_s + self.but_prefill_attention_s(
            tokens, len(batch.chunks), emitting, decodes, context
        )

    def but_prefill_attention_s(
        self, tokens: int, sequences: int, emitting: int, decodes: int, context: int
    ) -> float:
        """Return all of an iteration but its chunks' attention [s].

        `context` is summed over the `decodes` sequences, the new token of each included.
        """
        self.asked.include(
            tokens=tokens,
            sequences=sequences,
            emitting=emitting,
            decodes=decodes,
            context=context,
        )
        tables = self.tables
        if tokens == sequences == emitting:
            flat, slope = tables.decoding[sequences]
            return flat + slope * (context - sequences)
        intercept, slope = tables.lines[decodes]
        return (
            tables.sequences[sequences]
            + tables.tokens[tokens]
            + tables.emitting[emitting]
            + intercept
            + slope * context
        )


class Laid:
    """A profile's cells as curves, and tables over whole numbers as far as limits reach [s]."""

    def __init__(self, profile: Profile, max_batched_tokens: int, max_num_seqs: int) -> None:
        self.layers = profile.spec.num_hidden_layers
        cells = profile.operations
        self.curves = {
            name: Curve.through(cells[name])
            for name, coordinates in (COORDINATES | OPTIONAL).items()
            if len(coordinates) == 1 and name in cells
        }
        self.curves["experts"] = experts_curve(cells["experts"], profile.router.popularity)
        self.decode = Fan.through(cells["attention_decode"])
        self.prefill = Sheet.through(cells["attention_prefill"])
        self.chunks: dict[tuple[int, int], float] = {}
        self._graphs = profile.decode_graphs
        self.tables = self._tables(max_batched_tokens, max_num_seqs)
        if self._graphs and REPLAY in cells:
            decoding = self._replayed(profile, self.tables.decoding)
            self.tables = self.tables._replace(decoding=decoding)

    @classmethod
    def of(cls, profile: Profile, max_batched_tokens: int, max_num_seqs: int) -> "Laid":
        """Return what is laid out over a profile, once for all who have these limits."""
        limits = max_batched_tokens, max_num_seqs
        if limits not in profile.laid_out:
            profile.laid_out[limits] = cls(profile, *limits)
        laid: Laid = profile.laid_out[limits]
        return laid

    @property
    def in_layers(self) -> tuple[str, ...]:
        """The operations of a layer that depend on the iteration's tokens alone."""
        names = ("projections", "router", "experts", "collectives")
        return tuple(name for name in names if name in self.curves)

    def _tables(self, max_batched_tokens: int, max_num_seqs: int) -> Tables:
        alone = min(max_num_seqs, max_batched_tokens) + 1
        padded = padded_to(self._graphs, alone)
        reach = max(max_num_seqs, int(padded.max()))
        tokens = self._tokens_table(max(max_batched_tokens, reach))
        sequences = self.curves["host"].table(max_num_seqs)
        emitting = self.curves["head"].table(reach) + self.curves["sampling"].table(reach)
        emitting[0] = 0.0
        intercepts, slopes = (self.layers * part for part in self.decode.table(max_num_seqs))
        intercepts[0] = slopes[0] = 0.0
        return Tables.of(
            sequences=sequences,
            tokens=tokens,
            emitting=emitting,
            alone=sequences[:alone] + tokens[padded] + emitting[padded],
            intercepts=intercepts,
            slopes=slopes,
        )

    def _replayed(
        self, profile: Profile, added_up: list[tuple[float, float]]
    ) -> list[tuple[float, float]]:
        """Return `decoding` with what replays took, as far as graphs were captured.

        What a variant's router asks of experts beyond the profiled one's is added.
        """
        experts = profile.operations["experts"]
        own = experts_curve(experts, profile.replayed_router.popularity)
        most = max(self._graphs)
        intercepts, slopes = Fan.through(profile.operations[REPLAY]).table(most)
        more = self.layers * (self.curves["experts"].table(most) - own.table(most))
        flat = np.maximum(0.0, intercepts + more).tolist()
        rows = list(added_up)
        for count, size in enumerate(padded_to(self._graphs, min(most + 1, len(rows))).tolist()):
            if count:
                slope = float(slopes[size]) * size / count
                rows[count] = (flat[size] + slope * count, slope)
        return rows

    def _tokens_table(self, most: int) -> NDArray[np.float64]:
        """Return the duration of all that depends on the iteration's tokens alone [s]."""
        first, *others = (self.curves[name].table(most) for name in self.in_layers)
        layer = sum(others, start=first)
        return np.asarray(self.curves["embedding"].table(most) + self.layers * layer)


class CostModel(Cost):
    """The duration of any batch on the profiled device [s].

    Tables over whole numbers (tokens, sequences) are laid out once, so that an iteration costs a
    few look-ups.
    """

    def __init__(self, profile: Profile, *, max_batched_tokens: int, max_num_seqs: int) -> None:
        self._laid = Laid.of(profile, max_batched_tokens, max_num_seqs)
        self._rests_on = profile.rests_on
        super().__init__(self._laid.tables)

    def prefill_attention_s(self, new_tokens: int, cached: int) -> float:
        """Return the attention of one chunk over all layers [s]."""
        if new_tokens > self.asked.new_tokens:
            self.asked.new_tokens = new_tokens
        if cached > self.asked.cached:
            self.asked.cached = cached
        chunk = (new_tokens, cached)
        laid = self._laid
        if chunk not in laid.chunks:
            laid.chunks[chunk] = laid.layers * laid.prefill(new_tokens, cached)
        return laid.chunks[chunk]

    def basis(self) -> dict[str, str]:
        """Say for each operation asked for whether its answers were measured or not.

        One of `measured`, `interpolated`, `extrapolated`, the weakest of all answers; `scaled`
        at best on a part of the measured device, `roofline` where nothing was measured. A host
        that takes no time, as in tables of kernels, rests on nothing.
        """
        asked, laid = self.asked, self._laid
        reached = dict.fromkeys(("embedding", *laid.in_layers), asked.tokens)
        reached |= dict.fromkeys(("head", "sampling"), asked.emitting)
        if any(laid.curves["host"].ys):
            reached["host"] = asked.sequences
        bases = {name: laid.curves[name].basis(most) for name, most in reached.items() if most}
        if asked.decodes:
            bases["attention_decode"] = laid.decode.basis(asked.decodes, asked.context)
        if asked.new_tokens:
            bases["attention_prefill"] = laid.prefill.basis(asked.new_tokens, asked.cached)
        return {
            name: max(basis, self._rests_on(name), key=WEAKEST.index)
            for name, basis in bases.items()
        }
