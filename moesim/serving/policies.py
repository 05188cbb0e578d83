"""Batching policies: when prompts enter, whole or in chunks, and what they promise about memory.

| policy | mirrors | prompts | prefill and decodes | enters when |
|---|---|---|---|---|
| `chunked_prefill` | vLLM v1, Sarathi-Serve | in chunks | together | its chunk fits |
| `prefill_priority` | vLLM v0 | whole | apart, prefill first | its prompt fits |
| `padded_prefill` | vLLM around January 2024 | padded | apart, prefill first | its prompt fits |
| `static` | FasterTransformer | whole | apart | nothing runs |
| `no_evict` | TensorRT-LLM GUARANTEED_NO_EVICT | whole | together | all of it fits |
| `no_evict_chunked` | the same, chunked context | in chunks | together | all of it fits |
| `max_utilisation` | TensorRT-LLM MAX_UTILIZATION | whole | together | its prompt fits |

Under `static` a batch is formed from whoever waits and runs until its longest answer is done;
answers that end earlier leave the batch, and nobody joins. `no_evict`, `no_evict_chunked` and
`static` set the blocks of the whole answer aside, so that nobody is ever preempted. They take the
answer's real length; servers that only know a request's `max_tokens` set more aside.

Under `padded_prefill` all prompts of an iteration are computed as long as the longest of them. A
prompt that would bring more than `PADDING` tokens of padding into it waits for the next one.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

PADDING = 256
"""Tokens of padding in an iteration at most: vLLM's `max_paddings` by default. It had such a limit
while its prompts lay in two dimensions, from PR #1381 (October 2023) to PR #3236 (March 2024)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """How batches are put together.

    `chunked`: a prompt may be split over iterations. `mixed`: prompts share iterations with
    decodes. `admission`: a request enters when its next tokens' blocks are free (`fits`), when
    those of all its tokens are (`completion`), or the same and nothing runs (`idle`). `padding`:
    prompts of an iteration are padded to the longest, with so many tokens in all at most; None
    where they are not.
    """

    chunked: bool
    mixed: bool
    admission: Literal["fits", "completion", "idle"]
    padding: int | None = None

    @property
    def preempts(self) -> bool:
        """Whether blocks may run out under requests that have entered."""
        return self.admission == "fits"


CHUNKED_PREFILL = Policy(chunked=True, mixed=True, admission="fits")

POLICIES: Mapping[str, Policy] = MappingProxyType(
    {
        "chunked_prefill": CHUNKED_PREFILL,
        "prefill_priority": Policy(chunked=False, mixed=False, admission="fits"),
        "padded_prefill": Policy(chunked=False, mixed=False, admission="fits", padding=PADDING),
        "static": Policy(chunked=False, mixed=False, admission="idle"),
        "no_evict": Policy(chunked=False, mixed=True, admission="completion"),
        "no_evict_chunked": Policy(chunked=True, mixed=True, admission="completion"),
        "max_utilisation": Policy(chunked=False, mixed=True, admission="fits"),
    }
)
