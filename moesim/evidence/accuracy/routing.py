"""Costs where all sequences of a batch are the same.

A benchmark that decodes copies of one prompt, each token the likeliest, has all sequences choose
the same experts: an iteration reads as many as one token visits, however large the batch is. (The
prompt's own tokens do differ; there are so many of them that reading experts hardly matters.)
"""

from functools import cached_property

from moesim.cost.iteration import Cost, CostModel
from moesim.cost.profile import Profile
from moesim.evidence.accuracy.costs import Costs
from moesim.evidence.accuracy.experiments import System

NEVER = 1e-9
"""The share of an expert that is never chosen: shares are above zero."""


class RoutedCosts(Costs):
    """The costs of systems, routed as the requests to them are."""

    @cached_property
    def _alike(self) -> dict[tuple[System, int, int], Cost]:
        return {}

    def cost(self, system: System, tokens: int, sequences: int) -> Cost:
        """Return a cost that reaches at least so far."""
        if not system.alike or not system.spec.num_local_experts:
            return super().cost(system, tokens, sequences)
        key = (system, tokens, sequences)
        if key not in self._alike:
            self._alike[key] = CostModel(
                alike(self._profiles(system, tokens, sequences)),
                max_batched_tokens=tokens,
                max_num_seqs=sequences,
            )
        return self._alike[key]


def alike(profile: Profile) -> Profile:
    """Return a profile in which every token chooses the same experts."""
    spec = profile.spec
    chosen, all_of_them = spec.num_experts_per_tok, spec.num_local_experts
    layer = (1.0,) * chosen + (NEVER,) * (all_of_them - chosen)
    routers = len(profile.router.popularity)
    router = profile.router.model_copy(update={"popularity": (layer,) * routers})
    return profile.model_copy(update={"router": router})
