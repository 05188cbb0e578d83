"""The operations of one rank of a group, or of a whole device, as cells of a profile.

| operation | kernels |
|---|---|
| embedding | a pass over the hidden states |
| projections | residual and norm, QKV and O products; the plain FFNs of a model that has some |
| attention_decode, attention_prefill | attention; rotary positions where they were timed apart |
| router | residual and norm, product with the gate |
| experts | the layer of experts, or of a model without: two products and the activation between |
| collectives | two all-reduces |
| head | norm, product with the vocabulary |
| sampling | a pass over the logits |
| host | nothing: tables of kernels do not know the host |
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from moesim.cost.collectives import PER_LAYER, collectives_s
from moesim.cost.expected import Popularity, Rates
from moesim.cost.imbalance import largest_share
from moesim.cost.kernels.attention import Decoding, Heads, Prompts
from moesim.cost.kernels.curves import Floats, weakest
from moesim.cost.kernels.elementwise import VALUE_BYTES, Passes
from moesim.cost.kernels.exchanges import Exchanges
from moesim.cost.kernels.experts import Cut, Layer, Moes
from moesim.cost.kernels.gemm import Gemms
from moesim.cost.kernels.sizes import Sizes, up_to
from moesim.cost.kernels.tables import Kernels
from moesim.cost.kernels.waves import form_named
from moesim.cost.parallel import Shard
from moesim.cost.profile import Cell
from moesim.facts.hardware import Device
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import Slice

SAME_SPEED = {"fp16": "bf16"}
"""Formats that run as fast as another: tensor cores have one 16-bit rate."""

SHORTEST_CONTEXT = 128
"""Shortest context of decoding that is laid out: below, launching is all there is [tokens]."""

FAIR_PART = 0.25
"""Share of an operation, mean over its sizes, from which on a kernel decides what the sum rests on:
the passes between products are a few per cent of it."""

Point = tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Times:
    """A device's kernels, ready to be asked."""

    gemms: Gemms
    prompts: Prompts
    decoding: Decoding
    moes: Moes
    exchanges: Exchanges
    passes: Passes

    @classmethod
    def of(cls, kernels: Kernels, device: Device) -> "Times":
        """Draw the curves through a file of kernels."""
        rates = Rates.of(device)
        forms = {of: form_named(name, device) for of, name in kernels.products.items()}
        return cls(
            gemms=Gemms(kernels.gemm, rates, forms),
            prompts=Prompts(kernels.prefill, rates),
            decoding=Decoding(kernels.decode, rates),
            moes=Moes(kernels.moe, rates),
            exchanges=Exchanges(kernels.collectives),
            passes=Passes(kernels.elementwise, rates),
        )


class Operations:
    """One rank of a group, or a whole device: its operations as cells, and what they rest on."""

    def __init__(
        self,
        kernels: Kernels,
        spec: ModelSpec,
        device: Device,
        precision: Precision,
        part: Slice,
        popularity: Popularity,
    ) -> None:
        self.popularity = [list(row) for row in popularity]
        self.bases: dict[str, str] = {}
        self._spec = spec
        self._device = device
        self._part = part
        self._shard = Shard.of(spec, part)
        self._times = Times.of(kernels, device)
        self._rest = SAME_SPEED.get(precision.rest, precision.rest)
        self._plain = SAME_SPEED.get(precision.plain, precision.plain)
        self._sparse = SAME_SPEED.get(precision.experts, precision.experts)
        self._kv = SAME_SPEED.get(precision.kv, precision.kv)
        self._heads = Heads(
            spec.num_attention_heads // self._shard.ranks, self._shard.kv_heads, spec.head_dim
        )

    def cells(self, sizes: Sizes) -> dict[str, list[Cell]]:
        """Return all operations' cells."""
        tokens, sequences = np.array(sizes.tokens, float), np.array(sizes.sequences, float)
        found = {
            "embedding": self._over("embedding", tokens, self._embedding),
            "projections": self._over("projections", tokens, self._projections),
            "attention_prefill": self._prefill(sizes),
            "router": self._over("router", tokens, self._router),
            "experts": self._experts(sizes),
            "head": self._over("head", sequences, self._head),
            "sampling": self._over("sampling", sequences, self._sampling),
            "host": [_cell((1.0,), 0.0)],
        }
        self.bases["host"] = "roofline"
        found["attention_decode"] = self._decode(sizes, partial(_rest_of_layer, found))
        if self._part.devices > 1:
            found["collectives"] = self._over("collectives", tokens, self._collectives)
        return found

    def _over(
        self, name: str, sizes: Floats, kernel: Callable[[Floats], tuple[Floats, str]]
    ) -> list[Cell]:
        seconds, self.bases[name] = kernel(sizes)
        return _cells([(size,) for size in sizes], seconds)

    def _gemm(self, number_format: str, n: int, k: int, tokens: Floats) -> tuple[Floats, str]:
        return self._times.gemms.seconds(number_format, n, k, tokens)

    def _pass(self, name: str, width: int, moved: float, tokens: Floats) -> tuple[Floats, str]:
        return self._times.passes.seconds(name, width, moved, tokens)

    def _norm(self, tokens: Floats) -> tuple[Floats, str]:
        """Return the residual's sum and the norm: two vectors read, two written."""
        hidden = self._spec.hidden_size
        return self._pass("norm", hidden, 4 * hidden, tokens)

    def _embedding(self, tokens: Floats) -> tuple[Floats, str]:
        hidden = self._spec.hidden_size
        return self._pass("embedding", hidden, 2 * hidden, tokens)

    def _projections(self, tokens: Floats) -> tuple[Floats, str]:
        spec, heads = self._spec, self._heads
        queries = heads.heads * heads.head_dim
        wide = queries + 2 * heads.kv_heads * heads.head_dim
        parts = [
            self._norm(tokens),
            self._gemm(self._rest, wide, spec.hidden_size, tokens),
            self._gemm(self._rest, spec.hidden_size, queries, tokens),
        ]
        for name in ("rope", "qk_norm"):
            if self._times.passes.has(name, wide):
                parts.append(self._pass(name, wide, 0.0, tokens))
            elif name == "qk_norm" and spec.qk_norm:
                parts.append(self._pass(name, wide, 2 * wide, tokens))
        if self._ffn_share:
            seconds, basis = self._ffn(tokens, spec.dense_intermediate_size)
            parts.append((self._ffn_share * seconds, basis))
        return _together(parts)

    @property
    def _ffn_share(self) -> float:
        """Share of the layers that have a plain FFN in place of experts."""
        spec = self._spec
        return len(spec.dense_layers) / spec.num_hidden_layers if spec.num_local_experts else 0.0

    def _ffn(self, tokens: Floats, inner: int) -> tuple[Floats, str]:
        """Return gate and up in one product, the activation, and down."""
        hidden, inner = self._spec.hidden_size, inner // self._shard.ranks
        halves = 2 if self._spec.gated_ffn else 1
        return _together(
            [
                self._gemm(self._rest, halves * inner, hidden, tokens),
                self._pass("activation", inner, (halves + 1) * inner, tokens),
                self._gemm(self._rest, hidden, inner, tokens),
            ]
        )

    def _router(self, tokens: Floats) -> tuple[Floats, str]:
        spec = self._spec
        if not spec.num_local_experts:
            return self._norm(tokens)
        gate = self._gemm(self._plain, spec.num_local_experts, spec.hidden_size, tokens)
        return _together([self._norm(tokens), gate])

    def _head(self, sequences: Floats) -> tuple[Floats, str]:
        spec = self._spec
        part = -(-spec.vocab_size // self._shard.ranks)
        product = self._gemm(self._plain, part, spec.hidden_size, sequences)
        return _together([self._norm(sequences), product])

    def _sampling(self, sequences: Floats) -> tuple[Floats, str]:
        """Return a pass over the logits, which are in 32 bits."""
        width = self._spec.vocab_size
        return self._pass("sampling", width, 2 * width, sequences)

    def _collectives(self, tokens: Floats) -> tuple[Floats, str]:
        ranks = self._part.devices
        found = self._times.exchanges.all_reduce_s(
            ranks, tokens * self._spec.hidden_size * VALUE_BYTES
        )
        if found is not None:
            return PER_LAYER * found[0], found[1]
        fitted = collectives_s(self._spec, self._device, ranks, VALUE_BYTES)
        return np.array([fitted(count) for count in tokens]), "fitted"

    def _experts(self, sizes: Sizes) -> list[Cell]:
        spec = self._spec
        if not spec.num_local_experts:
            tokens = np.array(sizes.tokens, float)
            seconds, self.bases["experts"] = self._ffn(tokens, spec.intermediate_size)
            return _cells([(count, 1.0) for count in tokens], seconds)
        shard, visits_each = self._shard, spec.num_experts_per_tok
        layer = Layer(spec.hidden_size, spec.intermediate_size, spec.num_local_experts, visits_each)
        cut = Cut(shard.tensor_parallel, shard.expert_parallel)
        of_rank = self._times.moes.rank(self._sparse, layer, cut)
        own = spec.num_local_experts / shard.expert_parallel
        rows = []
        for count in sizes.tokens:
            visits, hit = self._loads(count)
            elsewhere_s = of_rank.elsewhere_s * count * (1.0 - visits)
            rows.append(
                [
                    elsewhere_s
                    + of_rank.seconds(count * visits_each * visits, min(own, distinct * hit))
                    for distinct in sizes.distinct
                ]
            )
        visits, _ = self._loads(sizes.tokens[-1])
        self.bases["experts"] = of_rank.basis_at(sizes.tokens[-1] * visits_each * visits)
        least = np.minimum.accumulate(np.array(rows)[:, ::-1], axis=1)[:, ::-1]
        rising = np.maximum.accumulate(least, axis=0)  # fewer experts never take longer
        points = [(float(t), float(d)) for t in sizes.tokens for d in sizes.distinct]
        return _cells(points, (1 - self._ffn_share) * rising.ravel())

    def _loads(self, tokens: int) -> tuple[float, float]:
        """Return the most loaded rank's share of visits and of the experts hit."""
        parts = self._shard.expert_parallel
        return (1.0, 1.0) if parts == 1 else largest_share(self.popularity, tokens, parts)

    def _decode(self, sizes: Sizes, layer_s: Callable[[int], float]) -> list[Cell]:
        """Lay a straight line out over the context at each batch, as the simulator reads it."""
        decoding, heads, kv = self._times.decoding, self._heads, self._kv
        batches = up_to(sizes.sequences[-1], set(decoding.batches(heads, kv)))
        cells, bases = [], []
        for batch in batches:
            end = min(sizes.longest, decoding.reach(heads, kv, batch))
            contexts = [
                context
                for context in up_to(int(max(end, 2 * SHORTEST_CONTEXT)), set(sizes.contexts))
                if context >= min(SHORTEST_CONTEXT, sizes.longest // 2)
            ]
            found = [decoding.seconds(heads, kv, batch, context) for context in contexts]
            bases += [basis for _, basis in found]
            summed = batch * np.array(contexts, dtype=float)
            start_s, each_s = line_through(
                summed, np.array([seconds for seconds, _ in found]), layer_s(batch)
            )
            ends = summed[[0, -1]]
            cells += _cells([(batch, end) for end in ends], start_s + each_s * ends)
        self.bases["attention_decode"] = weakest(_typical(bases), "interpolated")
        return cells

    def _prefill(self, sizes: Sizes) -> list[Cell]:
        points, seconds, bases = [], [], []
        for new in sizes.new_tokens:
            for context in sizes.contexts:
                value, basis = self._times.prompts.seconds(self._heads, self._kv, new, context)
                points.append((float(new), float(context)))
                seconds.append(value)
                bases.append(basis)
        self.bases["attention_prefill"] = _typical(bases)
        return _cells(points, np.array(seconds))


def _rest_of_layer(operations: Mapping[str, Sequence[Cell]], tokens: int) -> float:
    """Return what a layer takes beside attention, all experts hit [s]."""
    total = 0.0
    for name in ("projections", "router", "experts"):
        cells = operations[name]
        most = cells[-1].at[1:]
        sizes = [cell.at[0] for cell in cells if cell.at[1:] == most]
        seconds = [cell.median_s for cell in cells if cell.at[1:] == most]
        total += float(np.interp(tokens, sizes, seconds))
    return total


def line_through(sizes: Floats, seconds: Floats, rest_s: float) -> tuple[float, float]:
    """Return start and slope of the line that leaves a layer's relative error least.

    A layer takes `rest_s` beside: what is off by half of next to nothing hardly matters to it. The
    caches of the device make short contexts faster than any line; start and slope are not negative.

    >>> start, slope = line_through(np.array([1.0, 2.0, 4.0]), np.array([3.0, 5.0, 9.0]), 1.0)
    >>> round(start, 9), round(slope, 9)
    (1.0, 2.0)
    """
    weight = 1.0 / (seconds + rest_s)
    system = np.stack([weight, weight * sizes], axis=1)
    start, slope = np.linalg.lstsq(system, weight * seconds, rcond=None)[0]
    if slope < 0:
        return float(np.average(seconds, weights=weight**2)), 0.0
    if start < 0:
        return 0.0, float((weight**2 * sizes * seconds).sum() / (weight**2 * sizes**2).sum())
    return float(start), float(slope)


def _together(parts: Sequence[tuple[Floats, str]]) -> tuple[Floats, str]:
    """Add kernels up; the sum rests on the weakest that makes up a fair part of it."""
    total = np.sum([seconds for seconds, _ in parts], axis=0)
    fair = [basis for seconds, basis in parts if np.mean(seconds / total) >= FAIR_PART]
    return np.asarray(total), weakest(*fair)


def _typical(bases: Sequence[str]) -> str:
    """Return what most points of a table rest on."""
    return max(set(bases), key=bases.count)


def _cells(points: Sequence[Point], seconds: Floats) -> list[Cell]:
    return [_cell(point, value) for point, value in zip(points, seconds.tolist(), strict=True)]


def _cell(point: Point, seconds: float) -> Cell:
    """Make a cell of values that are valid as they are: thousands are made at once."""
    at = tuple(map(float, point))
    return Cell.model_construct(at=at, median_s=float(seconds), spread=0.0, repeats=1)
