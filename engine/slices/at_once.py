"""Run a task on every share of a device at once: processes on cores, threads on streams.

A task is a function of a job and a gate. Whoever waits at the gate goes on when all others wait
there too, so that they begin together:

    def serve(job, gate):
        engine = ...      # each loads its own, on its share
        gate.wait()
        return engine.serve(...)

    answers = at_once(shares, device, serve, jobs)

On a CPU the task and its jobs are sent to new processes: the task is a module's function, and job
and answer can be pickled. One that fails ends all.
"""

import signal
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from fractions import Fraction
from multiprocessing import get_context
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from typing import Any, Protocol, TypeVar

import torch

from engine.slices.cores import Cores, confine, divide_cores
from engine.slices.driver import open_driver
from engine.slices.green import GreenSlice, green_slices
from moesim.errors import EngineError, MoesimError

Job = TypeVar("Job")
Answer = TypeVar("Answer")


class Gate(Protocol):
    """Where those that run at once wait for each other."""

    def wait(self) -> int:
        """Return when all are here."""

    def abort(self) -> None:
        """Let all that wait, now or later, fail."""


Task = Callable[[Job, Gate], Answer]
"""What runs on a share."""


def at_once(
    shares: Sequence[Fraction],
    device: torch.device,
    task: Task[Job, Answer],
    jobs: Sequence[Job],
) -> list[Answer]:
    """Run a task on each share of a device, a job each; return the answers in order.

    Raises EngineError where the device cannot be divided so, or a share fails.
    """
    if device.type != "cuda":
        return on_cores(divide_cores(shares), task, jobs)
    torch.cuda.synchronize(device)  # torch's own context has to be there before others
    with green_slices(open_driver(), shares, device.index or 0) as slices:
        return on_streams(slices, task, jobs)


def on_cores(groups: Sequence[Cores], task: Task[Job, Answer], jobs: Sequence[Job]) -> list[Answer]:
    """Run a task in a process for each set of cores."""
    context = get_context("spawn")
    gate = context.Barrier(len(groups))
    started: list[SpawnProcess] = []
    pipes: dict[Connection, int] = {}
    try:
        for number, (cores, job) in enumerate(zip(groups, jobs, strict=True)):
            ours, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_confined, args=(cores, task, job, gate, theirs))
            process.start()
            theirs.close()  # so that the pipe ends when the process does
            started.append(process)
            pipes[ours] = number
        return _answers(pipes)
    finally:
        for process in started:
            process.terminate()
            process.join()
        for pipe in pipes:
            pipe.close()


def _confined(cores: Cores, task: Task[Any, Any], job: Any, gate: Any, pipe: Connection) -> None:
    """Run a task in this process, and send what it answers or why it failed.

    An interruption from the terminal is left to whoever started it, who ends all.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    confine(cores)
    try:
        pipe.send((task(job, gate), None))
    except MoesimError as wrong:
        pipe.send((None, str(wrong)))
        gate.abort()  # after the word: the others' silence comes later
    except threading.BrokenBarrierError:
        sys.exit(1)


def _answers(pipes: Mapping[Connection, int]) -> list[Any]:
    """Collect an answer from each process; EngineError with the reason of the first that fails."""
    found: dict[int, Any] = {}
    while left := [pipe for pipe, number in pipes.items() if number not in found]:
        silent = []
        for pipe in wait(left):
            assert isinstance(pipe, Connection)  # noqa: S101 nothing else was waited for
            try:
                found[pipes[pipe]], wrong = pipe.recv()
            except (EOFError, OSError):
                silent.append(pipes[pipe])
                continue
            if wrong is not None:
                raise EngineError(f"share {pipes[pipe] + 1}: {wrong}")
        if silent:
            raise EngineError(
                f"share {silent[0] + 1}: its process ended without an answer; is memory short?"
            )
    return [found[number] for number in sorted(found)]


def on_streams(
    slices: Sequence[GreenSlice], task: Task[Job, Answer], jobs: Sequence[Job]
) -> list[Answer]:
    """Run a task in a thread for each green context, on its stream."""
    gate = threading.Barrier(len(slices))

    def on_stream(part: GreenSlice, job: Job) -> Answer:
        try:
            with torch.cuda.stream(part.stream):
                answer = task(job, gate)
                torch.cuda.current_stream().synchronize()
                return answer
        except Exception:
            gate.abort()
            raise

    with ThreadPoolExecutor(len(slices)) as pool:
        running = [pool.submit(on_stream, *pair) for pair in zip(slices, jobs, strict=True)]
        wait_for(running, return_when=FIRST_EXCEPTION)
    return _results(running)


def _results(done: Sequence[Future[Answer]]) -> list[Answer]:
    """Return the answers; raises what was wrong first, not what broke because of it."""
    for number, each in enumerate(done):
        wrong = each.exception()
        if isinstance(wrong, MoesimError):
            raise EngineError(f"share {number + 1}: {wrong}") from None
        if wrong is not None and not isinstance(wrong, threading.BrokenBarrierError):
            raise wrong
    return [each.result() for each in done]
