"""From checkpoint folders to a service: weights loaded, the cache shared out, workers set up."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from engine.model.checkpoint import load_decoder
from engine.model.decoder import Decoder
from engine.serve.clock import WallClock
from engine.serve.engine import Engine, EngineConfig
from engine.serve.memory import default_blocks
from engine.serve.sampling import Sampling
from engine.server.account import Account
from engine.server.metrics import Metrics
from engine.server.service import Bounds, ServedModel, Service
from engine.server.tokens import tokeniser_of
from engine.server.worker import Worker
from moesim.errors import EngineError
from moesim.serving.records import Record
from moesim.serving.scheduling import Limits


@dataclass(frozen=True, slots=True, kw_only=True)
class Hosting:
    """How each model is run; `None` means what the model and the device allow."""

    max_num_seqs: int = 256
    max_batched_tokens: int = 2048
    max_model_len: int | None = None
    num_blocks: int | None = None
    block_size: int = 16
    prefix_caching: bool = False
    seed: int | None = None


def service_of(
    checkpoints: Mapping[str, Path],
    hosting: Hosting,
    *,
    bounds: Bounds | None = None,
    api_key: str = "",
    keep_records: bool = False,
) -> Service:
    """Load models by name and return a service that is ready to run.

    All models share one clock, so that their records fit into one table.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    decoders = {name: load_decoder(path, device) for name, path in checkpoints.items()}
    service = Service(
        models={},
        clock=WallClock(),
        bounds=bounds or Bounds(),
        api_key=api_key,
        kept=[] if keep_records else None,
    )
    for name, decoder in decoders.items():
        sharers = len(decoders) - len(service.models)
        config = _config(decoder, hosting, sharers)
        service.models[name] = _model(name, checkpoints[name], decoder, config, service)
    return service


def _config(decoder: Decoder, hosting: Hosting, sharers: int) -> EngineConfig:
    """Set up one engine; it takes its part of the memory that `sharers` models have left."""
    longest = decoder.spec.max_position_embeddings
    limits = Limits(
        max_num_seqs=hosting.max_num_seqs,
        max_batched_tokens=hosting.max_batched_tokens,
        max_model_len=hosting.max_model_len or longest,
    )
    blocks = hosting.num_blocks
    if blocks is None:
        blocks = default_blocks(decoder, limits, hosting.block_size) // sharers
    if blocks < 1:
        raise EngineError(f"KV cache: no room for one block in each of {sharers} models")
    return EngineConfig(
        limits=limits,
        num_blocks=blocks,
        block_size=hosting.block_size,
        prefix_caching=hosting.prefix_caching,
        sampling=Sampling(seed=hosting.seed),
    )


def _model(
    name: str, checkpoint: Path, decoder: Decoder, config: EngineConfig, service: Service
) -> ServedModel:
    metrics = Metrics()
    account = Account(metrics, service.kept)
    engine = Engine(decoder, config, service.clock, account)
    return ServedModel(
        name=name,
        tokeniser=tokeniser_of(checkpoint, decoder.spec.vocab_size),
        worker=Worker(name, engine, account, metrics),
        created=int(time.time()),
        seats=config.limits.max_num_seqs + service.bounds.queue,
    )


def records_of(service: Service) -> list[Record]:
    """Return the records of everything that has ended, in order of arrival."""
    return sorted(service.kept or [], key=lambda record: record.request_id)
