"""A model cut over a group of devices: what one rank of it holds and computes.

Attention goes by heads, FFNs by their inner width, embedding and head by the vocabulary; where keys
and values have fewer heads than there are ranks, several ranks keep the same head. Routers and
norms are on every rank. (TensorRT-LLM's and vLLM's tensor parallelism, after Shoeybi et al. 2019,
Megatron-LM; experts as `moesim.facts.slices` says.)
"""

from dataclasses import dataclass
from typing import Self

from moesim.facts.models import ModelSpec
from moesim.facts.precision import FORMATS, Precision
from moesim.facts.slices import Slice, check_divides


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One rank's part of a model; the whole model where there is one rank."""

    spec: ModelSpec
    tensor_parallel: int = 1
    expert_parallel: int = 1

    @classmethod
    def of(cls, spec: ModelSpec, part: Slice | None = None) -> Self:
        """Return the part of each rank of a slice; ScenarioError where it cannot be cut evenly."""
        if part is None:
            return cls(spec=spec)
        check_divides(spec, part)
        return cls(
            spec=spec, tensor_parallel=part.tensor_parallel, expert_parallel=part.expert_parallel
        )

    @property
    def ranks(self) -> int:
        """Devices of the group."""
        return self.tensor_parallel * self.expert_parallel

    @property
    def query_width(self) -> int:
        """Heads times their width."""
        return self.spec.num_attention_heads * self.spec.head_dim // self.ranks

    @property
    def kv_heads(self) -> int:
        """Heads of keys and values, at least one."""
        return max(1, self.spec.num_key_value_heads // self.ranks)

    @property
    def kv_values_per_token(self) -> int:
        """Keys and values of one token over all decoder layers."""
        return self.spec.kv_values_per_token * self.kv_heads // self.spec.num_key_value_heads

    @property
    def attention_parameters(self) -> int:
        """Parameters of one attention's projections."""
        return self._attention(self.spec.attention_parameters, 1)

    @property
    def ffn_parameters(self) -> int:
        """Parameters of one plain FFN; 0 in a model without."""
        layers = len(self.spec.dense_layers) + len(self.spec.dense_encoder_layers)
        return self._parts["dense_ffn"] // max(1, layers) // self.ranks

    @property
    def expert_parameters(self) -> int:
        """Parameters of one expert's piece."""
        return self.spec.expert_parameters // self.tensor_parallel

    @property
    def head_parameters(self) -> int:
        """Parameters of the output head."""
        return self.spec.vocab_size * self.spec.hidden_size // self.ranks

    def weight_bytes(self, precision: Precision) -> int:
        """Return the bytes of all weights [B]."""
        return self.expert_bytes(precision) + self.non_expert_bytes(precision)

    def expert_bytes(self, precision: Precision) -> int:
        """Return the bytes of the pieces of experts [B]."""
        experts = self.spec.expert_positions // self.expert_parallel
        return experts * FORMATS[precision.experts].bytes_of(self.expert_parameters)

    def non_expert_bytes(self, precision: Precision) -> int:
        """Return the bytes of everything but experts [B].

        Those of the largest rank, where the vocabulary does not divide.
        """
        parts = self._parts
        narrowed = (
            self._attention(parts["attention"], self.spec.attentions)
            + parts["dense_ffn"] // self.ranks
        )
        cut = -(-(parts["embedding"] + parts["head"]) // self.ranks)
        plain = cut + parts["router"] + parts["norms"]
        return FORMATS[precision.rest].bytes_of(narrowed) + FORMATS[precision.plain].bytes_of(plain)

    @property
    def _parts(self) -> dict[str, int]:
        return self.spec.parameters_by_part

    def _attention(self, parameters: int, attentions: int) -> int:
        """Divide parameters of attentions: keys and values by heads, all else by ranks."""
        spec = self.spec
        rows = spec.hidden_size + (1 if spec.attention_bias else 0)
        kv = attentions * 2 * spec.num_key_value_heads * spec.head_dim * rows
        return (parameters - kv) // self.ranks + kv * self.kv_heads // spec.num_key_value_heads
