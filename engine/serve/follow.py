"""A rank that follows: it holds its part of a model and takes every step that rank 0 takes.

Rank 0 schedules, samples and serves (`engine.serve.lead`). What the others need to know comes
through a pipe each, an order at a time, as JSON and, in steps, as whole numbers: nothing that
comes in is ever run as code.

| order | says | answered |
|---|---|---|
| `load`, `make` | which checkpoint to read, which random weights to make | once it is there |
| `open` | how large cache and swap space are, in which style experts run | once it is there |
| `step` | that the batch of an iteration comes next, packed | no: the sums are the answer |
| `store`, `restore`, `discard` | which blocks go to host memory, come back, are forgotten | no |
| `stop` | that it is over | no |

A rank that cannot follow says why, and ends. It ends too when the pipe does, as rank 0 is gone
then. The signals by which a terminal or a service manager ends a group of processes are left to
rank 0, which may have requests to finish first.
"""

import json
import signal
import sys
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from engine.model.attention import keep_off_cudnn
from engine.model.checkpoint import load_decoder, random_decoder
from engine.model.decoder import Decoder
from engine.model.experts.choosing import use_experts
from engine.model.paged_layers import page_decodes
from engine.model.parallel import Meeting, Rank
from engine.model.step import PagedKvCache
from engine.serve.packing import unpacked
from engine.serve.swapping import SwapSpace
from moesim.errors import MoesimError
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision

ANSWERED = ("load", "make", "open")
"""The orders that rank 0 wants to know followed before it goes on."""


def follow(rank: Rank, meeting: Meeting, threads: int, pipe: Connection) -> None:
    """Follow rank 0 until it says stop: all that a following process does.

    Where there is no GPU it computes with so many `threads`.
    """
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, signal.SIG_IGN)
    torch.set_num_threads(threads)
    try:
        answer(pipe)  # so that nobody waits at the meeting for a process that does not start
        with meeting.joined(rank) as device:
            follower = Follower(rank, device, pipe)
            while (order := json.loads(pipe.recv_bytes()))["order"] != "stop":
                follower.take(order)
                if order["order"] in ANSWERED:
                    answer(pipe)
    except (EOFError, ConnectionError):
        sys.exit(f"rank {rank.number}: rank 0 is gone; start again")
    except MoesimError as wrong:
        _end(pipe, str(wrong))


def answer(pipe: Connection, error: str | None = None) -> None:
    """Tell rank 0 that an order is followed, or why it cannot be."""
    pipe.send_bytes(json.dumps({"error": error}).encode())


def _end(pipe: Connection, error: str) -> None:
    """Say why to rank 0, or to whoever reads the log where rank 0 is gone."""
    try:
        answer(pipe, error)
    except ConnectionError:
        sys.exit(error)
    sys.exit(1)


class Follower:
    """What a rank has of a model, and how it follows each order."""

    def __init__(self, rank: Rank, device: torch.device, pipe: Connection) -> None:
        self._rank = rank
        self._pipe = pipe
        self._device = device
        self._decoder: Decoder
        self._cache: PagedKvCache
        self._swap: SwapSpace

    @torch.inference_mode()
    def take(self, order: dict[str, Any]) -> None:
        """Follow an order of rank 0."""
        match order:
            case {"order": "load", "path": path, "dtype": dtype, "precision": told}:
                plain = getattr(torch, dtype) if dtype else None
                narrow = Precision(**told) if told else None
                self._decoder = load_decoder(Path(path), self._device, plain, self._rank, narrow)
            case {"order": "make", "config": config, "seed": seed}:
                spec = ModelSpec.from_config(config)
                self._decoder = random_decoder(spec, seed, self._device, self._rank)
            case {"order": "open"}:
                self._open(order)
            case {"order": "step"}:
                batch = unpacked(self._pipe.recv_bytes())
                step = batch.step(self._cache.block_size, self._device)
                self._decoder.forward(step, self._cache)
            case {"order": "store", "request_id": key, "blocks": blocks}:
                self._swap.store(key, blocks)
            case {"order": "restore", "request_id": key, "blocks": blocks}:
                self._swap.restore(key, blocks)
            case {"order": "discard", "request_id": key}:
                self._swap.discard(key)

    def _open(self, order: dict[str, Any]) -> None:
        """Allocate cache and swap space, and choose how the experts run."""
        self._cache = PagedKvCache(
            self._decoder.spec,
            num_blocks=order["num_blocks"],
            block_size=order["block_size"],
            device=self._device,
            dtype=self._decoder.dtype,
        )
        self._swap = SwapSpace(self._cache, order["swap_blocks"])
        keep_off_cudnn()
        page_decodes(self._decoder)
        use_experts(self._decoder, order["experts"])
