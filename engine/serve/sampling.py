"""From logits to the next token: one rule for a whole engine, or each request its own.

Shapes: S sequences that emit a token, V vocabulary.
"""

from collections.abc import Sequence as Row
from dataclasses import dataclass
from math import isfinite

import torch
from torch import Tensor

from moesim.errors import EngineError

GREEDY_BELOW = 1e-5
"""Temperatures below this are taken as 0: logits over them may overflow."""

NO_TOKEN = -1


class SpoiledError(EngineError):
    """Logits that are no finite numbers: from them no token of these `requests` can be chosen."""

    def __init__(self, requests: Row[int]) -> None:
        super().__init__(
            f"request {', '.join(map(str, requests))}: the model's logits are not finite numbers; "
            "look for NaN in its weights, or take a wider number format"
        )
        self.requests = requests


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are chosen: greedy below `GREEDY_BELOW`, else drawn from the tempered softmax.

    `top_p` keeps the likeliest tokens that together reach this probability. A `seed` of None means
    draws that are not meant to be repeated. `logprobs` asks for the log-probability of the chosen
    token and of that many others, the likeliest; None asks for none.
    """

    temperature: float = 0.0
    top_p: float = 1.0
    seed: int | None = 0
    logprobs: int | None = None

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and isfinite(self.temperature)):
            raise EngineError(f"temperature: {self.temperature} must be finite and not negative")
        if not 0 < self.top_p <= 1:
            raise EngineError(f"top_p: {self.top_p} must be above 0 and at most 1")

    @property
    def greedy(self) -> bool:
        """Whether the likeliest token is always taken."""
        return self.temperature < GREEDY_BELOW


@dataclass(frozen=True, slots=True)
class Logprob:
    """Log-probability of a sampled token, and the likeliest tokens with theirs.

    They are of the model's own distribution, before temperature and `top_p`.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]


class Stream:
    """One request's own rule, and its own random numbers where it has a seed."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self.sampling = sampling
        self.generator: torch.Generator | None = None
        if sampling.seed is not None and not sampling.greedy:
            self.generator = torch.Generator(device=device).manual_seed(sampling.seed)


class Sampler:
    """Draws tokens; the same seed and logits give the same tokens."""

    def __init__(self, sampling: Sampling, device: torch.device) -> None:
        self._sampling = sampling
        self._generator = torch.Generator(device=device)
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits: Tensor, streams: Row[Stream | None] = ()) -> Tensor:
        """Return one token for each row of logits (S, V) as a tensor (S,).

        `streams` are the requests' own rules, row by row; without one the engine's holds.
        """
        own = [stream.sampling if stream else self._sampling for stream in streams]
        rules = own or [self._sampling] * len(logits)
        if all(rule.greedy for rule in rules):
            return logits.argmax(dim=-1)
        scores = _kept(_tempered(logits, rules), rules)
        # Gumbel's trick: the argmax of log p + Gumbel noise is a draw from p.
        drawn = (scores - self._noise(logits, streams)).argmax(dim=-1)
        if not any(rule.greedy for rule in rules):
            return drawn
        greedy = torch.tensor([rule.greedy for rule in rules], device=logits.device)
        return torch.where(greedy, logits.argmax(dim=-1), drawn)

    def _noise(self, logits: Tensor, streams: Row[Stream | None]) -> Tensor:
        """Return minus Gumbel noise (S, V); a row with a seed of its own does not see the others.

        Rows are overwritten after the common draw, so that a batch costs one draw and not S.
        """
        noise = torch.empty_like(logits, dtype=torch.float32)
        noise.exponential_(generator=self._generator)
        for row, stream in enumerate(streams):
            if stream and stream.generator:
                noise[row].exponential_(generator=stream.generator)
        return noise.log_()


def _tempered(logits: Tensor, rules: Row[Sampling]) -> Tensor:
    """Return logits over temperatures; greedy rows as they are."""
    if len({rule.temperature for rule in rules}) == 1:
        return logits.float() / rules[0].temperature
    heats = [1.0 if rule.greedy else rule.temperature for rule in rules]
    heat = torch.tensor(heats, device=logits.device)
    return logits.float() / heat[:, None]


def _kept(scores: Tensor, rules: Row[Sampling]) -> Tensor:
    """Rule out the tokens beyond `top_p` in the rows that have one."""
    rows = [row for row, rule in enumerate(rules) if rule.top_p < 1]
    if not rows:
        return scores
    index = torch.tensor(rows, device=scores.device)
    share = torch.tensor([[rules[row].top_p] for row in rows], device=scores.device)
    ordered, tokens = scores[index].softmax(dim=-1).sort(dim=-1, descending=True)
    # What comes before a token in this order; nothing comes before the likeliest.
    beyond = ordered.cumsum(dim=-1) - ordered >= share
    beyond[:, 0] = False  # a share may be so small that it is 0 in float32
    out = torch.zeros_like(beyond).scatter(-1, tokens, beyond)
    scores[index] = scores[index].masked_fill(out, -torch.inf)
    return scores


def certain(logits: Tensor, chosen: Tensor) -> Tensor:
    """Return the chosen tokens (S,), `NO_TOKEN` where logits (S, V) are no finite numbers.

    NaN and infinity are likeliest to every rule, so that the chosen one's logit tells of the row.
    """
    found = logits.gather(-1, chosen[:, None])[:, 0]
    return chosen.where(found.isfinite(), NO_TOKEN)


def logprobs_of(logits: Tensor, chosen: Tensor, streams: Row[Stream | None]) -> dict[int, Logprob]:
    """Return the log-probabilities that were asked for, by row of the logits (S, V)."""
    asked = {
        row: stream.sampling.logprobs
        for row, stream in enumerate(streams)
        if stream and stream.sampling.logprobs is not None
    }
    if not asked:
        return {}
    index = torch.tensor(list(asked), device=logits.device)
    table = logits[index].float().log_softmax(dim=-1)
    own = table.gather(-1, chosen[index][:, None])[:, 0].tolist()
    values, tokens = table.topk(min(max(asked.values()), table.shape[-1]), dim=-1)
    likeliest = zip(tokens.tolist(), values.tolist(), strict=True)
    return {
        row: Logprob(value, tuple(zip(ids[:count], found[:count], strict=True)))
        for (row, count), value, (ids, found) in zip(asked.items(), own, likeliest, strict=True)
    }
