"""From checkpoint folders to a service: weights loaded, the cache shared out, workers set up."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.model.loading import load_model, told_precision
from engine.model.model import Model
from engine.serve.clock import WallClock
from engine.serve.engine import Engine, EngineConfig
from engine.serve.lead import Leader
from engine.serve.memory import default_blocks
from engine.serve.sampling import Sampling
from engine.server.account import Account
from engine.server.metrics import Metrics
from engine.server.scheduling import Scheduling
from engine.server.service import Bounds, ServedModel, Service
from engine.server.tokens import tokeniser_of
from engine.server.worker import Worker
from moesim.errors import EngineError
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How each model is run; `None` means what the model and the device allow.

    `precision` is the format of the weights, `rest_precision` of all but the experts'.
    """

    max_num_seqs: int = 256
    max_batched_tokens: int = 2048
    max_model_len: int | None = None
    num_blocks: int | None = None
    block_size: int = 16
    scheduling: Scheduling = field(default_factory=Scheduling)
    prefix_caching: bool = False
    experts: str = "auto"
    graphs: bool = True
    precision: str | None = None
    rest_precision: str | None = None
    seed: int | None = None
    tensor_parallel: int = 1

    def __post_init__(self) -> None:
        if self.prefix_caching and self.scheduling.swaps:
            raise EngineError(
                "--preemption swap: does not go with --prefix-caching, shared blocks are not "
                "swapped; leave one of them out"
            )


def service_of(
    checkpoints: Mapping[str, Path],
    hosting: Hosting,
    *,
    bounds: Bounds | None = None,
    api_key: str = "",
    keep_records: bool = False,
    leader: Leader | None = None,
) -> Service:
    """Load models by name and return a service that is ready to run.

    All models share one clock, so that their records fit into one table. With a `leader`, several
    ranks share the only model.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    models = {name: _loaded(path, device, hosting, leader) for name, path in checkpoints.items()}
    service = Service(
        models={},
        clock=WallClock(),
        bounds=bounds or Bounds(),
        api_key=api_key,
        kept=[] if keep_records else None,
    )
    for name, model in models.items():
        sharers = len(models) - len(service.models)
        config = config_of(model, hosting, sharers)
        service.models[name] = _served(
            name, checkpoints[name], model, config, service, alone=leader is None
        )
    return service


def _loaded(path: Path, device: torch.device, hosting: Hosting, leader: Leader | None) -> Model:
    """Read a checkpoint, its weights narrowed on the way if they are to be."""
    precision = told_precision(path, hosting.precision, hosting.rest_precision)
    if leader:
        return leader.load(path, precision=precision)
    return load_model(path, device, precision=precision)


def config_of(model: Model, hosting: Hosting, sharers: int) -> EngineConfig:
    """Set up one engine; it takes its part of the memory that `sharers` models have left."""
    scheduling = hosting.scheduling
    longest = hosting.max_model_len or model.spec.max_position_embeddings
    useful = hosting.max_num_seqs * -(-longest // hosting.block_size)
    limits = Limits(
        max_num_seqs=hosting.max_num_seqs,
        max_batched_tokens=hosting.max_batched_tokens,
        max_model_len=longest,
        policy=scheduling.rules,
        swap_blocks=scheduling.swap_blocks(model.spec, hosting.block_size, useful),
    )
    blocks = hosting.num_blocks
    if blocks is None:
        blocks = default_blocks(model, limits, hosting.block_size) // sharers
    if blocks < 1:
        raise EngineError(f"KV cache: no room for one block in each of {sharers} models")
    return EngineConfig(
        limits=limits,
        num_blocks=blocks,
        block_size=hosting.block_size,
        order=scheduling.order,
        priorities=scheduling.priorities,
        weights=scheduling.weights,
        prefix_caching=hosting.prefix_caching,
        experts=hosting.experts,
        graphs=hosting.graphs,
        sampling=Sampling(seed=hosting.seed),
    )


def _served(
    name: str,
    checkpoint: Path,
    model: Model,
    config: EngineConfig,
    service: Service,
    *,
    alone: bool,
) -> ServedModel:
    metrics = Metrics()
    account = Account(metrics, service.kept)
    engine = Engine(model, config, service.clock, account)
    return ServedModel(
        name=name,
        tokeniser=tokeniser_of(checkpoint, model.spec.vocab_size),
        worker=Worker(name, engine, account, metrics, alone=alone),
        created=int(time.time()),
        seats=config.limits.max_num_seqs + service.bounds.queue,
    )


def records_of(service: Service) -> list[Record]:
    """Return the records of everything that has ended, in order of arrival."""
    return sorted(service.kept or [], key=lambda record: record.request_id)
