"""What the server serves: models with their workers, the room they have, and whether it is leaving.

All of it lives on the event loop; only the workers' engines do not.
"""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Protocol

from engine.serve.clock import Clock
from engine.server.errors import ApiError, overloaded, unavailable
from engine.server.gateway import GatewayModel
from engine.server.protocol import ChatRequest, CompletionRequest
from engine.server.tokens import Tokeniser
from engine.server.worker import Worker
from moesim.serving.records import REFUSED, Record


@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What is accepted: bytes of a body, seconds to receive it, prompts that wait at a model."""

    body_bytes: int = 4 * 2**20
    body_s: float = 30.0
    queue: int = 1024


@dataclass(slots=True, kw_only=True)
class ServedModel:
    """A model, its tokeniser, and the worker that runs it.

    `accepted` prompts are on their way; there are `seats`: those that may run and those that may
    wait.
    """

    name: str
    tokeniser: Tokeniser
    worker: Worker
    created: int
    seats: int
    accepted: int = 0

    @property
    def max_model_len(self) -> int:
        """The most tokens of a prompt and its answer together, by positions, blocks and policy."""
        config = self.worker.engine.config
        limits = config.limits
        # The last token's keys and values are never written, nor computed again.
        longest = min(limits.max_model_len, config.num_blocks * config.block_size + 1)
        if limits.policy.chunked or not limits.policy.preempts:
            return longest
        return min(longest, limits.max_batched_tokens + 1)

    def take_seats(self, wanted: int) -> None:
        """Let prompts in; ApiError where there will never be so many seats, or are not now."""
        if wanted > self.seats:
            raise ApiError(
                400, f"prompt: {wanted} prompts at once, at most {self.seats}", param="prompt"
            )
        if self.accepted + wanted > self.seats:
            raise overloaded(
                f"the queue of model {self.name!r} is full: {self.accepted} requests are running "
                f"or waiting; try again later"
            )
        self.accepted += wanted

    def leave_seats(self, count: int) -> None:
        """Make room for others."""
        self.accepted -= count


class Guest(Protocol):
    """A request that is being answered."""

    def dismiss(self, why: ApiError) -> None:
        """End the answer with an error."""


@dataclass(slots=True, kw_only=True)
class Service:
    """The models by name, a gateway before them if there is one, the requests that are `open`.

    `kept` collects the records of what has ended, where they are wanted.
    """

    models: dict[str, ServedModel]
    clock: Clock
    bounds: Bounds = Bounds()
    api_key: str = ""
    kept: list[Record] | None = None
    gateway: GatewayModel | None = None
    draining: bool = False
    open: set[Guest] = field(default_factory=set)
    _ids: Iterator[int] = field(default_factory=count)

    @property
    def healthy(self) -> bool:
        """Whether new requests are welcome and every model can answer."""
        return not self.draining and not any(model.worker.failed for model in self.models.values())

    def model(self, name: str) -> ServedModel:
        """Return a model by name; ApiError 404 lists those there are."""
        if name not in self.models:
            known = [*self.models, *([self.gateway.name] if self.gateway else [])]
            raise ApiError(
                404,
                f"model: {name!r} is not served here; there is {', '.join(known)}",
                param="model",
                code="model_not_found",
            )
        return self.models[name]

    async def answering(self, asked: CompletionRequest | ChatRequest) -> ServedModel:
        """Return the model that answers a request: the one it names, or the gateway's choice."""
        if self.gateway and asked.model == self.gateway.name:
            return self.models[await self.gateway.expert_for(asked)]
        return self.model(asked.model)

    def check_open(self) -> None:
        """Raise ApiError 503 where no more requests are taken."""
        if self.draining:
            raise unavailable("the server is shutting down")

    def hang_up(self) -> None:
        """End every open answer: there is no more time."""
        for guest in self.open:
            guest.dismiss(unavailable("the server is shutting down"))

    def next_id(self) -> int:
        """Return an id that no other request has."""
        return next(self._ids)

    def refused(self, record: Record, reason: str) -> None:
        """Take note of a request that can never be served."""
        record.outcome, record.detail = REFUSED, reason
        if self.kept is not None:
            self.kept.append(record)

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run the workers."""
        for model in self.models.values():
            model.worker.start()
        try:
            yield
        finally:
            for model in self.models.values():
                await model.worker.stop()
