"""Routing that is not uniform: copies of one prompt, and prompts of random tokens.

A benchmark that decodes copies of one prompt, each token the likeliest, has all sequences choose
the same experts: an iteration reads as many as one token visits, however large the batch is. (The
prompt's own tokens do differ, which is left out here: 128 of them would read all experts of a
layer. Of answers of 128 tokens and more that is about a per cent.)

TensorRT-LLM 0.9's gptSessionBenchmark draws the tokens of its prompts at random and takes the
likeliest for answers (benchmarks/cpp/gptSessionBenchmark.cpp, Apache-2.0). Its times are those of
a model that seldom chooses most of its experts, and whose answers to long prompts are all alike
(`RANDOM_0_9`).
"""

from dataclasses import dataclass

from moesim.cost.profile import Profile

NEVER = 1e-9
"""The share of an expert that is never chosen: shares are above zero."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """How a model routes what a benchmark makes up."""

    rare: float
    """Share of the tokens that choose an expert which is not among a layer's favourites."""
    differ_until: int
    """Length of prompts up to which answers are known to differ [tokens]."""
    alike_from: int
    """Length of prompts from which on all answers are known to be alike [tokens]."""


RANDOM_0_9 = Made(rare=0.005, differ_until=128, alike_from=2048)
"""Found on Mixtral's times on A100: the first token of a prompt of 128 tokens takes as long as
reading 4.9 of 8 experts of each layer, and the tokens of 32 answers to 2,048 tokens as long as
reading two. Found there, both hold on H100. From which length on answers are alike is known from
these two lengths alone."""


def routed_unevenly(profile: Profile, rare: float) -> Profile:
    """Return a profile in which tokens choose the same experts, but for a share for each other.

    As many are favourites as a token visits.
    """
    spec = profile.spec
    chosen, others = spec.num_experts_per_tok, spec.num_local_experts - spec.num_experts_per_tok
    layer = (1.0 - rare * others / chosen,) * chosen + (rare,) * others
    routers = len(profile.router.popularity)
    router = profile.router.model_copy(update={"popularity": (layer,) * routers})
    return profile.model_copy(update={"router": router})


def routed_alike(profile: Profile) -> Profile:
    """Return a profile in which every token chooses the same experts."""
    return routed_unevenly(profile, NEVER)
