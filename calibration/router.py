"""What the routers really do: popularity and distinct experts, from the engine generating text."""

import numpy as np

from engine.model.routing import observed_routing
from engine.serve.engine import Engine
from moesim.cost.profile import Router
from moesim.serving.records import Record


def observe_router(
    engine: Engine, *, sequences: int, prompt: int, output: int, seed: int
) -> Router:
    """Generate from random prompts and count, per layer, which experts the tokens visit.

    The prompts are uniform over the vocabulary and the answers are sampled by the engine, as in
    `validate`; a checkpoint with a tokenizer of its own would be better served by its own text.
    """
    rng = np.random.default_rng(seed)
    spec = engine.runner.decoder.spec
    if not spec.num_local_experts:
        # Nothing to watch: every token passes its layer's one network.
        return Router(popularity=[[1.0]] * spec.num_hidden_layers, tokens=1, distinct=[])
    distinct: dict[int, list[float]] = {}
    total = np.zeros((spec.expert_layers, spec.num_local_experts))
    for number in range(sequences):
        # Staggered lengths let the batch shrink, so that small iterations are seen too.
        wanted = 1 + output * (number + 1) // sequences
        record = Record(request_id=number, prompt_tokens=prompt, output_tokens=wanted)
        engine.submit(record, rng.integers(spec.vocab_size, size=prompt).tolist())
    with observed_routing(engine.runner.decoder) as counts:
        while engine.step():
            seen = counts.cpu().numpy()
            tokens = int(seen[0].sum()) // spec.num_experts_per_tok
            distinct.setdefault(tokens, []).append(float((seen > 0).sum(axis=1).mean()))
            total += seen
            counts.zero_()
    engine.ledger.records.clear()
    engine.outputs.clear()
    tokens = int(total[0].sum()) // spec.num_experts_per_tok
    return Router(
        popularity=(total / tokens).round(6).tolist(),
        tokens=tokens,
        distinct=[(size, float(np.mean(means))) for size, means in sorted(distinct.items())],
    )
