"""Rank 0 of a model that several ranks share: it starts the others, and tells them each step.

    with leading(2) as leader:
        engine = Engine(leader.load(path), config)

The engine schedules, counts blocks and samples here alone. CUDA graphs are not used.
"""

import json
import socket
import struct
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from engine.model.checkpoint import load_decoder, random_decoder
from engine.model.decoder import Decoder
from engine.model.parallel import Meeting, Rank, Shard
from engine.model.reading import dtype_name, spec_of
from engine.model.step import PagedKvCache
from engine.model.stopwatch import Lap
from engine.serve.follow import follow
from engine.serve.inputs import Flat
from engine.serve.packing import packed
from engine.serve.runner import Runner
from engine.serve.sampling import Sampling
from engine.serve.swapping import SwapSpace
from moesim.errors import EngineError
from moesim.facts.configs import DECODERS
from moesim.facts.models import ModelSpec
from moesim.facts.precision import Precision
from moesim.facts.slices import NODE

PATIENCE_S = 120.0
"""What a rank waits for the others in a sum [s]; longest is the first, when kernels compile."""

FAREWELL_S = 5.0
"""What a rank is granted to end by itself [s]."""

SILENCE_S = 1.0
"""What a rank is granted to say why it ends, once another has noticed [s]."""


@dataclass(frozen=True, slots=True)
class Companion:
    """A following process, and the pipe to it."""

    number: int
    process: SpawnProcess
    pipe: Connection

    def verdict(self) -> str | None:
        """Say why a rank has ended, in its own words if it had any; None if it has not."""
        try:
            while self.pipe.poll():
                if error := json.loads(self.pipe.recv_bytes())["error"]:
                    return str(error)
        except (EOFError, OSError):
            self.process.join(FAREWELL_S)
        if self.process.is_alive():
            return None
        return f"rank {self.number} has ended with exit code {self.process.exitcode}"

    def dismiss(self, granted_s: float) -> None:
        """End the process, by force if it does not end by itself within this time [s]."""
        self.process.join(granted_s)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


class Leader(Rank):
    """Rank 0. One model and one engine at a time: another takes the place of the former."""

    def __init__(self, count: int, meeting: Meeting) -> None:
        super().__init__(0, count)
        self.device = torch.device(meeting.kind)
        self._meeting = meeting
        self.companions: list[Companion] = []
        self.lost = False
        self.runner: LeadingRunner | None = None

    @contextmanager
    def gathered(self) -> Iterator[None]:
        """Start the others and meet them; end them afterwards, whatever happened."""
        try:
            self.companions += [self._started(number) for number in range(1, self.count)]
            self.hear()
            with self._meeting.joined(self) as self.device:
                try:
                    yield
                finally:
                    self._say_stop()
        finally:
            for companion in self.companions:
                companion.dismiss(0.0 if self.lost else FAREWELL_S)

    def load(
        self, path: Path, dtype: torch.dtype | None = None, precision: Precision | None = None
    ) -> Decoder:
        """Read a checkpoint folder, each rank its part; see `load_decoder`."""
        self.part_of(spec_of(path, DECODERS))
        self.tell(
            "load",
            path=str(path.absolute()),
            dtype=dtype and dtype_name(dtype),
            precision=precision and asdict(precision),
        )
        decoder = load_decoder(path, self.device, dtype, self, precision)
        self.hear()
        return decoder

    def make(self, spec: ModelSpec, seed: int) -> Decoder:
        """Create a model of random weights, each rank its part; see `random_decoder`."""
        self.part_of(spec)
        self.tell("make", config=spec.to_config(), seed=seed)
        decoder = random_decoder(spec, seed, self.device, self)
        self.hear()
        return decoder

    def reduce(self, x: Tensor) -> Tensor:
        """Add up, in place, what a layer makes of tokens (T, H) on each rank."""
        try:
            return super().reduce(x)
        except EngineError as wrong:
            raise self._loss(str(wrong)) from None

    def tell(self, order: str, **given: Any) -> None:
        """Give all others an order."""
        self._send(json.dumps({"order": order, **given}).encode())

    def tell_step(self, batch: Flat) -> None:
        """Let all others take a step; the logits are computed here alone."""
        self.tell("step")
        self._send(packed(replace(batch, emit_rows=[])))

    def _send(self, letter: bytes) -> None:
        try:
            for companion in self.companions:
                companion.pipe.send_bytes(letter)
        except OSError:  # it has ended, or takes nothing in
            raise self._loss("a rank does not answer") from None

    def hear(self) -> None:
        """Wait until all others have followed an order; EngineError if one cannot."""
        for companion in self.companions:
            try:
                error = json.loads(companion.pipe.recv_bytes())["error"]
            except (EOFError, OSError):
                raise self._loss("a rank does not answer") from None
            if error:
                raise EngineError(f"tensor_parallel: {error}")

    def _loss(self, seen: str) -> EngineError:
        """Return the error of a rank that is gone: what is known of it, or what was `seen`."""
        if not self.lost:
            wait([companion.pipe for companion in self.companions], SILENCE_S)
        self.lost = True
        verdicts = [companion.verdict() for companion in self.companions]
        known = "; ".join(verdict for verdict in verdicts if verdict)
        return EngineError(f"tensor_parallel: {known or seen}; start again")

    def _started(self, number: int) -> Companion:
        context = get_context("spawn")
        ours, theirs = context.Pipe()
        threads = max(1, torch.get_num_threads() // self.count)
        process = context.Process(
            target=follow,
            args=(Rank(number, self.count), self._meeting, threads, theirs),
            name=f"rank {number}",
            daemon=True,
        )
        process.start()
        theirs.close()
        _limit_sending(ours, self._meeting.patience_s)
        return Companion(number, process, ours)

    def _say_stop(self) -> None:
        for companion in self.companions:
            try:
                companion.pipe.send_bytes(json.dumps({"order": "stop"}).encode())
            except OSError:
                continue  # it has ended before


def _limit_sending(pipe: Connection, patience_s: float) -> None:
    """Let an order fail that a rank does not take in for so long."""
    seconds, rest = divmod(patience_s, 1)
    limit = struct.pack("ll", int(seconds), int(rest * 1e6))  # a C timeval
    with socket.fromfd(pipe.fileno(), socket.AF_UNIX, socket.SOCK_STREAM) as end:
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, limit)


@contextmanager
def leading(
    ranks: int, kind: str | None = None, patience_s: float = PATIENCE_S
) -> Iterator[Leader]:
    """Start the processes of so many ranks, of which this one is rank 0, and end them in the end.

    They run on GPUs where there are some, or on what `kind` says, "cuda" or "cpu". EngineError for
    more ranks than GPUs, or than devices of a node where there are none.
    """
    kind = kind or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and ranks > torch.cuda.device_count():
        raise EngineError(
            f"tensor_parallel: {ranks} ranks need a GPU each, and there are "
            f"{torch.cuda.device_count()}; take no more"
        )
    if ranks > NODE:
        raise EngineError(
            f"tensor_parallel: {ranks} ranks are more than the {NODE} devices of a node; "
            f"take at most {NODE}"
        )
    with tempfile.TemporaryDirectory(prefix="moesim-") as folder:
        meeting = Meeting(kind=kind, file=Path(folder) / "meeting", patience_s=patience_s)
        leader = Leader(ranks, meeting)
        with leader.gathered():
            yield leader


def led(ranks: int, folder: Path) -> AbstractContextManager[Leader | None]:
    """Start the ranks where there are several; None for one that needs no leader.

    EngineError, before any is started, where the model in `folder` cannot be divided among them.
    """
    if ranks == 1:
        return nullcontext()
    Rank(0, ranks).part_of(spec_of(folder, DECODERS))
    return leading(ranks)


class LeadingSwapSpace(SwapSpace):
    """Host memory for blocks, of which each rank has its own; all store and restore the same."""

    def __init__(self, leader: Leader, cache: PagedKvCache, num_blocks: int) -> None:
        super().__init__(cache, num_blocks)
        self._leader = leader

    def store(self, request_id: int, blocks: list[int]) -> None:
        """Copy a sequence's blocks to host memory."""
        self._leader.tell("store", request_id=request_id, blocks=blocks)
        super().store(request_id, blocks)

    def restore(self, request_id: int, blocks: list[int]) -> None:
        """Copy a sequence's blocks back, to where it lies from now on."""
        self._leader.tell("restore", request_id=request_id, blocks=blocks)
        super().restore(request_id, blocks)

    def discard(self, request_id: int) -> None:
        """Forget a sequence's blocks, if it has any here."""
        self._leader.tell("discard", request_id=request_id)
        super().discard(request_id)


class LeadingRunner(Runner):
    """A runner whose every step, and every block that it swaps, is told to the other ranks."""

    def __init__(
        self,
        model: Shard,
        *,
        num_blocks: int,
        block_size: int,
        sampling: Sampling,
        swap_blocks: int,
        experts: str,
    ) -> None:
        leader = model.rank
        if not isinstance(leader, Leader):
            raise EngineError(f"rank {leader.number}: is no leader; load the model by one's `load`")
        self._leader = leader
        leader.runner = self
        leader.tell(
            "open",
            num_blocks=num_blocks,
            block_size=block_size,
            swap_blocks=swap_blocks,
            experts=experts,
        )
        super().__init__(
            model,
            num_blocks=num_blocks,
            block_size=block_size,
            sampling=sampling,
            swap_blocks=swap_blocks,
        )
        leader.hear()

    def capture(self, sizes: Any) -> None:
        """Capture nothing: every step is launched, on all ranks."""

    def _swap_space(self, num_blocks: int) -> SwapSpace:
        return LeadingSwapSpace(self._leader, self.cache, num_blocks)

    def _logits(self, laid: Flat, lap: Lap) -> Tensor:
        """Return the logits (S, V) of the emitting rows, which no other rank computes."""
        if self._leader.runner is not self:
            raise EngineError("tensor_parallel: another engine has taken these ranks; use that one")
        self._leader.tell_step(laid)
        return super()._logits(laid, lap)
