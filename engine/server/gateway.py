"""A model that is none: it sorts prompts by topic, and expert models answer them."""

import asyncio
import time
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from engine.gateway.experts import by_cluster
from engine.gateway.file import load_gateway
from engine.gateway.gateway import Gateway
from engine.server.errors import ApiError
from engine.server.protocol import ChatRequest, CompletionRequest
from moesim.errors import EngineError

OPTION = "--experts-of"
LONG_TEXT = 16_384
"""Characters from which a text is classified beside the event loop; so many take about 1 ms
(benchmarks/gateway.py)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GatewayModel:
    """What clients ask by `name` in place of the `experts`, one for each cluster."""

    name: str
    gateway: Gateway
    experts: tuple[str, ...]
    created: int = field(default_factory=lambda: int(time.time()))

    async def expert_for(self, asked: CompletionRequest | ChatRequest) -> str:
        """Return the name of the model that answers a request."""
        text = _text(asked)
        if len(text) < LONG_TEXT:
            return self.experts[self.gateway.route(text)]
        return self.experts[await asyncio.to_thread(self.gateway.route, text)]

    def card(self) -> dict[str, Any]:
        """Return what `/v1/models` says."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "moesim",
            "experts": list(dict.fromkeys(self.experts)),
        }


def _text(asked: CompletionRequest | ChatRequest) -> str:
    """Return what a request is about: its prompt, or what the user says in a conversation."""
    if isinstance(asked, ChatRequest):
        return "\n".join(turn.text for turn in asked.messages if turn.role == "user")
    if len(asked.prompts) > 1:
        raise ApiError(400, "prompt: a gateway takes one a request; send several", param="prompt")
    (prompt,) = asked.prompts
    if not isinstance(prompt, str):
        raise ApiError(400, "prompt: a gateway sorts texts, not token ids", param="prompt")
    return prompt


def gateway_model(
    file: Path | None, experts_of: str, models: Collection[str]
) -> GatewayModel | None:
    """Return what two options of the command say together, None where neither is given."""
    if file is None and not experts_of:
        return None
    if file is None:
        raise EngineError(f"{OPTION} {experts_of}: needs a --gateway")
    name, _, listed = experts_of.partition("=")
    if not name or not listed:
        raise EngineError(f"{OPTION} {experts_of!r}: is not NAME=MODEL,MODEL,... for --gateway")
    gateway = load_gateway(file)
    experts = by_cluster(OPTION, listed, gateway.clusters)
    if name in models:
        raise EngineError(f"{OPTION} {experts_of}: {name!r} is a model's name; choose another")
    for expert in experts:
        if expert not in models:
            raise EngineError(f"{OPTION} {experts_of}: {expert!r} is not served; add a --model")
    return GatewayModel(name=name, gateway=gateway, experts=experts)
