"""Who asks during a validation: recorded arrivals, and users who wait for their answers.

Users are those of `moesim.simulation.users`, the same for the same seed as in a simulation.
"""

from collections.abc import Iterable
from heapq import heappop, heappush
from itertools import count
from math import inf

import numpy as np

from engine.serve.traffic import Arrival
from moesim.requests import Request
from moesim.serving.records import COMPLETED, Record
from moesim.simulation.stepwise import record_of
from moesim.simulation.users import AFTER_REFUSAL_S, User


class Prompts:
    """Token ids for requests: equal in blocks of equal name, random elsewhere.

    >>> prompts = Prompts(vocabulary=100, block_size=2, seed=(0, 1))
    >>> len(prompts.block(7)), prompts.block(7) == prompts.block(7)
    (2, True)
    """

    def __init__(self, vocabulary: int, block_size: int, seed: tuple[int, ...]) -> None:
        self._vocabulary = vocabulary
        self._block_size = block_size
        self._seed = seed
        self._rng = np.random.default_rng(seed)
        self._blocks: dict[int, list[int]] = {}

    def of(self, request: Request) -> list[int]:
        """Return a request's prompt."""
        named = [token for name in request.prefix for token in self.block(name)]
        return named + self._drawn(self._rng, request.prompt_tokens - len(named))

    def block(self, name: int) -> list[int]:
        """Return the content of a named block."""
        if name not in self._blocks:
            rng = np.random.default_rng([*self._seed, int(name < 0), abs(name)])
            self._blocks[name] = self._drawn(rng, self._block_size)
        return self._blocks[name]

    def _drawn(self, rng: np.random.Generator, tokens: int) -> list[int]:
        drawn: list[int] = rng.integers(self._vocabulary, size=tokens).tolist()
        return drawn


class Clients:
    """The traffic of one run: requests at their times, users until `until_s`."""

    def __init__(
        self,
        requests: Iterable[Request],
        users: Iterable[User],
        prompts: Prompts,
        *,
        until_s: float,
    ) -> None:
        self._prompts = prompts
        self._until_s = until_s
        self._coming: list[tuple[float, int, Arrival | User]] = []
        self._turn = count()
        self._waiting: dict[int, User] = {}
        # Made before the first arrives, so that serving does not wait for them.
        arrivals = [(request.reaches_s, self._arrival(request)) for request in requests]
        self._ids = count(len(arrivals))
        for reaches_s, arrival in arrivals:
            self._expect(reaches_s, arrival)
        for user in users:
            self._let_think(user, 0.0)

    def next_s(self) -> float:
        """Return when the next request arrives, infinity if none is known of."""
        return self._coming[0][0] if self._coming else inf

    def take(self) -> Arrival:
        """Return the request that arrives next."""
        now_s, _, who = heappop(self._coming)
        if isinstance(who, Arrival):
            return who
        request = who.request(next(self._ids), now_s)
        self._waiting[request.request_id] = who
        return self._arrival(request)

    def done(self, record: Record) -> None:
        """Let the user who waited for an answer think."""
        user = self._waiting.pop(record.request_id, None)
        if user and record.outcome == COMPLETED:
            self._let_think(user, record.finish_s)
        elif user:
            self._let_think(user, record.arrival_s + AFTER_REFUSAL_S)

    def _let_think(self, user: User, since_s: float) -> None:
        asked_s = since_s + user.think_time_s()
        if asked_s < self._until_s:
            self._expect(asked_s, user)

    def _expect(self, moment_s: float, who: Arrival | User) -> None:
        heappush(self._coming, (moment_s, next(self._turn), who))

    def _arrival(self, request: Request) -> Arrival:
        return Arrival(
            record=record_of(request, f"{request.model}/0"),
            prompt=self._prompts.of(request),
            names=request.prefix,
        )
