"""Routing where all sequences of a batch are the same.

A benchmark that decodes copies of one prompt, each token the likeliest, has all sequences choose
the same experts: an iteration reads as many as one token visits, however large the batch is. (The
prompt's own tokens do differ, which is left out here: 128 of them would read all experts of a
layer. Of answers of 128 tokens and more that is about a per cent.)
"""

from moesim.cost.profile import Profile

NEVER = 1e-9
"""The share of an expert that is never chosen: shares are above zero."""


def routed_alike(profile: Profile) -> Profile:
    """Return a profile in which every token chooses the same experts."""
    spec = profile.spec
    chosen, all_of_them = spec.num_experts_per_tok, spec.num_local_experts
    layer = (1.0,) * chosen + (NEVER,) * (all_of_them - chosen)
    routers = len(profile.router.popularity)
    router = profile.router.model_copy(update={"popularity": (layer,) * routers})
    return profile.model_copy(update={"router": router})
