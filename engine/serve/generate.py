"""Generate for a handful of prompts at once, without a clock."""

from collections.abc import Sequence as Row

from engine.model.experts.choosing import AUTO
from engine.model.model import Model
from engine.serve.engine import Engine, EngineConfig
from engine.serve.sampling import Sampling
from moesim.errors import EngineError
from moesim.serving.records import REFUSED, Record
from moesim.serving.scheduling import Limits

BLOCK_SIZE = 16


def generate(
    model: Model,
    prompts: Row[Row[int]],
    *,
    output_tokens: int,
    sampling: Sampling | None = None,
    max_batched_tokens: int = 512,
    num_blocks: int | None = None,
    experts: str = AUTO,
) -> list[list[int]]:
    """Return `output_tokens` tokens for each prompt; EngineError where one can never be served.

    `experts` is the style in which experts run, "auto" what is fastest on the device.
    """
    limits = Limits(
        max_num_seqs=max(1, len(prompts)),
        max_batched_tokens=max_batched_tokens,
        max_model_len=model.spec.max_position_embeddings,
    )
    needed = sum(-(-(len(prompt) + output_tokens) // BLOCK_SIZE) for prompt in prompts)
    engine = Engine(
        model,
        EngineConfig(
            limits=limits,
            num_blocks=num_blocks or max(1, needed),
            block_size=BLOCK_SIZE,
            sampling=sampling or Sampling(),
            experts=experts,
        ),
    )
    for number, prompt in enumerate(prompts):
        record = Record(request_id=number, prompt_tokens=len(prompt), output_tokens=output_tokens)
        engine.submit(record, prompt)
        if record.outcome == REFUSED:
            raise EngineError(f"prompt {number}: {record.detail}")
    while engine.step():
        pass
    return [engine.outputs[number] for number in range(len(prompts))]
