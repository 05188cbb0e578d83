"""The products of a layer by the names that profilers give them: their n and k on one rank."""

from moesim.cost.kernels.attention import Heads
from moesim.cost.kernels.shapes import heads_of
from moesim.errors import ProfileError
from moesim.facts.models import ModelSpec


def qkv_width(heads: Heads) -> int:
    """Return the columns of queries, keys and values together."""
    return (heads.heads + 2 * heads.kv_heads) * heads.head_dim


def products_of(spec: ModelSpec, ranks: int) -> dict[str, tuple[int, int]]:
    """Return n and k of a rank's products: `qkv`, `o`, `head`, and of a plain FFN `up`, `down`."""
    heads, hidden = heads_of(spec, ranks), spec.hidden_size
    found = {
        "qkv": (qkv_width(heads), hidden),
        "o": (hidden, heads.heads * heads.head_dim),
        "head": (-(-spec.vocab_size // ranks), hidden),
    }
    inner = spec.dense_intermediate_size
    if not spec.num_local_experts:
        inner = spec.intermediate_size
    if inner:
        halves = 2 if spec.gated_ffn else 1
        found |= {"up": (halves * inner // ranks, hidden), "down": (hidden, inner // ranks)}
    return found


def format_of(spec: ModelSpec) -> str:
    """Return our name of the 16-bit format that profilers run a model in."""
    if spec.dtype not in {"bfloat16", "float16"}:
        raise ProfileError(f"model: dtype {spec.dtype}; the tables are of 16 bits: bfloat16")
    return "bf16"
